"""Shadow pricing over a small history, by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.duck import duck
from clawbill_pipeline.rating.movements import Comparison, Movement
from clawbill_pipeline.rating.simulation import history_start, simulate

CATALOG = """
version: 1
start: 2026-01-01T00:00:00Z
services:
  requests: {unit: request}
  tokens: {unit: token, dimensions: [model]}
  storage: {unit: GB-hour, basis: period_to_date}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: &prices
          requests: {model: graduated, tiers: [{up_to: 10, unit_amount: 1}, {unit_amount: "0.5"}]}
          tokens: {model: per_unit, unit_amount: "0.000001"}
          tokens:large: {model: per_unit, unit_amount: "0.000003"}
          storage: {model: graduated, tiers: [{up_to: 10, unit_amount: 1}, {unit_amount: "0.5"}]}
      - effective_from: 2026-02-10T00:00:00Z
        prices: {<<: *prices, requests: {model: per_unit, unit_amount: 2}}
tenants:
  acme: {rate_card: standard}
  globex: {rate_card: standard, time_zone: America/New_York, prices: {requests: {model: per_unit, unit_amount: 3}}}
"""
USAGE = [
    ("acme", "requests", "", datetime(2026, 2, 1, 0, tzinfo=UTC), "12"),
    ("acme", "requests", "", datetime(2026, 2, 9, 23, tzinfo=UTC), "12"),
    ("acme", "requests", "", datetime(2026, 2, 10, 0, tzinfo=UTC), "12"),
    ("acme", "tokens", "large", datetime(2026, 2, 1, 0, tzinfo=UTC), "1000"),
    ("acme", "tokens", "small", datetime(2026, 2, 1, 0, tzinfo=UTC), "1000"),
    ("acme", "storage", "", datetime(2026, 2, 1, 0, tzinfo=UTC), "8"),
    ("acme", "storage", "", datetime(2026, 2, 20, 0, tzinfo=UTC), "8"),
    ("acme", "storage", "", datetime(2026, 3, 1, 0, tzinfo=UTC), "8"),
    # 03:00 UTC on 1 March is still February in New York.
    ("globex", "storage", "", datetime(2026, 2, 20, 0, tzinfo=UTC), "8"),
    ("globex", "storage", "", datetime(2026, 3, 1, 3, tzinfo=UTC), "8"),
    ("globex", "requests", "", datetime(2026, 2, 20, 0, tzinfo=UTC), "7"),
]


START, END = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)


def simulated(
    current: Catalog, candidate: Catalog, start: datetime = START, end: datetime = END, as_of: datetime | None = None
) -> Comparison:
    with duck() as db:
        db.execute(
            "CREATE TABLE history (tenant_id VARCHAR, service VARCHAR, dimensions VARCHAR, window_start TIMESTAMPTZ, "
            "quantity DECIMAL(38, 12))"
        )
        db.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?)", USAGE)
        found = simulate(db, "FROM history", current, candidate, start=start, end=end, as_of=as_of)
        assert db.sql("SHOW TABLES").fetchall() == [("history",)]
    return found


def by_service(comparison: Comparison) -> dict[tuple[str, str], Movement]:
    return {(movement.tenant_id, movement.service): movement for movement in comparison.movements}


def amounts(comparison: Comparison) -> dict[tuple[str, str], Decimal | None]:
    return {key: movement.candidate_amount for key, movement in by_service(comparison).items()}


def test_each_window_costs_what_was_in_force_and_tiers_span_periods_where_they_should() -> None:
    comparison = simulated(parse(CATALOG), parse(CATALOG))
    assert amounts(comparison) == {
        ("acme", "requests"): 11 + 11 + 24,
        ("acme", "tokens"): Decimal("0.004"),
        ("acme", "storage"): 13 + 8,
        ("globex", "storage"): 13,
        ("globex", "requests"): 21,
    }
    assert {key: movement.quantity for key, movement in by_service(comparison).items()} == {
        ("acme", "requests"): 36,
        ("acme", "tokens"): 2000,
        ("acme", "storage"): 24,
        ("globex", "storage"): 16,
        ("globex", "requests"): 7,
    }
    assert all(movement.change == 0 and movement.faults == () for movement in comparison.movements)


def test_a_change_of_prices_moves_whom_it_concerns() -> None:
    dearer = CATALOG.replace('tokens:large: {model: per_unit, unit_amount: "0.000003"}', "")
    dearer = dearer.replace(
        "requests: {model: per_unit, unit_amount: 2}", "requests: {model: per_unit, unit_amount: 5}"
    )
    comparison = simulated(parse(CATALOG), parse(dearer))
    changes = {key: movement.change for key, movement in by_service(comparison).items()}
    assert changes.pop(("acme", "requests")) == 36
    assert changes.pop(("acme", "tokens")) == Decimal("-0.002")
    assert set(changes.values()) == {Decimal(0)}
    assert [(bill.tenant_id, bill.change) for bill in comparison.bills] == [("acme", Decimal("35.998")), ("globex", 0)]


def test_what_lies_before_the_start_only_fills_the_tiers() -> None:
    half = simulated(parse(CATALOG), parse(CATALOG), datetime(2026, 2, 15, tzinfo=UTC))
    assert amounts(half) == {
        ("acme", "storage"): (13 - 8) + 8,
        ("globex", "storage"): 13,
        ("globex", "requests"): 21,
    }
    assert by_service(half)["acme", "storage"].quantity == 16


@pytest.mark.parametrize("days", [[2], [11], [25], [2, 11, 21], [10, 20, 28]])
@pytest.mark.parametrize("model", ["graduated", "volume"])
def test_parts_of_a_history_sum_to_the_whole(days: list[int], model: str) -> None:
    text = CATALOG.replace("storage: {model: graduated", f"storage: {{model: {model}")
    # A version in mid-period prices all of it anew, and that is booked where it comes into force.
    text = text.replace("{<<: *prices, req", "{<<: *prices, storage: {model: per_unit, unit_amount: 7}, req")
    cuts = [START, *(START.replace(day=day) for day in days), END]
    whole = amounts(simulated(parse(CATALOG), parse(text)))
    summed = dict.fromkeys(whole, Decimal(0))
    for start, end in pairwise(cuts):
        for key, amount in amounts(simulated(parse(CATALOG), parse(text), start, end)).items():
            summed[key] += amount or 0
    assert summed == whole


def test_versions_that_come_later_are_named_and_as_of_applies_them() -> None:
    later = CATALOG.replace(
        "tenants:\n",
        "      - effective_from: 2027-01-01T00:00:00Z\n"
        "        prices: {<<: *prices, requests: {model: per_unit, unit_amount: 10}}\ntenants:\n",
    )
    new_year = datetime(2027, 1, 1, tzinfo=UTC)
    comparison = simulated(parse(CATALOG), parse(later))
    assert comparison.later == (("standard", new_year),)
    assert not any(movement.change for movement in comparison.movements)
    comparison = simulated(parse(CATALOG), parse(later), as_of=new_year)
    assert comparison.later == ()
    assert by_service(comparison)["acme", "requests"].candidate_amount == 360
    assert by_service(comparison)["acme", "requests"].current_amount == 46
    assert by_service(comparison)["globex", "requests"].change == 0  # an override is no version


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("  globex: {", "  umbrella: {", ("globex", "storage"), "candidate: no such tenant"),
        ("currency: USD", "currency: EUR", ("acme", "requests"), "currency changes from USD to EUR"),
        (
            "effective_from: 2026-01-01T00:00:00Z",
            "effective_from: 2026-02-05T00:00:00Z",
            ("acme", "requests"),
            "candidate: 1 not rated, such as: no price in force",
        ),
        (
            'tokens: {model: per_unit, unit_amount: "0.000001"}',
            "tokens: {model: matrix, cells: {large: {model: per_unit, unit_amount: 1}}}",
            ("acme", "tokens"),
            "candidate: 1 not rated, such as: the matrix price has no price for 'small'; there is large",
        ),
    ],
)
def test_what_can_not_be_compared_is_said(old: str, new: str, key: tuple[str, str], says: str) -> None:
    assert old in CATALOG
    comparison = simulated(parse(CATALOG), parse(CATALOG.replace(old, new)))
    movement = by_service(comparison)[key]
    assert movement.faults == (says,)
    assert movement in comparison.unclear
    if movement.candidate is None or movement.candidate.currency != "USD":
        assert (movement.change, movement.percent) == (None, None)


def test_a_tenant_that_neither_catalogue_knows_is_named() -> None:
    without = CATALOG[: CATALOG.index("  globex: {")]
    comparison = simulated(parse(without), parse(without))
    assert comparison.unbilled == ("globex",)
    assert comparison.unclear == ()
    assert by_service(comparison)["globex", "requests"].quantity == 7


def test_usage_is_needed_from_the_beginning_of_a_period_that_tiers_span() -> None:
    start = datetime(2026, 2, 15, tzinfo=UTC)
    new_york = parse(CATALOG).tenants["globex"].period_at(start).start
    assert history_start([parse(CATALOG)], start) == datetime(2026, 2, 1, tzinfo=UTC) < new_york
    hourly = CATALOG.replace(", basis: period_to_date", "")
    assert history_start([parse(hourly)], start) == start
    assert history_start([parse(hourly), parse(CATALOG)], start) == datetime(2026, 2, 1, tzinfo=UTC)


def test_a_share_of_the_period_costs_its_share() -> None:
    fee = CATALOG.replace(
        'storage: {model: graduated, tiers: [{up_to: 10, unit_amount: 1}, {unit_amount: "0.5"}]}',
        "storage: {model: per_unit, unit_amount: 1, flat_amount: 28, minimum: 56, prorate: true}",
    )
    whole, half = (
        parse(fee),
        parse(fee.replace("acme: {rate_card: standard}", "acme: {rate_card: standard, starts: 2026-02-15}")),
    )
    march = datetime(2026, 3, 1, tzinfo=UTC)
    found = by_service(simulated(whole, half, end=march))["acme", "storage"]
    assert (found.current_amount, found.candidate_amount) == (56, 14 + 16), "14 of 28 days, with 16 GB-hours"
    # The price of the moment, and the share of the period all the same.
    found = by_service(simulated(whole, half, end=march, as_of=datetime(2026, 6, 1, tzinfo=UTC)))["acme", "storage"]
    assert found.candidate_amount == 30
