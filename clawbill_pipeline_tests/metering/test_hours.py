"""Hours metered into a real ledger: revisions and their reasons, late events, cut hours, conflicts, two at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawbill_pipeline.lake import Lake
from clawbill_pipeline.metering import counting, late_hours
from clawbill_pipeline.metering import hours as hours_module
from clawbill_pipeline.money import plain, total
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.metering.world import HOUR, NOW, START, Event, World, catalogue, event, world


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    with world(tmp_path, ledger_url) as made:
        yield made


def late(place: World) -> list[tuple[Any, int]]:
    return late_hours(place.ledger, before=NOW)


def test_duplicates_are_counted_once_and_books_balance(place: World) -> None:
    place.land([event("a", 1, 5), event("b", 2, "0.5"), event("a", 1, 5)])
    place.land([event("b", 2, "0.5"), event("c", 61, 7)])
    metered = place.meter(hours=2)
    assert (metered.events, metered.duplicates, metered.conflicts, metered.rows) == (5, 2, 0, 2)
    assert metered.quantities == {"calls": Decimal("12.5")}
    assert list(place.held().values()) == [Decimal("5.5"), Decimal(7)]


def test_metering_again_changes_no_row(place: World) -> None:
    place.land([event("a", 1), event("b", 59.9, 2, tenant_id="globex"), event("a", 1, 3)])
    first = place.meter(hours=3)
    tables = ("metered_usage", "metered_hours", "quarantine")
    before = [place.rows(f"SELECT * FROM {table}") for table in tables]
    again = place.meter(hours=3, run_id="another run")
    assert [place.rows(f"SELECT * FROM {table}") for table in tables] == before
    assert (first.new_revisions, again.new_revisions, again.quantities) == (2, 0, first.quantities)


def test_late_events_make_a_new_revision_and_leave_the_old_one(place: World) -> None:
    place.land([event("a", 1, 5), event("b", 1, 1, tenant_id="globex"), event("c", 61)])
    place.meter(hours=2)
    assert late(place) == []
    place.land([event("d", 30, 2)])
    assert late(place) == [(START, 2)]
    metered = place.meter(hours=2)
    assert (metered.new_revisions, metered.late_revisions) == (1, 1)
    assert place.revisions(tenant_id="acme") == [(1, "first", "5"), (2, "late", "7"), (1, "first", "1")]
    assert place.revisions(tenant_id="globex") == [(1, "first", "1")]
    assert late(place) == []


def test_an_hour_that_was_empty_gets_late_events(place: World) -> None:
    place.meter(hours=1)
    place.land([event("a", 1, 5)])
    assert late(place) == [(START, 1)]
    place.meter(hours=1)
    assert place.revisions() == [(1, "late", "5")]


def test_hours_that_no_schedule_ran_for_are_found_once_they_are_overdue(place: World) -> None:
    place.land([event("a", 1, 5), event("b", 61, 1)])
    assert late(place) == []
    assert late_hours(place.ledger, before=NOW, missed_before=START + HOUR) == [(START, 1)]
    place.meter(hours=1)
    assert late_hours(place.ledger, before=NOW, missed_before=NOW) == [(START + HOUR, 1)]


def test_late_duplicates_change_nothing_but_are_counted(place: World) -> None:
    place.land([event("a", 1, 5)])
    place.meter()
    place.land([event("a", 1, 5)])
    assert place.meter().new_revisions == 0
    assert late(place) == []
    assert [row["duplicates"] for row in place.rows("SELECT * FROM metered_hours ORDER BY landings")] == [0, 1]


def test_peers_09_an_event_three_months_late_is_metered(place: World) -> None:
    # killbill#876
    place.land([event("a", 1, 5)])
    place.meter()
    place.land([event("b", 90 * 24 * 60, 1)])
    place.meter(90 * 24)
    place.land([event("c", 2, "0.25")])
    assert late(place) == [(START, 2)]
    place.meter()
    assert place.revisions()[:2] == [(1, "first", "5"), (2, "late", "5.25")]


def test_events_that_take_back_can_make_a_total_negative_or_zero(place: World) -> None:
    place.land([event("a", 1, 5), event("b", 2, -5), event("c", 61, -3)])
    place.meter(hours=2)
    assert place.revisions() == [(1, "first", "0"), (1, "first", "-3")]


def test_peers_05_another_quantity_or_service_under_the_same_id(place: World) -> None:
    # lago-api#5327: the first one stands, and the second is not lost.
    place.land([event("a", 1, 5, line=1), event("a", 1, 6, line=2), event("a", 1, 5, service="tokens", line=3)])
    metered = place.meter()
    assert (metered.conflicts, metered.duplicates) == (2, 0)
    assert place.held() == {(START, "acme", "calls", "", START): Decimal(5)}
    aside = place.rows("SELECT * FROM quarantine ORDER BY place")
    assert [(row["reason"], row["field"], row["tenant_id"]) for row in aside] == [("conflict", "event_id", "acme")] * 2
    assert "another quantity" in aside[0]["detail"]
    assert "another service" in aside[1]["detail"]
    assert aside[0]["place"] == "line 2, byte 200, calls of a"


def test_every_conflict_of_a_line_is_set_aside(place: World) -> None:
    # One line of a transcript bears several events.
    both = [event("m-in", 1, 40, line=7), event("m-out", 1, 2, line=7)]
    place.land(both)
    place.land([e._replace(quantity=Decimal(1)) for e in both])
    assert place.meter().conflicts == len(place.rows("SELECT * FROM quarantine")) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["metered in order", "metered in reverse"])
def test_peers_05_the_same_id_at_another_time_is_not_counted_twice(place: World, order: tuple[int, int]) -> None:
    # lago-api#4437: whichever hour is metered first, the event that landed first stands.
    place.land([event("a", 70, 5), event("b", 70, 1)])
    place.land([event("a", 10, 5), event("c", 10, 2)])
    for hour in order:
        place.meter(hour)
    assert {key[0]: quantity for key, quantity in place.held().items()} == {START: 2, START + HOUR: 6}
    (aside,) = place.rows("SELECT * FROM quarantine")
    assert "used before with another event_time" in aside["detail"]
    (row,) = place.rows("SELECT * FROM metered_hours WHERE conflicts > 0")
    assert (row["hour"], row["events"], row["duplicates"]) == (START, 2, 0)


def test_an_id_that_came_back_after_its_hour_was_metered(place: World) -> None:
    place.land([event("a", 10, 5)])
    place.meter(hours=2)
    place.land([event("a", 70, 5), event("a", 10, 5)])
    assert late(place) == [(START, 2), (START + HOUR, 1)]
    metered = place.meter(hours=2)
    assert (metered.conflicts, metered.duplicates, metered.new_revisions) == (1, 1, 0)


def test_conflicts_are_looked_for_within_the_window_only(place: World) -> None:
    place.catalog = catalogue("calendar: {conflict_window: 2h}")
    place.land([event("a", 0)])
    place.land([event("a", 2 * 60), event("a", 5 * 60)])
    assert place.meter(hours=6).conflicts == 1
    place.catalog = catalogue("calendar: {conflict_window: 0h}")
    assert place.meter(2).conflicts == 0


def test_ids_that_sort_by_time_are_never_compared(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place.land([event(f"{number:06}", number) for number in range(0, 600, 10)])
    place.meter(hours=10)
    monkeypatch.setattr("clawbill_pipeline.metering.neighbours._SUSPECTS", "SELECT error('hashes were read')")
    place.land([event("000301", 301)])
    assert place.meter(5).conflicts == 0


def test_a_lost_index_is_made_again(place: World) -> None:
    place.land([event("a", 10)])
    place.land([event("a", 70)])
    assert place.meter(hours=2).conflicts == 1
    indexes = list(place.lake.root.glob("usage_ids/**/*.parquet"))
    assert len(indexes) == 2
    for index in indexes:
        index.unlink()
    assert place.meter(hours=2).conflicts == 1


def test_an_index_that_was_replaced_goes_once_nobody_can_be_reading_it(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def indexes() -> list[str]:
        return sorted(path.name for path in place.lake.path("x").parent.glob("usage_ids/*/hour=2026-11-01T00/*"))

    place.land([event("a", 10), event("b", 70)])
    place.meter(hours=2)
    place.land([event("c", 20)])
    place.meter(hours=2)
    assert indexes() == ["1-000000000001.parquet", "2-000000000002.parquet"]
    monkeypatch.setattr("clawbill_pipeline.metering.neighbours._IN_USE", timedelta(seconds=-5))
    place.land([event("d", 30)])
    place.meter(hours=2)
    assert indexes() == ["3-000000000003.parquet"]


def test_an_hour_that_a_period_boundary_cuts_is_metered_in_two_windows(place: World) -> None:
    # Kathmandu's October ends at 18:15 UTC.
    end = (timedelta(days=30, hours=-6) + timedelta(minutes=15)) / timedelta(minutes=1)
    hour = int(end // 60)
    times = [end - 1, end - 1 / 60_000_000, end, end + 44]
    place.land([event(f"k{at}", at, tenant_id="kathmandu") for at in times] + [event("a", end, 9)])
    metered = place.meter(hour)
    boundary = place.catalog.tenants["kathmandu"].period("2026-12").start
    at = START + hour * HOUR
    assert place.held() == {
        (at, "kathmandu", "calls", "", at): 2,
        (at, "kathmandu", "calls", "", boundary): 2,
        (at, "acme", "calls", "", at): 9,
    }
    assert metered.quantities == {"calls": 13}
    place.land([event("late", end - 5, tenant_id="kathmandu")])
    place.meter(hour)
    assert place.revisions(tenant_id="kathmandu") == [(1, "first", "2"), (2, "late", "3"), (1, "first", "2")]


def test_a_quantity_that_is_gone_becomes_zero(place: World) -> None:
    # The account moves to another zone: its hour is cut elsewhere now.
    place.land([event("a", 20, tenant_id="kathmandu")])
    place.meter()
    moved = place.catalog.tenants["kathmandu"].model_copy(update={"time_zone": "UTC", "anchor_day": 1})
    place.catalog = place.catalog.model_copy(update={"tenants": {**place.catalog.tenants, "kathmandu": moved}})
    place.meter()
    assert total(place.held().values()) == 1


def test_two_workers_on_the_same_hour(place: World) -> None:
    place.land([event(f"e{number}", number / 10) for number in range(100)])
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda number: place.meter(hours=2, run_id=f"run {number}"), range(3)))
    assert sorted(metered.new_revisions for metered in done) == [0, 0, 1]
    assert place.revisions() == [(1, "first", "100")]


def test_many_hours_are_metered_in_batches_of_bounded_size(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place.land([event(f"e{number}", number, "0.1") for number in range(300)])
    monkeypatch.setattr(hours_module, "BATCH_EVENTS", 100)
    sizes = [
        len(batch) for batch in hours_module._batches(place.ledger, [START + number * HOUR for number in range(7)])
    ]
    assert sizes == [1, 1, 1, 1, 3]
    metered = place.meter(hours=7)
    assert (metered.hours, metered.events, metered.quantities) == (7, 300, {"calls": Decimal(30)})


def test_no_hours_are_no_work(place: World) -> None:
    assert place.meter(hours=0).hours == 0


def test_files_that_no_landing_names_are_not_read(place: World) -> None:
    place.land([event("a", 1)])
    stray = place.lake.path(place.lake.events_file(START, 999))
    stray.write_bytes(b"left by a crash")
    assert place.meter().quantities == {"calls": 1}


@pytest.mark.parametrize(
    ("service", "first", "late_one", "unchanged"),
    [
        # Two events land in time, one late; then one more that changes nothing of the hour.
        ("calls", "5.5", "12.5", "0"),
        ("jobs", "2", "3", None),
        ("seats", "5", "7", "6"),
        ("quota", "0.5", "7", "9"),
        ("users", "2", "3", "1"),
        ("members", "2", "3", "1"),
        ("disk", "2.75", "4.375", None),
    ],
)
def test_late_usage_revises_every_aggregation(
    place: World, service: str, first: str, late_one: str, unchanged: str | None
) -> None:
    # A level of 5 for half an hour and of 0.5 for the rest, of which the late one makes the last quarter 7.
    place.land([event("a", 0, 5, service=service, user="ann"), event("b", 30, "0.5", service=service, user="bob")])
    place.meter()
    place.land([event("c", 45, 7, service=service, user="cid")])
    assert late(place) == [(START, 2)]
    place.meter()
    expected = [(1, "first", first), (2, "late", late_one)]
    assert place.revisions() == expected
    if unchanged is not None:
        place.land([event("d", 10, unchanged, service=service, user="ann")])
        place.meter()
        assert place.revisions() == expected
    assert place.meter().new_revisions == 0
    # The newest revision is what one full computation comes to.
    assert [plain(quantity) for quantity in place.held().values()] == [late_one]


# --- values that count once ------------------------------------------------------------------------------------------


def test_unique_values_are_counted_in_each_hour(place: World) -> None:
    users = [event(f"e{number}", 20 * number, service="users", user=user) for number, user in enumerate("abacaa")]
    place.land(users)
    place.land([users[0], event("other", 1, service="users", user="a", tenant_id="globex")])
    place.meter(hours=2)
    assert place.revisions(tenant_id="acme") == [(1, "first", "2"), (1, "first", "2")]
    assert place.revisions(tenant_id="globex") == [(1, "first", "1")]
    place.land([event("late", 5, service="users", user="c"), event("again", 6, service="users", user="b")])
    place.meter(hours=2)
    assert place.revisions(tenant_id="acme") == [(1, "first", "2"), (2, "late", "3"), (1, "first", "2")]


def test_an_id_used_again_for_another_user_is_a_conflict(place: World) -> None:
    place.land([event("a", 1, service="users", user="ann")])
    place.land([event("a", 1, service="users", user="bob")])
    place.land([event("a", 61, service="users", user="ann")])
    assert place.meter(hours=2).conflicts == 2
    told = " ".join(row["detail"] for row in place.rows("SELECT detail FROM quarantine"))
    assert "another unique_value" in told
    assert "another event_time" in told
    assert sum(place.held().values()) == 1


def test_members_count_once_a_period_in_the_hour_they_were_there_first(place: World) -> None:
    """Monthly active users: hours add up to the period's number, and the next period begins anew."""
    december = 30 * 24 * 60
    place.land(
        event(f"{user}{at}", at, service="members", user=user)
        for user, at in [("ann", 0), ("bob", 10), ("ann", 70), ("cid", 80), ("bob", 500), ("ann", december)]
    )
    place.meter(hours=9)
    place.meter(30 * 24)
    assert [plain(q) for q in place.held().values()] == ["2", "1", "1"]
    rows = place.rows("SELECT quantity, events FROM metered_usage ORDER BY hour")
    assert [(plain(row["quantity"]), row["events"]) for row in rows] == [("2", 2), ("1", 2), ("0", 1), ("1", 1)]
    assert late(place) == []


