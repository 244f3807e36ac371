"""What is counted once more from the lake's files: against plain Python, whatever is there twice or was set aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawbill_pipeline import repeats
from clawbill_pipeline.duck import duck
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.money import total
from clawbill_pipeline.reconciliation import books
from clawbill_pipeline_tests.metering.world import HOUR, START, Event, event, write_events

#: acme's period begins and globex' ends in the middle of an hour; of tenants that are unknown, the month counts.
PERIODS = {
    "acme": (START + timedelta(minutes=20), START + 3 * HOUR),
    "globex": (START - HOUR, START + timedelta(minutes=75)),
}
MONTH = (START, START + 2 * HOUR)
AGGREGATIONS = {"jobs": "count", "seats": "max", "users": "unique_count"}
CATALOG: Any = SimpleNamespace(
    services={
        name: SimpleNamespace(unique_over="hour", aggregation=AGGREGATIONS.get(name, "sum"))
        for name in ("calls", "tokens", *AGGREGATIONS)
    }
)
_CONFLICTS = pa.schema([("landing_id", pa.int64()), ("uri", pa.string()), ("place", pa.string()), ("raw", pa.string())])

events = st.builds(
    event,
    st.sampled_from([f"e{number}" for number in range(9)]),
    st.integers(-600, 10_799).map(lambda seconds: seconds / 60),
    st.decimals(Decimal(-10) ** 15, Decimal(10) ** 15, places=12).map(str),
    tenant_id=st.sampled_from(["acme", "globex", "nobody"]),
    service=st.sampled_from(list(CATALOG.services)),
    source=st.sampled_from(["app", "web"]),
    user=st.sampled_from(["ann", "bob"]),
)
#: An event that landed, and whether metering has set it aside.
landed = st.tuples(events, st.booleans())

Found = dict[tuple[datetime, str, str], tuple[int, Decimal]]


def counted(landings: Sequence[Sequence[tuple[Event, bool]]]) -> Found:
    aside = []
    with TemporaryDirectory() as folder, duck() as db:
        lake, files = Lake(Path(folder)), []
        for number, landing in enumerate(landings, 1):
            hours: dict[datetime, list[Event]] = {}
            for line, (each, out) in enumerate(landing, 1):
                hours.setdefault(each.hour, []).append(each._replace(line=line))
                if out:
                    place = f"line {line}, byte {line * 100}"
                    aside.append((number, f"file:///{number}", place, f"{each.event_id} {each.service} and so on"))
            for hour, of_hour in hours.items():
                file = lake.events_file(hour, number)
                write_events(lake.path(file), number, of_hour)
                files.append((hour, file, len(of_hour)))
        books.put(db, "tenants", books._TENANTS, [(name, *period) for name, period in PERIODS.items()])
        books.put(db, "month", books._MONTH, [(*MONTH, None, START - 24 * HOUR)])
        books.put(db, "conflicts", _CONFLICTS, aside)
        books.put_events(db, CATALOG, lake, files)
        rows = db.sql("SELECT hour, tenant_id, service, events, quantity FROM events").fetchall()
    found = {(hour, tenant, service): (count, quantity) for hour, tenant, service, count, quantity in rows}
    assert len(found) == len(rows), "one row an hour, tenant and service"
    return found


def reckoned(landings: Sequence[Sequence[tuple[Event, bool]]]) -> Found:
    firsts: dict[tuple[object, ...], Event] = {}
    for each, out in (one for landing in landings for one in landing):
        start, end = PERIODS.get(each.tenant_id, MONTH)
        if start <= each.at < end and not out:
            firsts.setdefault((each.tenant_id, each.source, each.event_id, each.hour), each)
    of_hours: dict[tuple[datetime, str, str], list[Event]] = {}
    for each in firsts.values():
        of_hours.setdefault((each.hour, each.tenant_id, each.service), []).append(each)
    ways: dict[str, Callable[[list[Event]], Decimal]] = {
        "jobs": lambda of_hour: Decimal(len(of_hour)),
        "seats": lambda of_hour: max(each.quantity for each in of_hour),
        "users": lambda of_hour: Decimal(len({each.user for each in of_hour})),
    }
    return {
        key: (len(of_hour), ways.get(key[2], lambda every: total(each.quantity for each in every))(of_hour))
        for key, of_hour in of_hours.items()
    }


A, B = event("e1", 30, 5), event("e1", 30, 7)


@given(st.lists(st.lists(landed, max_size=15), min_size=1, max_size=4))
@example([[(A, False)], [(A, False), (A, False)]])  # a line that landed three times
@example([[(A, False)], [(B, True)], [(B, False)]])  # the first stands, whatever is set aside
@example([[(A, True)], [(B, False)]])
@example([[(event("e1", 10), False), (event("e1", 30), False)]])  # before acme's period, and in it
@settings(max_examples=60, deadline=None)
def test_each_event_counts_once_where_it_belongs(landings: list[list[tuple[Event, bool]]]) -> None:
    assert counted(landings) == reckoned(landings)


def test_neither_parts_nor_shared_hashes_lose_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    landings = [
        [(event(f"e{number % 37}", 30 + number % 90, number), number % 11 == 0) for number in range(of, 120, 3)]
        for of in range(3)
    ]
    assert counted(landings) == reckoned(landings)
    monkeypatch.setattr(repeats, "HASHES_AT_ONCE", 9)
    monkeypatch.setattr(repeats, "_ROWS", 4)
    assert counted(landings) == reckoned(landings)
    # Two hashes for all ids there are: nearly every event is suspected.
    crude = books._LANDED.replace("hash(e.tenant_id, e.source, e.event_id)", "hash(e.event_id) % 2")
    assert crude != books._LANDED
    monkeypatch.setattr(books, "_LANDED", crude)
    assert counted(landings) == reckoned(landings)
