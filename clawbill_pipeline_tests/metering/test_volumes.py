"""Drops and jumps: what is unusual is named, what is usual, small or new is not, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from clawbill_pipeline.catalog.volumes import Volumes
from clawbill_pipeline.metering.volumes import unusual, watch_volumes
from clawbill_pipeline_tests.metering.world import HOUR, NOW, START, World, event, world

WEEK = timedelta(days=7)
WEEKS = [START - number * WEEK for number in range(1, 5)]
RECENT = [START - number * HOUR for number in range(1, 25)]


def row(hour, quantity, events=1000, tenant="acme", service="calls"):
    return SimpleNamespace(tenant_id=tenant, service=service, hour=hour, quantity=Decimal(quantity), events=events)


def kinds(*rows, weeks=WEEKS, recent=RECENT, **limits):
    found = unusual(START, rows, weeks, recent, Volumes(**limits))
    return [(each.tenant_id, each.kind, each.usual) for each in found]


def test_a_jump_and_a_drop_against_the_same_hour_of_the_week():
    past = [row(at, quantity) for at, quantity in zip(WEEKS, (90, 100, 110, 5000), strict=True)]
    assert kinds(*past, row(START, 105 * 5)) == []
    assert kinds(*past, row(START, 105 * 5 + 1)) == [("acme", "jump", 105)]
    assert kinds(*past, row(START, 21)) == []
    assert kinds(*past, row(START, 20)) == [("acme", "drop", 105)]
    assert kinds(*past) == [("acme", "drop", 105)], "who used nothing at all has no row"
    assert kinds(*past, row(START, 20), factor=10) == []


def test_weekends_are_compared_with_weekends():
    quiet = [row(at, 10) for at in WEEKS]
    busy = [row(at, 1000) for at in RECENT]
    assert kinds(*quiet, *busy, row(START, 12)) == []


def test_who_has_no_weeks_behind_is_compared_with_the_day_before():
    recent = [row(at, 1000) for at in RECENT]
    assert kinds(*recent, row(START, 1100), weeks=[]) == []
    assert kinds(*recent, row(START, 100), weeks=[]) == [("acme", "drop", 1000)]
    assert kinds(row(START, 10**9), weeks=[], recent=[]) == [], "the first hour of all is as it is"
    assert kinds(row(START, 10**9)) == [], "and a new tenant is no jump"


def test_few_events_are_no_news():
    past = [row(at, 100, events=99) for at in WEEKS]
    assert kinds(*past, row(START, 1, events=1)) == []
    assert kinds(*past, row(START, 1, events=1), minimum_events=99) == [("acme", "drop", 100)]


def test_tenants_and_services_stand_for_themselves():
    past = [row(at, 100, tenant=tenant) for at in WEEKS for tenant in ("acme", "globex")]
    assert kinds(*past, row(START, 1000), row(START, 1, tenant="globex")) == [
        ("acme", "jump", 100),
        ("globex", "drop", 100),
    ], "opposite signs do not cancel out"


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    with world(tmp_path, ledger_url) as made:
        yield made


def test_a_run_names_them_and_notes_those_of_the_newest_hour(place: World):
    limits = Volumes(minimum_events=3)
    place.catalog = place.catalog.model_copy(update={"volumes": limits})
    week = 7 * 24
    for number in range(3):
        place.land(event(f"{number}-{n}", 60 * week * number + n, tenant_id="acme") for n in range(4))
        place.land(event(f"{number}-{n}", 60 * week * number + n, tenant_id="globex") for n in range(4))
        place.meter(week * number)
    place.land(event(f"3-{n}", 60 * week * 3 + n, quantity=100) for n in range(4))
    place.meter(week * 3)
    start = START + 3 * WEEK
    before = place.rows("SELECT * FROM metered_usage")
    watched = watch_volumes(place.ledger, place.catalog, start=start, end=start + HOUR, now=NOW)
    assert (watched.watched_hours, watched.drops, watched.jumps) == (1, 1, 1)
    (check,) = watched.checks
    assert (check.passed, check.serious) == (False, False)
    assert check.numbers["largest"] == (
        "jump: acme calls 2026-11-22T00Z: 400, usually 4; drop: globex calls 2026-11-22T00Z: 0, usually 4"
    )
    assert place.rows("SELECT * FROM metered_usage") == before
    told = place.rows("SELECT * FROM unusual_volumes")
    watch_volumes(place.ledger, place.catalog, start=start, end=start + HOUR, now=NOW + HOUR)
    assert place.rows("SELECT * FROM unusual_volumes") == told
    assert [tuple(row.values()) for row in told] == [
        (start, "acme", "calls", 400, 4, NOW),
        (start, "globex", "calls", 0, 4, NOW),
    ]
    # Of the past nobody wants to be told.
    place.meter(week * 3 + 5)
    place.land([event("again", 60 * week * 3 + 60)])
    place.meter(week * 3 + 1)
    watch_volumes(place.ledger, place.catalog, start=start + HOUR, end=start + 2 * HOUR, now=NOW)
    assert place.rows("SELECT * FROM unusual_volumes") == told
    # An hour that was not metered yet says nothing, and of a long backfill the newest hours are looked at.
    watched = watch_volumes(place.ledger, place.catalog, start=START, end=START + 100 * HOUR, now=NOW)
    assert (watched.watched_hours, watched.drops + watched.jumps) == (24, 0)
    with place.ledger.transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM metered_usage WHERE metered_at > :now"), {"now": NOW}) == 0