def test_a_late_event_moves_a_member_to_an_earlier_hour(place: World) -> None:
    place.land([event("a", 130, service="members", user="ann"), event("b", 130, service="members", user="bob")])
    place.meter(hours=3)
    place.land([event("c", 10, service="members", user="ann")])
    assert late(place) == [(START, 1)]
    place.meter(0)
    # The later hour has to be metered again, although nothing landed for it.
    assert late(place) == [(START + 2 * HOUR, 2)]
    metered = place.meter(2)
    assert (metered.new_revisions, late(place)) == (1, [])
    assert place.revisions() == [(1, "late", "1"), (1, "first", "2"), (2, "corrected", "1")]
    assert place.meter(hours=3).new_revisions == 0


def test_members_of_cut_hours_belong_to_the_period_of_their_window(place: World) -> None:
    # Kathmandu's November ends at 18:15 UTC.
    hour = 29 * 24 + 18
    before, after = hour * 60 + 1, hour * 60 + 16
    place.land(
        event(f"{user}{at}", at, service="members", user=user, tenant_id="kathmandu")
        for user, at in [("ann", 0), ("ann", before), ("bob", before), ("ann", after), ("ann", after + 60)]
    )
    place.meter(0)
    place.meter(hour, hours=2)
    boundary = place.catalog.tenants["kathmandu"].period("2026-12").start
    at = START + hour * HOUR
    assert {key[4]: plain(quantity) for key, quantity in place.held().items()} == {START: "1", at: "1", boundary: "1"}


