"""The vectorised path against the engine, row by row, on random cards."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbill_pipeline.catalog.prices import Price
from clawbill_pipeline.duck import duck
from clawbill_pipeline.money import EXACT
from clawbill_pipeline.rating.engine import RatingError, Usage, rate
from clawbill_pipeline.rating.pieces import pieces_of
from clawbill_pipeline.rating.vectorised import PLACES, Priced, rated
from clawbill_pipeline_tests.rating import random_prices as cards


def vectorised(prices: dict[str, Priced], rows: list[tuple[str | None, Decimal | None]]) -> list[tuple[Any, ...]]:
    """``(price, quantity, amount, error)`` of each row, in the order of ``rows``."""
    with duck(threads=1) as db:
        db.execute("CREATE TABLE usage (row BIGINT, price VARCHAR, quantity DECIMAL(38, 12))")
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", [(i, *row) for i, row in enumerate(rows)])
        with rated(db, "FROM usage", prices) as view:
            found = db.sql(f"SELECT * EXCLUDE (row) FROM {view} ORDER BY row").fetchall()
        assert db.sql("SHOW TABLES").fetchall() == [("usage",)]
    assert len(found) == len(rows)
    return found


def one_by_one(priced: Priced, quantity: Decimal) -> Decimal | None:
    """The engine's amount, or None where it has none that the column can hold."""
    try:
        amount = rate(priced.price, Usage(quantity, part=priced.part)).amount
    except RatingError:
        return None
    with localcontext(EXACT):
        fits = not amount % Decimal(1).scaleb(-PLACES) and abs(amount) < Decimal(10) ** (38 - PLACES)
    return amount if fits else None


TIERED = {
    "model": "graduated",
    "tiers": [{"up_to": 100, "unit_amount": "0.5"}, {"unit_amount": "0.3", "flat_amount": 2}],
}


def priced(card: dict[str, Any], part: str | None = None) -> Priced:
    return Priced(cards.PRICE.validate_python(card), part)


def edges(price: Price) -> list[Decimal]:
    """Where a table and the engine would differ first: at the bounds and steps, and right beside them."""
    table = pieces_of(price)
    if table is None:
        return []
    found = [piece.up_to for piece in table.pieces if piece.up_to is not None]
    found += [
        piece.start + times * piece.step for piece in table.pieces if piece.step for times in (1, 3, Decimal("1.5"))
    ]
    ulp = Decimal("1e-12")
    return [edge.quantize(ulp) + by for edge in found for by in (-ulp, 0, ulp)]


