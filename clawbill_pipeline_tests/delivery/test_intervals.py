"""Usage of periods of every length ends on the invoice of its period, at the stand-in as at Stripe."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clawbill_pipeline.catalog import parse
from clawbill_pipeline_tests.delivery.world import CATALOG, HOUR, T0, World


@pytest.mark.parametrize(
    "tenant",
    ["interval: day", "interval: week", "interval_count: 3", "interval: year, anchor_date: 2025-03-20"],
)
def test_usage_is_on_the_invoice_of_its_period(fresh_world: World, tenant: str) -> None:
    world = fresh_world
    world.catalog = parse(CATALOG.replace("name: Acme", tenant))
    assert not world.provision().failed
    period = world.catalog.tenant("acme").period_at(world.now())
    first = max(period.start, T0 + timedelta(days=1))
    for hour, amount in ((first, "1.5"), (period.end - HOUR, "2"), (period.end, "7")):
        world.rate("acme", "tokens", hour, amount)
    world.sandbox.move_to(int((period.end + timedelta(minutes=10)).timestamp()))
    world.rate("acme", "tokens", first, "1.25")  # a correction
    world.plan((first, period.end + HOUR))
    delivered = world.deliver()
    assert (delivered.delivered, delivered.parked) == (3, 0) if period.end - first < timedelta(days=35) else (2, 1)
    world.sandbox.move_to(int((period.end + timedelta(hours=2)).timestamp()))
    invoices = world.account.v1.invoices.list({"customer": world.customer("acme"), "expand": ["data.lines"]})
    lines = [line.to_dict() for invoice in invoices.data for line in invoice.lines.data]
    billed = [line for line in lines if Decimal(line["quantity_decimal"] or 0) > 1]
    (line,) = billed
    assert line["period"]["end"] == int(period.end.timestamp())
    sent = Decimal("3.25") if delivered.parked == 0 else Decimal(2)
    assert Decimal(line["quantity_decimal"]) == sent * 1_000_000