def test_two_workers_who_learn_of_one_member_at_once(place: World) -> None:
    place.land(event(f"e{hour}", hour * 60 + 1, service="members", user="ann") for hour in range(6))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda hour: place.meter(hour), [5, 3, 1, 4, 2, 0]))
    while due := late(place):
        for hour, _ in due:
            place.meter(int((hour - START) / HOUR))
    assert {key[0]: plain(quantity) for key, quantity in place.held().items()} == {START: "1"}


# --- looking for late usage ------------------------------------------------------------------------------------------


def test_looking_for_late_usage_does_not_grow_with_history(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_module, "MARK_STEP", 0)
    later = NOW + timedelta(days=2)

    def mark() -> int | None:
        (row,) = place.rows("SELECT max(through) AS through FROM landings_mark")
        return row["through"]

    for number in range(4):
        place.land([event(f"e{number}", 60 * number)])
    place.meter(hours=3)
    assert late_hours(place.ledger, before=NOW) == []
    assert mark() is None, "landings of the last day stay in view"
    assert late_hours(place.ledger, before=later) == []
    assert mark() == 3, "the hour that nobody metered keeps its landing in view"
    place.land([event("late", 1)])
    assert late_hours(place.ledger, before=later, missed_before=later) == [(START, 2), (START + 3 * HOUR, 1)]
    place.meter(hours=4)
    assert late_hours(place.ledger, before=later) == []
    assert mark() == 5
    place.land([event("later", 2)])
    assert late_hours(place.ledger, before=later) == [(START, 3)]