def agrees(prices: dict[str, Priced], rows: list[tuple[str | None, Decimal | None]]) -> None:
    for key, quantity, amount, error in vectorised(prices, rows):
        expected = one_by_one(prices[key], quantity)
        assert amount == expected, (prices[key], quantity)
        assert (error is None) == (expected is not None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(cards.prices, min_size=1, max_size=12),
    st.lists(cards.quantities | cards.numbers(100, 2, -100), min_size=1, max_size=12),
    st.booleans(),
)
def test_equal_to_the_engine_row_by_row(prices: list[Price], quantities: list[Decimal], whole: bool) -> None:
    quantities = [quantity // 1 for quantity in quantities] if whole else quantities
    named = {f"price {number}": Priced(price) for number, price in enumerate(prices)}
    agrees(named, [(key, q) for key, one in named.items() for q in [*quantities, *([] if whole else edges(one.price))]])


TIERS = [
    {"up_to": "2.5", "unit_amount": "0.5", "flat_amount": 1},
    {"up_to": 5, "unit_amount": 3},
    {"unit_amount": "0.25", "flat_amount": "0.07"},
]
BLOCKS = [{"up_to": 3, "block_size": "0.7", "block_amount": 2}, {"block_size": 2, "block_amount": 1}]
MODELS = [
    {"model": "per_unit", "unit_amount": "1.5", "per": 8, "flat_amount": 1},
    {"model": "per_unit", "unit_amount": "1.5", "per": 3, "increment": 2},
    {"model": "graduated", "tiers": TIERS},
    {"model": "volume", "tiers": TIERS},
    {"model": "graduated_percentage", "tiers": [{"up_to": 3, "percent": 1, "flat_amount": 2}, {"percent": "2.5"}]},
    {"model": "percentage", "percent": "2.9"},
    {"model": "dynamic", "multiplier": "1.2"},
    {"model": "package", "package_size": "0.7", "package_amount": 3},
    {"model": "package", "package_size": "0.7", "package_amount": 3, "round": "down"},
    {"model": "package", "package_size": "0.3", "package_amount": 3, "round": "half_up"},
    {"model": "block", "tiers": BLOCKS},
    {"model": "block", "mode": "volume", "tiers": BLOCKS},
]
MODIFIERS: list[dict[str, Any]] = [
    {},
    {"charge_flat_on_zero": False},
    {"included": "1.3"},
    {"minimum": 2, "maximum": 5},
    {"discounts": [{"kind": "fixed", "amount": 2}, {"kind": "percentage", "percent": 25}]},
    {"discounts": [{"kind": "percentage", "percent": 25}, {"kind": "fixed", "amount": 1}], "included": "0.5"},
    {"convert": {"divide_by": 4}},
    {"convert": {"multiply_by": "1.6"}, "included": 1, "maximum": 6},
]


@pytest.mark.parametrize("modifiers", MODIFIERS, ids=str)
def test_every_model_with_a_table_and_every_modifier(modifiers: dict[str, Any]) -> None:
    prices = {str(number): priced({**model, **modifiers}) for number, model in enumerate(MODELS)}
    tabled = [key for key, one in prices.items() if pieces_of(one.price) is not None]
    assert len(tabled) >= len(MODELS) - 2
    # Nothing but tables: were they wrong, no engine would hide it.
    grid = [Decimal(number) / 10 for number in range(0, 90, 3)]
    agrees(prices, [(key, quantity) for key in tabled for quantity in [*grid, *edges(prices[key].price)]])


@given(cards.plain_prices)
def test_plain_prices_have_tables(card: dict[str, Any]) -> None:
    """So that the test above does not hold because everything went through the engine."""
    always_ends = card.get("per", 1) in (1, 1000)
    assert not always_ends or pieces_of(cards.PRICE.validate_python(card)) is not None


def test_parts_of_a_matrix_and_of_a_day() -> None:
    matrix = {"model": "matrix", "cells": {"large": TIERED}, "otherwise": {"model": "per_unit", "unit_amount": 1}}
    day = {
        "model": "time_of_use",
        "bands": [{"name": "peak", "from": "08:00", "to": "18:00", "price": TIERED}],
        "otherwise": {"model": "per_unit", "unit_amount": 1},
        "flat_amount": 3,
        "maximum": 60,
    }
    prices = {
        "large": priced(matrix, "large"),
        "small": priced(matrix, "small"),
        "peak": priced(day, "peak"),
        "night": priced(day, "otherwise"),
        "whole": priced(matrix),
    }
    ten, many = Decimal(10), Decimal(200)
    got = vectorised(prices, [(key, quantity) for key in prices for quantity in (ten, many)])
    assert [amount for _, _, amount, _ in got] == [5, 82, 10, 200, 8, 60, 13, 60, None, None]
    assert "needs the dimensions" in got[-1][3]


def test_capacity_of_one_unit() -> None:
    tiers = [{"amount": 10, "limits": {"seats": 5}}, {"amount": 20}]
    got = vectorised(
        {"seats": priced({"model": "capacity", "tiers": tiers})}, [("seats", Decimal(n)) for n in (0, 5, 6)]
    )
    assert [amount for _, _, amount, _ in got] == [10, 10, 20]


@pytest.mark.parametrize(
    ("price", "quantity", "says"),
    [
        ("tiered", "-1", "negative quantity -1"),
        ("other", "1", "no price 'other'"),
        (None, "1", "no price None"),
        ("tiered", None, "no quantity"),
        ("dear", "1e25", "does not fit DECIMAL(38, 20)"),
        ("fine", "1e-12", "does not fit DECIMAL(38, 20)"),
    ],
)
def test_a_row_without_an_amount_says_why_and_stops_no_other(price: str, quantity: str | None, says: str) -> None:
    prices = {
        "tiered": priced(TIERED),
        "dear": priced({"model": "per_unit", "unit_amount": 10}),
        "fine": priced({"model": "per_unit", "unit_amount": "0.123456789012"}),
    }
    bad, good = vectorised(prices, [(price, quantity and Decimal(quantity)), ("tiered", Decimal(1))])
    assert bad[2] is None
    assert says in bad[3]
    assert good[2:] == (Decimal("0.5"), None)


def test_huge_quantities_of_one_price_do_not_disturb_the_others() -> None:
    prices = {
        "linear": priced({"model": "per_unit", "unit_amount": "0.000001"}),
        "steps": priced({"model": "package", "package_size": "0.7", "package_amount": 1}),
    }
    rows: list[tuple[str | None, Decimal | None]] = [
        ("linear", Decimal("99999999999999999999.5")),
        ("steps", Decimal("99999999999999.9")),
        ("steps", Decimal("100000000000000.2")),
        ("linear", Decimal("1.000001")),
    ]
    assert [amount for _, _, amount, _ in vectorised(prices, rows)] == [
        Decimal("99999999999999.9999995"),
        Decimal(142857142857143),
        Decimal(142857142857144),
        Decimal("0.000001000001"),
    ]


def test_a_caller_s_columns_may_have_any_name() -> None:
    with (
        duck() as db,
        rated(
            db,
            "SELECT 'tiered' AS price, 1::DECIMAL(38,12) AS quantity, 'mine' AS base, 7 AS unit, 8 AS step, 9 AS cap",
            {"tiered": priced(TIERED)},
        ) as view,
    ):
        row = db.sql(f"FROM {view}").fetchall()
    assert row == [("tiered", 1, "mine", 7, 8, 9, Decimal("0.5"), None)]
