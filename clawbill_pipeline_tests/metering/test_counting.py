"""Counting on real Parquet, compared with plain Python: random events, repeats, contradictions, files and orders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbill_pipeline import repeats
from clawbill_pipeline.metering import counting
from clawbill_pipeline.metering.counting import TAKEN_SCHEMA, Count, Cut, count
from clawbill_pipeline.money import total
from clawbill_pipeline_tests.metering.world import HOUR, START, Event, Quantities, event, write_events

AGGREGATIONS = {
    "jobs": "count",
    "seats": "max",
    "quota": "latest",
    "disk": "time_weighted",
    "calls": "sum",
    "users": "unique_count",
}
CUT: Cut = ("kathmandu", START, START + timedelta(minutes=15))

quantities = st.decimals(Decimal(-10) ** 15, Decimal(10) ** 15, places=12)
events = st.builds(
    event,
    st.sampled_from([f"e{number}" for number in range(12)]),
    st.integers(0, 7_199).map(lambda seconds: seconds / 60),
    quantities.map(str),
    tenant_id=st.sampled_from(["acme", "globex", "kathmandu"]),
    service=st.sampled_from(["calls", "tokens", "jobs", "seats", "quota", "disk", "users"]),
    dimensions=st.sampled_from(["", "large"]),
    source=st.sampled_from(["app", "web"]),
    user=st.sampled_from(["", "ann", "bob"]),
)


def run(files: Sequence[Sequence[Event]], cuts: Iterable[Cut] = (CUT,), **more: object) -> Count:
    """Counts landings, each a file."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.parquet" for number in range(len(files))]
        for number, (path, of_file) in enumerate(zip(paths, files, strict=True)):
            lines = [e._replace(line=line) for line, e in enumerate(of_file, 1)]
            write_events(path, number + 1, lines)
        return count([p for p, f in zip(paths, files, strict=True) if f], cuts, aggregations=AGGREGATIONS, **more)  # type: ignore[arg-type]


def found(counted: Count) -> Quantities:
    rows = counted.quantities.to_pylist()
    keys = ("hour", "tenant_id", "service", "dimensions", "window_start")
    quantities = {tuple(row[key] for key in keys): row["quantity"] for row in rows}
    assert len(quantities) == len(rows)
    return quantities  # type: ignore[return-value]


def identity(e: Event) -> tuple[object, ...]:
    return e.tenant_id, e.source, e.event_id, e.hour


def firsts(files: Iterable[Sequence[Event]]) -> list[Event]:
    kept: dict[tuple[object, ...], Event] = {}
    for e in (e for of_file in files for e in of_file):
        kept.setdefault(identity(e), e)
    return list(kept.values())


def expected(kept: Iterable[Event]) -> Quantities:
    """The same in plain Python, by integers and fractions."""
    windows: dict[tuple[datetime, str, str, str, datetime], list[Event]] = {}
    for e in kept:
        cut = e.tenant_id == "kathmandu" and e.hour == START
        window = CUT[2] if cut and e.at >= CUT[2] else e.hour
        windows.setdefault((e.hour, e.tenant_id, e.service, e.dimensions, window), []).append(e)
    return {key: _aggregated(key, of_window) for key, of_window in windows.items()}


def _aggregated(key: tuple[datetime, str, str, str, datetime], of_window: list[Event]) -> Decimal:
    hour, tenant, service, _, window = key
    in_order = sorted(of_window, key=lambda e: (e.at, e.source, e.event_id))
    match service:
        case "jobs":
            return Decimal(len(of_window))
        case "seats":
            return max(e.quantity for e in of_window)
        case "users":
            return Decimal(len({e.user for e in of_window}))
        case "quota":
            return in_order[-1].quantity
        case "disk":
            end = CUT[2] if tenant == "kathmandu" and hour == window == START else hour + HOUR
            until = [*(e.at for e in in_order[1:]), end]
            area = sum(Fraction(e.quantity) * ((to - e.at) // timedelta(microseconds=1))
                       for e, to in zip(in_order, until, strict=True)) / 3_600_000_000  # fmt: skip
            scaled = area * 10**12
            whole = int(abs(scaled) + Fraction(1, 2)) * (1 if scaled >= 0 else -1)
            return Decimal(whole).scaleb(-12)
        case _:
            return total(e.quantity for e in of_window)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(events, max_size=12), min_size=1, max_size=4).filter(any))
