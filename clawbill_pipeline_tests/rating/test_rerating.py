"""Re-rating a period after a correction of prices: differences only, on record, and telescoping goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import plain, total
from clawbill_pipeline.rating.rerating import Rerated, rerate
from clawbill_pipeline_tests.rating.scripted import Asked, Step, scripted
from clawbill_pipeline_tests.rating.world import CATALOGUE, NOW, START, World


class Prices:
    """OpenClaw with a price a unit of each service, in cents, and a free first ten of storage."""

    def __init__(self) -> None:
        self.cents = {"calls": 1, "storage": 10}
        self.down: set[str] = set()

    def __call__(self, asked: Asked) -> Step:
        if asked.json["tenant_id"] in self.down:
            return 503, "down"
        quantity = Decimal(asked.json["quantity"])
        if asked.json["service"] == "storage":
            quantity = max(quantity - 10, Decimal(0))
        return 200, {"amount_cents": plain(quantity * self.cents[asked.json["service"]])}


@pytest.fixture
def place(ledger_url: str, tmp_path: Path) -> Iterator[tuple[World, Prices]]:
    prices = Prices()
    ledger = Ledger(ledger_url)
    with scripted(answer=prices) as server:
        yield World(ledger, server.url), prices
    ledger.dispose()


def again(world: World, **more: Any) -> Rerated:
    given = {"period": "2026-11", "why": "calls were mispriced", "by": "ann", "now": NOW, "run_id": "rerate", **more}
    return rerate(world.ledger, world.catalog, world.openclaw, **given)


def test_at_the_same_prices_nothing_is_written(place: tuple[World, Prices]) -> None:
    world, _ = place
    world.meter(0, 5)
    world.meter(1, 50, service="storage")
    world.rate(hours=2)
    assert again(world) == Rerated(2, 0, {}, (), ())
    assert world.rows("SELECT * FROM audit_trail") == []


def test_only_differences_are_booked_and_they_are_on_record(place: tuple[World, Prices]) -> None:
    world, prices = place
    for hour in range(3):
        world.meter(hour, 5)
        world.meter(hour, 20, service="storage")
        world.meter(hour, 7, tenant="globex", service="storage")  # within the free ten
    world.meter(30 * 24, 5)  # December's
    world.rate(hours=30 * 24 + 1)
    prices.cents = {"calls": 3, "storage": 8}
    done = again(world)
    assert (done.asked, done.changed, done.failed) == (5, 5, ())
    assert {hour: plain(amount) for hour, amount in world.amounts().items()} == {
        0: "0.15",
        1: "0.15",
        2: "0.15",
        720: "0.05",
    }
    assert total(world.amounts("storage").values()) == 4  # (60 - 10) x 0.08
    assert total(world.amounts("storage", "globex").values()) == Decimal("0.88")
    reasons = [row["reason"] for row in world.rows("SELECT * FROM rated_usage WHERE revision = 2")]
    assert reasons == ["rerated"] * 5
    assert done.differences == {"USD": Decimal("0.3") - 1 - Decimal("0.22")}
    assert {row["tenant_id"]: row["detail"]["differences"] for row in world.rows("SELECT * FROM audit_trail")} == {
        "acme": {"USD": "-0.7"}, "globex": {"USD": "-0.22"},
    }  # fmt: skip
    assert again(world).changed == 0
    # Rating goes on from the new total.
    assert world.rate(hours=720).due == 0
    world.meter(0, 30, service="storage")
    world.rate()
    assert total(world.amounts("storage").values()) == Decimal("4.8")


def test_only_the_named_tenants_and_services(place: tuple[World, Prices]) -> None:
    world, prices = place
    for tenant in ("acme", "globex"):
        world.meter(0, 1, tenant=tenant)
        world.meter(0, 20, tenant=tenant, service="storage")
    world.rate()
    prices.cents = {"calls": 2, "storage": 20}
    assert again(world, tenants=["globex"], services=["calls"]).differences == {"USD": Decimal("0.01")}
    assert again(world, tenants=[]).asked == 0


def test_what_cannot_be_asked_keeps_its_amount_and_stops_nobody(place: tuple[World, Prices]) -> None:
    world, prices = place
    world.meter(0, 1)
    world.meter(0, 1, tenant="globex")
    world.rate()
    prices.cents["calls"], prices.down = 2, {"acme"}
    done = again(world)
    assert (done.asked, done.changed, len(done.failed)) == (2, 1, 1)
    assert "acme calls 2026-11-01T00:00:00+00:00: OpenClaw answered 503" in done.failed[0]
    prices.down.clear()
    assert again(world).changed == 1
    assert world.failures() == []


def test_a_month_s_weeks_are_rated_anew_each_by_itself(place: tuple[World, Prices]) -> None:
    world, prices = place
    weekly = parse(CATALOGUE.replace("acme: {rate_card: card}", "acme: {rate_card: card, interval: week}"))
    world = World(world.ledger, world.url, weekly)
    for day in range(16):
        world.meter(24 * day, 20, service="storage")
    world.rate(hours=16 * 24)
    prices.cents["storage"] = 20
    # Weeks start on Mondays: the 2nd and the 9th; the 1st is of October's last, the 16th of one that still runs.
    done = again(world, now=START + timedelta(days=15))
    assert done.differences == {"USD": Decimal("0.1") * (2 * (7 * 20 - 10) + 20 - 10)}
    assert [row["subject"] for row in world.rows("SELECT * FROM audit_trail ORDER BY id")] == [
        "2026-11-02", "2026-11-09", "2026-11-16",
    ]  # fmt: skip
    assert again(world, period="2026-10-26").differences == {"USD": Decimal("1")}
