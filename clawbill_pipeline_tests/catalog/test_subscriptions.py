"""When a tenant's subscription starts and ends: days of a period, its close, and what of it prices may know."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from clawbill_pipeline.catalog import CatalogError, Tenant, parse

CATALOG = """
start: 2026-01-01T00:00:00Z
services: {{seats: {{unit: seat, basis: {basis}}}, tokens: {{unit: token, basis: period_to_date, dimensions: [model]}}}}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {{seats: {seats}, tokens: {tokens}}}
tenants: {{acme: {{rate_card: card, {tenant}}}}}
"""
UNIT = "{model: per_unit, unit_amount: 1}"
PRORATED = "{model: per_unit, unit_amount: 1, flat_amount: 31, prorate: true}"


def catalog(basis: str = "period_to_date", seats: str = UNIT, tokens: str = UNIT, tenant: str = "name: Acme") -> Any:
    return parse(CATALOG.format(basis=basis, seats=seats, tokens=tokens, tenant=tenant))


def tenant(**fields: Any) -> Tenant:
    return Tenant.model_validate({"rate_card": "card", **fields})


MARCH = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "days", "close"),
    [
        ({}, (31, 31), "2026-04-01T00:00"),
        ({"starts": "2026-03-15"}, (17, 31), "2026-04-01T00:00"),
        ({"ends": "2026-03-15"}, (14, 31), "2026-03-15T00:00"),
        ({"starts": "2026-03-05", "ends": "2026-03-15"}, (10, 31), "2026-03-15T00:00"),
        ({"starts": "2026-02-01", "ends": "2026-05-01"}, (31, 31), "2026-04-01T00:00"),
        ({"ends": "2026-04-01"}, (31, 31), "2026-04-01T00:00"),
        ({"ends": "2026-03-01"}, (0, 31), "2026-04-01T00:00"),
        ({"starts": "2026-04-01"}, (0, 31), "2026-04-01T00:00"),
        # The clocks go forward in Berlin on 29 March: a day of 23 hours is a day.
        ({"starts": "2026-03-29", "time_zone": "Europe/Berlin"}, (3, 31), "2026-03-31T22:00"),
        ({"ends": "2026-03-30", "time_zone": "Europe/Berlin"}, (29, 31), "2026-03-29T22:00"),
        ({"starts": "2026-02-20", "anchor_day": 15}, (23, 28), "2026-03-15T00:00"),
    ],
)
def test_days_and_close(fields: dict[str, Any], days: tuple[int, int], close: str) -> None:
    of = tenant(**fields)
    period = of.period_at(MARCH)
    assert of.days(period) == days
    assert of.close(period) == datetime.fromisoformat(close).replace(tzinfo=UTC)


def test_only_a_price_that_says_so_is_prorated() -> None:
    card = catalog(seats=PRORATED, tenant="starts: 2026-03-15")
    assert card.price_for("acme", "seats", MARCH).days == (17, 31)
    assert card.price_for("acme", "tokens:large", MARCH).days is None
    assert card.price_for("acme", "seats", datetime(2026, 5, 1, tzinfo=UTC)).days is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"basis": "hourly", "seats": PRORATED}, "this service is rated by the hour"),
        ({"tokens": f"{{model: matrix, cells: {{large: {PRORATED}}}}}"}, "belongs to the price as a whole"),
        ({"tenant": "starts: 2026-03-15, ends: 2026-03-15"}, "the subscription never runs"),
        ({"tenant": "starts: soon"}, "starts"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, str], why: str) -> None:
    with pytest.raises(CatalogError, match=why):
        catalog(**given)
