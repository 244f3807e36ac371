"""What a rating answer says beyond its amount: limits and terms, and whose hour's prices and period it is by."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.sandbox.openclaw.openapi import DOCUMENT
from clawbill_pipeline.sandbox.openclaw.rating import answer

CATALOG = """
start: 2026-01-01T00:00:00Z
services:
  seats: {unit: seat, basis: period_to_date}
  calls: {unit: call}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: &prices
          seats:
            {model: per_unit, unit_amount: 2, flat_amount: 31, included: 31, minimum: 62, maximum: 310, prorate: true}
          calls: {model: per_unit, unit_amount: 1}
      - effective_from: 2026-10-01T00:00:00Z
        prices: {<<: *prices, calls: {model: per_unit, unit_amount: 3}}
tenants:
  acme: {rate_card: card, time_zone: Europe/Berlin, starts: 2026-10-20}
  globex: {rate_card: card, ends: 2026-10-11}
  initech: {rate_card: card}
"""
CHANGE = datetime(2026, 10, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return parse(CATALOG)


def rate(catalog: Catalog, now: datetime, tenant: str = "initech", service: str = "calls", quantity: int = 1) -> Any:
    body = {"tenant_id": tenant, "service": service, "quantity": quantity}
    return answer(catalog, json.dumps(body).encode(), now)


def test_an_hour_that_is_rated_in_its_turn_gets_its_own_prices(catalog: Catalog) -> None:
    lag = catalog.calendar.metering_lag
    assert rate(catalog, CHANGE + lag)["amount_cents"] == "100", "September's last hour"
    last = CHANGE + timedelta(hours=1) + lag - timedelta(microseconds=1)
    assert rate(catalog, last)["amount_cents"] == "100"
    assert rate(catalog, CHANGE + timedelta(hours=1) + lag)["amount_cents"] == "300", "October's first"


def test_prices_that_have_only_just_begun_are_known_at_once(catalog: Catalog) -> None:
    assert rate(catalog, datetime(2026, 1, 1, tzinfo=UTC))["amount_cents"] == "100"


def test_limits_are_told_where_there_are_any(catalog: Catalog) -> None:
    now = datetime(2026, 9, 15, tzinfo=UTC)
    assert "limits" not in rate(catalog, now)
    for quantity, amount, unlimited in ((1, "6200", "3100"), (61, "9100", "9100"), (331, "31000", "63100")):
        said = rate(catalog, now, service="seats", quantity=quantity)
        assert said["amount_cents"] == amount
        assert said["limits"] == {"unlimited_cents": unlimited, "minimum_cents": "6200", "maximum_cents": "31000"}


def test_what_belongs_to_the_period_is_prorated_in_its_first_and_last(catalog: Catalog) -> None:
    # 12 of October's 31 days from the 20th on, 10 until the 11th.
    acme = rate(catalog, datetime(2026, 10, 25, tzinfo=UTC), "acme", "seats", 12 + 3)
    assert (acme["amount_cents"], acme["limits"]["minimum_cents"], acme["limits"]["maximum_cents"]) == (
        "2400", "2400", "12000",
    )  # fmt: skip
    assert acme["limits"]["unlimited_cents"] == str((12 + 3 * 2) * 100)
    assert acme["terms"].endswith(" 12/31")
    globex = rate(catalog, datetime(2026, 10, 5, tzinfo=UTC), "globex", "seats", 100)
    assert globex["amount_cents"] == "10000"
    assert rate(catalog, datetime(2026, 11, 5, tzinfo=UTC), "acme", "seats")["terms"] in acme["terms"]


def test_the_period_is_that_of_the_hour_that_is_due(catalog: Catalog) -> None:
    # Berlin's October ends at 23:00 UTC; its last hour is rated ten minutes later.
    end = datetime(2026, 10, 31, 23, tzinfo=UTC)
    assert rate(catalog, end + timedelta(minutes=10), "acme", "seats")["terms"].endswith(" 12/31")
    assert "/" not in rate(catalog, end + timedelta(minutes=70), "acme", "seats")["terms"]


def test_terms_change_with_anything_that_the_amount_depends_on_and_nothing_else(catalog: Catalog) -> None:
    before = datetime(2026, 9, 15, tzinfo=UTC)
    terms = rate(catalog, before)["terms"]
    assert rate(catalog, before, quantity=7)["terms"] == terms == rate(parse(CATALOG), before)["terms"]
    assert rate(catalog, datetime(2026, 10, 15, tzinfo=UTC))["terms"] != terms
    corrected = parse(
        CATALOG.replace("calls: {model: per_unit, unit_amount: 1}", "calls: {model: per_unit, unit_amount: 2}")
    )
    assert rate(corrected, before)["terms"] != terms
    described = parse(CATALOG.replace("currency: USD", "currency: USD\n    description: List prices"))
    assert rate(described, before)["terms"] == terms


def test_openapi_describes_limits_and_terms(catalog: Catalog) -> None:
    schema = DOCUMENT["components"]["schemas"]["Rating"]
    said = rate(catalog, datetime(2026, 9, 15, tzinfo=UTC), service="seats")
    assert set(schema["required"]) <= said.keys() <= schema["properties"].keys()
    limits = schema["properties"]["limits"]
    assert set(limits["required"]) <= said["limits"].keys() <= limits["properties"].keys()
