"""The close of a period: zeros where nothing was used in its last hour, for whom and when, and metering beside them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import meter_unused
from clawbill_pipeline_tests.metering.world import HOUR, START, World, event

CATALOGUE = """
start: 2026-10-15T00:00:00Z
services:
  calls: {unit: call, basis: period_to_date}
  tokens: {unit: token, basis: period_to_date, dimensions: [model]}
  jobs: {unit: job}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {calls: &one {model: per_unit, unit_amount: 1}, tokens: *one, jobs: *one}
tenants:
  acme: {rate_card: card}
  kathmandu: {rate_card: card, time_zone: Asia/Kathmandu}
  leaving: {rate_card: card, ends: 2026-11-03}
  coming: {rate_card: card, starts: 2026-12-05}
"""
END = datetime(2026, 12, 1, tzinfo=UTC)
#: Kathmandu is 5:45 ahead: its November ends within an hour of UTC.
KATHMANDU = datetime(2026, 11, 30, 18, 15, tzinfo=UTC)


@pytest.fixture
def world(ledger_url: str, tmp_path: Path) -> Iterator[World]:
    world = World(Lake(tmp_path / "lake"), Ledger(ledger_url), parse(CATALOGUE))
    world.ledger.ensure_partitions([START, END])
    with world.ledger.transaction() as c:
        for number, tenant in enumerate(world.catalog.tenants):
            c.execute(
                text(
                    "INSERT INTO stripe_customers (tenant_id, customer_id, subscription_id, currency, livemode,"
                    " mapped_at) VALUES (:t, :c, :s, 'USD', false, now())"
                ),
                {"t": tenant, "c": f"cus_{number}", "s": f"sub_{number}"},
            )
            for service in ("calls", "tokens"):
                c.execute(
                    text("INSERT INTO stripe_items VALUES (:t, :s, :i, 'p', 'm', 'm', 'hour_meter', now())"),
                    {"t": tenant, "s": service, "i": f"si_{number}_{service}"},
                )
    yield world
    world.ledger.dispose()


def zeros(world: World, start: datetime, end: datetime, now: datetime = END) -> list[datetime]:
    return meter_unused(world.ledger, world.catalog, start=start, end=end, now=now, run_id="close")


def closed(world: World) -> list[tuple[str, str, str, datetime]]:
    rows = world.rows("SELECT * FROM metered_usage WHERE run_id = 'close' ORDER BY tenant_id, service, dimensions")
    assert all((row["quantity"], row["events"], row["revision"]) == (0, 0, 1) for row in rows)
    return [(row["tenant_id"], row["service"], row["dimensions"], row["window_start"]) for row in rows]


def test_every_period_that_closes_gets_its_zeros_and_no_other(world: World) -> None:
    world.land([
        event("1", 5), event("2", 5, service="tokens", dimensions="large"), event("3", 5, service="jobs"),
        event("4", 5, tenant_id="leaving", service="tokens", dimensions="small"),
    ])  # fmt: skip
    world.meter()
    last = END - HOUR
    assert zeros(world, START, END, now=last) == [
        datetime(2026, 11, 2, 23, tzinfo=UTC),
        KATHMANDU - timedelta(minutes=15),
    ]
    assert zeros(world, START, END) == [last]
    assert zeros(world, START, END) == []
    assert closed(world) == [
        ("acme", "calls", "", last),
        ("acme", "tokens", "large", last),
        ("kathmandu", "calls", "", KATHMANDU - timedelta(minutes=15)),
        ("leaving", "calls", "", datetime(2026, 11, 2, 23, tzinfo=UTC)),
        ("leaving", "tokens", "small", datetime(2026, 11, 2, 23, tzinfo=UTC)),
    ]


def test_only_the_run_of_the_last_hour_closes(world: World) -> None:
    assert zeros(world, START, END - HOUR) == [
        datetime(2026, 11, 2, 23, tzinfo=UTC), KATHMANDU - timedelta(minutes=15),
    ]  # fmt: skip
    assert zeros(world, END - HOUR, END) == [END - HOUR]


def test_a_subscription_that_is_over_owes_nothing_for_the_next_period(world: World) -> None:
    next_end = datetime(2027, 1, 1, tzinfo=UTC)
    zeros(world, END, next_end, now=next_end)
    assert sorted({tenant for tenant, *_ in closed(world)}) == ["acme", "coming", "kathmandu"]


def test_a_period_before_the_catalogue_s_start_owes_nothing_for_no_usage(world: World) -> None:
    october = datetime(2026, 10, 1, tzinfo=UTC)
    assert zeros(world, october, START, now=END) == []


def test_metering_the_last_hour_again_leaves_the_zero_and_late_usage_revises_it(world: World) -> None:
    minutes = (END - START) / timedelta(minutes=1)
    world.land([event("1", 5)])
    world.meter()
    world.land([event("2", minutes - 30, service="jobs")])
    last = int(minutes / 60) - 1
    world.meter(last)
    zeros(world, END - HOUR, END)
    assert world.meter(last).new_revisions == 0
    world.land([event("3", minutes - 20, quantity=4)])
    assert world.meter(last).late_revisions == 1
    rows = world.rows("SELECT * FROM metered_usage WHERE service = 'calls' ORDER BY hour, revision")
    assert [(row["quantity"], row["reason"]) for row in rows] == [
        (Decimal(1), "first"), (Decimal(0), "first"), (Decimal(4), "late"),
    ]  # fmt: skip
