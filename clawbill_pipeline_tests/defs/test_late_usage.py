"""The sensor of late usage: which hours it asks for, where some of them stay late. What a run does is in metering/."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from clawbill_pipeline.definitions import defs
from clawbill_pipeline.defs.sensors import late_usage as sensor
from clawbill_pipeline.ledger import LedgerError
from clawbill_pipeline.ledger.archive import archive_month, restore_month
from clawbill_pipeline_tests.metering.world import NOW, START, World, event, world


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    with world(tmp_path, ledger_url) as made:
        yield made


def asked(place: World, cursor: str = "", now: datetime = NOW) -> tuple[dict[str, str], str]:
    """Partition by run key of the runs that a tick asks for, and where the next tick goes on."""
    resources = {"ledger": place.ledger, "clock": lambda: now, "catalog": place.catalog}
    with dg.build_sensor_context(resources=resources, definitions=defs, cursor=cursor) as context:
        runs = sensor.late_usage.evaluate_tick(context).run_requests or ()
    return {str(run.run_key): str(run.partition_key) for run in runs}, context.cursor or ""


def test_hours_that_stay_late_keep_no_other_one_waiting(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor, "A_TICK", 2)
    place.land([event(str(number), 60 * number) for number in range(5)])
    seen: list[str] = []
    cursor, ticks = "", []
    for _ in range(4):
        runs, cursor = asked(place, cursor)
        ticks.append([int(partition[11:13]) for partition in runs.values()])
        seen += runs
    assert ticks == [[0, 1], [2, 3], [4], [0, 1]]
    assert len(set(seen)) == 5, "within six hours Dagster starts one run of each"


def test_after_the_last_hour_comes_the_first_at_once(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor, "A_TICK", 2)
    place.land([event(str(number), 60 * number) for number in range(2)])
    first, cursor = asked(place)
    assert cursor
    assert asked(place, cursor)[0] == first


def test_late_usage_of_an_archived_month_asks_for_one_run_that_says_what_to_do(place: World) -> None:
    place.land([event("1")])
    place.meter()
    month, later = date(START.year, START.month, 1), NOW + timedelta(days=36)
    archive_month(place.ledger, place.lake, month, now=later, by="me")
    place.land([event(f"late-{number}", 60 * number) for number in range(3)])
    runs, _ = asked(place, now=later)
    assert len(runs) == 1
    assert len(asked(place, now=later + timedelta(hours=6))[0].keys() - runs.keys()) == 1
    with pytest.raises(LedgerError, match="is archived and takes no more rows"):
        place.meter()
    restore_month(place.ledger, place.lake, month, now=later, by="me")
    assert len(asked(place, now=later)[0]) == 3