quantities = st.decimals(-1_000, 1_000, places=12)
many = st.lists(
    st.builds(
        event,
        st.integers(0, 10**9).map(str),
        st.integers(0, 3 * 3_600 - 1).map(lambda seconds: seconds / 60),
        quantities.map(str),
        tenant_id=st.sampled_from(["acme", "globex", "kathmandu", "nobody"]),
        service=st.sampled_from(["calls", "tokens", "jobs", "seats", "quota", "disk", "users", "members"]),
        user=st.sampled_from(["ann", "bob"]),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda e: e.event_id,
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many, st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_arrival_ends_in_the_same_quantities(
    postgres_server: AnyServer,
    ledger_template: str,
    tmp_path_factory: pytest.TempPathFactory,
    events: list[Event],
    chance: random.Random,
    arrivals: int,
) -> None:
    """Order-free: landed and metered bit by bit, late and twice, or all at once."""
    repeated = [*events, *chance.sample(events, len(events) // 3)]
    chance.shuffle(repeated)
    parts = [repeated[number::arrivals] for number in range(arrivals)]
    held = []
    for landings in ([events], parts):
        with (
            fresh_database(postgres_server, template=ledger_template) as name,
            world(tmp_path_factory.mktemp("world"), postgres_server.url(name)) as place,
        ):
            for landing in landings:
                place.land(landing)
                place.meter(chance.randrange(3))
                place.meter(hours=3)
            while due := late(place):
                for hour, _ in due:
                    place.meter(int((hour - START) / HOUR))
            held.append(place.held())
            assert place.meter(hours=3).new_revisions == 0
    assert held[0] == held[1]
    assert total(q for key, q in held[0].items() if key[2] in ("calls", "tokens")) == total(
        e.quantity for e in events if e.service in ("calls", "tokens")
    )


def test_the_memory_limit_of_the_lake_is_that_of_the_engine(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[str] = []

    def noted(db: Any, *given: Any, **more: Any) -> Any:
        limits.append(db.sql("SELECT current_setting('memory_limit')").fetchall()[0][0])
        return _prepare(db, *given, **more)

    _prepare = counting.prepare
    monkeypatch.setattr(counting, "prepare", noted)
    place.land([event("a", 1)])
    place.lake = Lake(place.lake.root, "100MB")
    assert place.meter().quantities == {"calls": 1}
    place.meter(memory_limit="50MB")
    assert limits == ["95.3 MiB", "47.6 MiB"]
