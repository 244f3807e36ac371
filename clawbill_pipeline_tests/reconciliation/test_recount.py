"""Every aggregation is counted once more from the events, and agrees with metering until something is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.ledger.sharding import Shard
from clawbill_pipeline.metering import late_hours
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reconciliation.lineage import explain
from clawbill_pipeline_tests.metering.world import HOUR, START, Event, World, event, world
from clawbill_pipeline_tests.reconciliation.month import CATALOG, Month, hour, small

SERVICES = ("calls", "tokens", "jobs", "seats", "quota", "disk", "users", "members")
#: Kathmandu's November ends in the middle of an hour.
LAST = 29 * 24 + 18
NOW = datetime(2027, 1, 5, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    with world(tmp_path, ledger_url) as made:
        yield made


def found(place: World) -> list[tuple[str, str, str, Decimal]]:
    """``(tenant, service, cause, quantity)`` of what differs between the lake and what is metered."""
    reconcile(place.ledger, place.catalog, place.lake, period="2026-11", now=NOW, run_id="test")
    rows = place.rows(
        "SELECT * FROM breaks WHERE step = 'landed_metered' AND closed_at IS NULL ORDER BY tenant_id, service"
    )
    return [(row["tenant_id"], row["service"], row["cause"], row["quantity"]) for row in rows]


def usage(seed: int, count: int) -> list[Event]:
    chance = random.Random(seed)
    hours = [0, 1, 2, 50, LAST]
    return [
        event(
            f"{seed}-{number}",
            chance.choice(hours) * 60 + chance.randrange(3600) / 60,
            str(Decimal(chance.randrange(10**9)).scaleb(-6)),
            tenant_id=chance.choice(["acme", "kathmandu", "nobody"]),
            service=chance.choice(SERVICES),
            dimensions=chance.choice(["", "large"]),
            source=chance.choice(["app", "web"]),
            user=chance.choice(["ann", "bob", "cid"]),
        )
        for number in range(count)
    ]


def test_of_an_hour_that_lacks_a_shard_it_is_said_which_are_there(place: World) -> None:
    place.land([event("1", tenant_id="acme"), event("2", tenant_id="globex")])
    place.meter(shard=Shard(1, 2))  # globex is of the first half, acme of the second
    assert found(place) == [("acme", "calls", "not_metered", Decimal(-1))]
    (row,) = place.rows("SELECT detail FROM breaks WHERE step = 'landed_metered'")
    assert row["detail"] == "of the hour only shards 1/2 are metered"
    place.meter(shard=Shard(2, 2))
    assert found(place) == []


def test_a_month_of_every_aggregation_agrees(place: World) -> None:
    events = usage(1, 200)
    place.land(events[:150])
    place.meter(hours=3)
    place.meter(50)
    place.meter(LAST)
    place.land([*events[150:], *events[:40]])  # late ones, and repeats
    while due := late_hours(place.ledger, before=NOW):
        for at, _ in due:
            place.meter(int((at - START) / HOUR))
    assert found(place) == []


@pytest.mark.parametrize(
    ("service", "missing"),
    [("calls", 7), ("jobs", 1), ("seats", 5), ("quota", 5), ("users", 1), ("members", 1), ("disk", "0.5")],
)
def test_what_was_not_metered_is_missing_by_its_aggregation(place: World, service: str, missing: object) -> None:
    place.land([event("a", 0, 2, service=service, user="ann")])
    place.meter()
    assert found(place) == []
    place.land([event("b", 30, 7 if service != "disk" else 3, service=service, user="bob")])
    # Of levels the second half-hour holds 3 instead of 2.
    assert found(place) == [("acme", service, "not_metered", -Decimal(str(missing)))]
    place.meter()
    assert found(place) == []


def test_members_that_moved_to_an_earlier_hour_agree_once_both_are_metered(place: World) -> None:
    place.land([event("a", 130, service="members", user="ann")])
    place.meter(hours=3)
    place.land([event("b", 10, service="members", user="ann")])
    place.meter(0)
    assert [(service, quantity) for _, service, _, quantity in found(place)] == [("members", 1)]
    place.meter(2)
    assert found(place) == []


def test_an_invoice_line_is_explained_by_its_aggregation(ledger_url: str, tmp_path: Path) -> None:
    month = small(Month.at(ledger_url, tmp_path, CATALOG.replace("unit: token}", "unit: token, aggregation: max}")))
    month.clean()
    try:
        # A smaller quantity in the same hour changes no largest one; a larger one does.
        month.land([("small", "acme", "tokens", hour(1) + timedelta(minutes=9), 1)])
        lineage = explain(month.ledger, month.lake, month.catalog, "il_acme_tokens")
        assert (lineage.event_count, lineage.checks[0].passed) == (7, True)
        month.land([("large", "acme", "tokens", hour(1) + timedelta(minutes=9), 10**6)])
        lineage = explain(month.ledger, month.lake, month.catalog, "il_acme_tokens")
        assert not lineage.checks[0].passed
        assert lineage.checks[0].numbers["first"] == "2026-10-01 01:00: metered 1008, now 1000000"
    finally:
        month.ledger.dispose()
