"""Shadow pricing over a small history, by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.duck import duck
from clawbill_pipeline.rating.simulation import Movement, simulate

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


def simulated(current: Catalog, candidate: Catalog) -> dict[tuple[str, str], Movement]:
    with duck() as db:
        db.execute(
            "CREATE TABLE history (tenant_id VARCHAR, service VARCHAR, dimensions VARCHAR, window_start TIMESTAMPTZ, "
            "quantity DECIMAL(38, 12))"
        )
        db.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?)", USAGE)
        movements = simulate(db, "FROM history", current, candidate)
        assert db.sql("SHOW TABLES").fetchall() == [("history",)]
    return {(movement.tenant_id, movement.service): movement for movement in movements}


def test_each_window_costs_what_was_in_force_and_tiers_span_periods_where_they_should() -> None:
    movements = simulated(parse(CATALOG), parse(CATALOG))
    amounts = {key: movement.current and movement.current.amount for key, movement in movements.items()}
    assert amounts == {
        ("acme", "requests"): 11 + 11 + 24,
        ("acme", "tokens"): Decimal("0.004"),
        ("acme", "storage"): 13 + 8,
        ("globex", "storage"): 13,
        ("globex", "requests"): 21,
    }
    assert all(movement.change == 0 and movement.faults == () for movement in movements.values())


def test_a_change_of_prices_moves_whom_it_concerns() -> None:
    dearer = CATALOG.replace('tokens:large: {model: per_unit, unit_amount: "0.000003"}', "")
    dearer = dearer.replace(
        "requests: {model: per_unit, unit_amount: 2}", "requests: {model: per_unit, unit_amount: 5}"
    )
    changes = {key: movement.change for key, movement in simulated(parse(CATALOG), parse(dearer)).items()}
    assert changes.pop(("acme", "requests")) == 36
    assert changes.pop(("acme", "tokens")) == Decimal("-0.002")
    assert set(changes.values()) == {Decimal(0)}


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
    movement = simulated(parse(CATALOG), parse(CATALOG.replace(old, new)))[key]
    assert movement.faults == (says,)
    if movement.candidate is None or movement.candidate.currency != "USD":
        assert movement.change is None
