"""Which runs an hour takes: one, or one a shard with its tag and its run key. What a shard does is in metering/."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._scheduler.scheduler import ScheduleIterationTimes, launch_scheduled_runs

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.definitions import build_definitions, defs
from clawbill_pipeline.defs import schedules
from clawbill_pipeline.defs.sensors.late_usage import late_usage
from clawbill_pipeline_tests.metering.world import NOW, START, World, catalogue, event, world

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("two schedulers")
SHARDED = "metering: {shards: 3}"
TENANTS = ("acme", "globex", "kathmandu")


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    with world(tmp_path, ledger_url) as made:
        yield made


def asked_by_schedule(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> list[dg.RunRequest]:
    monkeypatch.setattr(schedules, "catalog_at_load", lambda: catalog)
    at = datetime(2026, 11, 22, 14, 10, tzinfo=UTC)
    with dg.build_schedule_context(scheduled_execution_time=at, repository_def=defs.get_repository_def()) as context:
        return list(schedules.hourly.evaluate_tick(context).run_requests or ())


def test_the_schedule_asks_for_the_hour_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = asked_by_schedule(catalogue(), monkeypatch)
    assert (run.run_key, run.partition_key) == ("2026-11-22-13:00", "2026-11-22-13:00")
    assert "clawbill/shard" not in run.tags


def test_the_schedule_asks_for_a_run_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = asked_by_schedule(catalogue(SHARDED), monkeypatch)
    assert {run.partition_key for run in runs} == {"2026-11-22-13:00"}
    assert [run.tags["clawbill/shard"] for run in runs] == ["1/3", "2/3", "3/3"]
    assert [run.run_key for run in runs] == [f"2026-11-22-13:00-{number}-of-3" for number in (1, 2, 3)]


def test_late_usage_asks_for_a_run_a_shard(place: World) -> None:
    place.land([event("1")])
    place.meter()
    place.land([event("2")])
    resources = {"ledger": place.ledger, "clock": lambda: NOW, "catalog": catalogue(SHARDED)}
    with dg.build_sensor_context(resources=resources, definitions=defs) as context:
        runs = list(late_usage.evaluate_tick(context).run_requests or ())
    assert [run.tags["clawbill/shard"] for run in runs] == ["1/3", "2/3", "3/3"]
    assert len({run.run_key for run in runs}) == 3


def test_an_hour_that_stays_late_is_asked_for_again(place: World) -> None:
    place.land([event("1")])
    place.meter()
    place.land([event("2")])
    keys = []
    for hours in (0, 1, 6):
        resources = {
            "ledger": place.ledger,
            "clock": lambda at=hours: NOW + timedelta(hours=at),
            "catalog": catalogue(),
        }
        with dg.build_sensor_context(resources=resources, definitions=defs) as context:
            keys += [run.run_key for run in late_usage.evaluate_tick(context).run_requests or ()]
    # Dagster starts one run a key: that of the first ask has had its turn, and its retries, before the last one.
    assert (len(keys), keys[0] == keys[1], keys[0] == keys[2]) == (3, True, False)


def materialized(place: World, **tags: str) -> dg.ExecuteInProcessResult:
    resources: dict[str, Any] = {"ledger": place.ledger, "lake": place.lake, "catalog": place.catalog}
    return build_definitions(resources | {"clock": lambda: NOW}).resolve_job_def("late_billing").execute_in_process(
        asset_selection=[dg.AssetKey("metered_usage")],
        partition_key=f"{START:%Y-%m-%d-%H:%M}",
        tags=tags,
        raise_on_error=False,
    )  # fmt: skip


def shown(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (made,) = result.asset_materializations_for_node("metered_usage")
    return {name: value.value for name, value in made.metadata.items()}


def test_a_run_does_the_share_that_its_tag_says_and_tells_what_is_still_awaited(place: World) -> None:
    place.land([event(f"x-{tenant}", tenant_id=tenant) for tenant in TENANTS])
    first = shown(materialized(place, **{"clawbill/shard": "1/2"}))
    assert (first["shard"], first["awaited_shards"]) == ("1/2", [2])
    second = shown(materialized(place, **{"clawbill/shard": "2/2"}))
    assert second["awaited_shards"] == []
    assert first["events"] + second["events"] == len(TENANTS)
    assert "shard" not in shown(materialized(place))


def test_a_tag_that_names_no_shard_fails_the_run_and_says_why(place: World) -> None:
    result = materialized(place, **{"clawbill/shard": "5/4"})
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data: Any = failure.event_specific_data
    assert "clawbill/shard: 5/4 is no shard: write 2/4" in data.user_failure_data.description


@pytest.mark.filterwarnings("ignore")  # Dagster's own, of how it loads definitions
def test_two_schedulers_on_one_storage_ask_for_an_hour_once(
    tmp_path: Path, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's own scheduler, twice: what the second one finds asked for by the first one, it leaves alone."""
    monkeypatch.setenv("CLAWBILL_DATABASE_URL", ledger_url)
    monkeypatch.setattr(schedules, "catalog_at_load", lambda: catalogue(SHARDED))
    shutil.copyfile(ROOT / "dagster.yaml", tmp_path / "dagster.yaml")
    origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="clawbill_pipeline.definitions"), "clawbill")
    start = datetime(2026, 11, 22, 14, 5, tzinfo=UTC)
    with ExitStack() as opened:
        instance = opened.enter_context(dg.DagsterInstance.from_config(str(tmp_path)))
        workspace = opened.enter_context(WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)))
        daemons: list[dict[str, ScheduleIterationTimes]] = [{}, {}]  # all that a scheduler remembers
        for minutes in (0, 6, 7):
            now = start + timedelta(minutes=minutes)
            for remembered in daemons:
                with freeze_time(now):
                    assert not [said for said in launch_scheduled_runs(workspace, LOG, now, remembered) if said]
        runs = [run for run in instance.get_runs() if run.job_name == "hourly_billing"]
    assert sorted(run.tags["clawbill/shard"] for run in runs) == ["1/3", "2/3", "3/3"]
    assert {run.tags["dagster/partition"] for run in runs} == {"2026-11-22-13:00"}