def test_what_is_counted_is_what_plain_python_counts(files: list[list[Event]]) -> None:
    counted = run(files)
    kept = firsts(files)
    assert found(counted) == expected(kept)
    # Conservation: each event is counted, a duplicate or a conflict.
    everything = [e for of_file in files for e in of_file]
    contradicting = [e for e in everything for first in kept if identity(e) == identity(first)
                     and (e.service, e.dimensions, e.quantity, e.at, e.user)
                     != (first.service, first.dimensions, first.quantity, first.at, first.user)]  # fmt: skip
    assert sum(counted.quantities["events"].to_pylist()) == len(kept)
    assert sum(counted.repeats.values()) == len(everything) - len(kept)
    assert counted.conflicts.num_rows == len(contradicting)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_no_order_and_no_split_changes_a_quantity(data: st.DataObject) -> None:
    once = data.draw(st.lists(events, min_size=1, max_size=15, unique_by=identity))
    repeated = [*once, *data.draw(st.lists(st.sampled_from(once), max_size=10))]
    shuffled = data.draw(st.permutations(repeated))
    cut = data.draw(st.integers(0, len(shuffled)))
    assert found(run([shuffled[:cut], shuffled[cut:]])) == found(run([once])) == expected(once)


def test_the_first_of_an_id_stands_even_within_one_line() -> None:
    # A line that bears a batch: all of its events have the line's number.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write_events(path, 1, [event("e", quantity=9), event("e", quantity=1), event("e", quantity=9)])
        counted = count([path])
    assert [row["quantity"] for row in counted.quantities.to_pylist()] == [9]
    assert counted.repeats == {START: 2}
    assert [(row["quantity"], row["first"]["quantity"]) for row in counted.conflicts.to_pylist()] == [(1, 9)]


def test_an_id_is_one_source_and_tenant() -> None:
    files = [[event("e"), event("e", tenant_id="globex"), event("e", source="web")]]
    assert sum(found(run(files)).values()) == 3


def test_ids_that_belong_to_another_hour_are_conflicts_with_all_their_repeats() -> None:
    first = {"service": "calls", "dimensions": "", "quantity": Decimal(7), "event_time": START - HOUR}
    taken = pa.Table.from_pylist(
        [{"hour": START, "tenant_id": "acme", "source": "app", "event_id": "e", "first": first}], schema=TAKEN_SCHEMA
    )
    counted = run([[event("e"), event("e"), event("f")], [event("e", 61)]], taken=taken)
    assert {key[0]: quantity for key, quantity in found(counted).items()} == {START: 1, START + HOUR: 1}
    assert counted.repeats == {START: 2}
    assert [row["first"]["event_time"] for row in counted.conflicts.to_pylist()] == [START - HOUR] * 2


@pytest.mark.parametrize("newest", [True, False], ids=["with files that have it", "of older files alone"])
def test_files_of_before_there_were_values_to_count_are_read(newest: bool) -> None:
    users = [event("a", service="users", user="ann"), event("b", service="users", user="bob")]
    with TemporaryDirectory() as folder:
        old, new = Path(folder) / "old.parquet", Path(folder) / "new.parquet"
        write_events(old, 1, [event("c"), event("d", service="users"), event("e", service="users")])
        pq.write_table(pq.read_table(old).drop_columns(["unique_value", "cost"]), old)
        write_events(new, 2, users)
        counted = count([old, new] if newest else [old], aggregations=AGGREGATIONS)
    # All usage that landed without a value is one, unnamed.
    assert {key[2]: quantity for key, quantity in found(counted).items()} == {"calls": 1, "users": 3 if newest else 1}


def test_quantities_are_exact_to_the_last_of_38_digits() -> None:
    large, small = "9999999999999999999999999", "0.000000000001"
    assert found(run([[event("a", quantity=large), event("b", quantity=small), event("c", quantity="-0.1")]])) == {
        (START, "acme", "calls", "", START): Decimal("9999999999999999999999998.900000000001")
    }


@pytest.mark.parametrize("limit", [None, "256MB"])
def test_a_memory_limit_changes_nothing(limit: str | None) -> None:
    files = [[event(f"e{number}", number / 100, quantity="0.1") for number in range(5_000)]] * 2
    assert found(run(files, memory_limit=limit)) == {(START, "acme", "calls", "", START): Decimal(500)}


def test_repeats_are_found_in_parts_where_an_hour_has_too_many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [[event(f"e{number % 70}", number % 70 / 10) for number in range(part, 200, 2)] for part in (0, 1)]
    whole = run(files)
    monkeypatch.setattr(repeats, "HASHES_AT_ONCE", 9)
    monkeypatch.setattr(repeats, "_ROWS", 4)
    parts = run(files)
    assert (found(parts), parts.repeats) == (found(whole), whole.repeats) == (expected(firsts(files)), {START: 130})


def test_a_hash_that_different_ids_share_costs_nobody_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two hashes for all ids there are: nearly every event is suspected, none is lost.
    crude = [text.replace("AS hash(tenant_id, source, event_id)", "AS hash(event_id) % 2") for text in counting._LANDED]
    monkeypatch.setattr(counting, "_LANDED", tuple(crude))
    files = [[event(f"e{number % 70}", number % 70 / 10, number % 70) for number in range(100)]]
    assert found(run(files)) == {(START, "acme", "calls", "", START): sum(range(70))}
