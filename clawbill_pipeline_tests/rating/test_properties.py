"""What must hold for every price and quantity, whatever the numbers."""

from __future__ import annotations

import ast
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.catalog.prices import Graduated, Price
from clawbill_pipeline.money import EXACT, SCALE
from clawbill_pipeline.rating import engine
from clawbill_pipeline.rating.engine import rate, rate_increment
from clawbill_pipeline_tests.rating import random_prices as cards


def close(amount: Decimal, reference: Fraction, divisions: int) -> bool:
    """Equal, but for half of the 12th place for each division that does not end."""
    return abs(Fraction(amount) - reference) <= Fraction(divisions, 2 * 10**SCALE)


@given(cards.prices, cards.quantities)
def test_lines_sum_to_the_amount_and_explain_themselves(price: Price, quantity: Decimal) -> None:
    rating = rate(price, quantity)
    with localcontext(EXACT):
        assert sum((line.amount for line in rating.lines), Decimal(0)) == rating.amount
    for line in rating.lines:
        if line.quantity is not None and line.unit_amount is not None:
            assert close(line.amount, Fraction(line.quantity) * Fraction(line.unit_amount) / Fraction(line.per), 1)


@given(cards.prices, cards.quantities)
def test_amounts_are_finite_decimals_within_the_limits(price: Price, quantity: Decimal) -> None:
    rating = rate(price, quantity)
    for line in rating.lines:
        numbers = (line.amount, line.quantity, line.unit_amount, line.per)
        assert all(type(number) is Decimal and number.is_finite() for number in numbers if number is not None)
    assert all(line.amount <= 0 for line in rating.discounts)
    assert rating.amount >= (price.minimum or 0)
    assert price.maximum is None or rating.amount <= price.maximum


@given(cards.rising, cards.modifiers, cards.quantities, cards.quantities)
def test_more_usage_never_costs_less(card: dict[str, Any], extra: dict[str, Any], one: Decimal, two: Decimal) -> None:
    # A volume discount reprices all of the amount, so that a little more may cost less.
    extra = {**extra, "discounts": [d for d in extra.get("discounts", []) if d.get("mode") != "volume"]}
    price = cards.PRICE.validate_python({**card, **extra})
    less, more = sorted((one, two))
    assert rate(price, less).amount <= rate(price, more).amount


@given(cards.graduated, cards.quantities)
def test_graduated_is_the_integral_of_its_marginal_price(card: dict[str, Any], quantity: Decimal) -> None:
    price = cards.PRICE.validate_python(card)
    assert isinstance(price, Graduated)
    # Another way to the same number: cut the axis at every bound and look up the price in each cut's middle.
    bounds = [Fraction(tier.up_to) for tier in price.tiers if tier.up_to is not None]
    top = Fraction(quantity)
    cuts = sorted({Fraction(0), top, *(bound for bound in bounds if bound < top)})

    def tier_at(units: Fraction) -> int:
        return sum(bound < units for bound in bounds)

    reference = Fraction(0)
    for start, end in pairwise(cuts):
        tier = price.tiers[tier_at((start + end) / 2)]
        reference += (end - start) * Fraction(tier.unit_amount) / Fraction(price.per)
    reference += sum((Fraction(tier.flat_amount) for tier in price.tiers[: tier_at(top) + 1]), Fraction(0))
    assert close(rate(price, quantity).amount, reference, len(price.tiers))


@given(cards.prices, st.lists(cards.quantities, min_size=1, max_size=5))
def test_increments_of_a_period_sum_to_the_rate_of_the_whole(price: Price, parts: list[Decimal]) -> None:
    with localcontext(EXACT):
        before, billed = Decimal(0), Decimal(0)
        for part in parts:
            increment = rate_increment(price, before, part)
            assert sum((line.amount for line in increment.lines), Decimal(0)) == increment.amount
            # Until something was used, an increment is the rate of nothing itself, and the next one replaces it.
            billed = increment.amount + (billed if before else 0)
            before += part
        assert billed == rate(price, before).amount


@given(cards.prices, cards.quantities, cards.money)
def test_a_correction_books_what_is_missing(price: Price, quantity: Decimal, billed: Decimal) -> None:
    with localcontext(EXACT):
        assert engine.correction(price, quantity, billed).amount + billed == rate(price, quantity).amount


@given(cards.money, cards.positive(10_000, 3), cards.positive(10_000, 3), cards.quantities)
def test_conversion_that_does_not_end_is_divided_out_last(
    unit_amount: Decimal, up_to: Decimal, by: Decimal, quantity: Decimal
) -> None:
    price = cards.PRICE.validate_python(
        {
            "model": "graduated",
            "convert": {"divide_by": by},
            "tiers": [{"up_to": up_to, "unit_amount": unit_amount}, {"up_to": "inf", "unit_amount": 1}],
        }
    )
    units = Fraction(quantity) / Fraction(by)
    inside = min(units, Fraction(up_to))
    assert close(rate(price, quantity).amount, inside * Fraction(unit_amount) + (units - inside), 2)


@pytest.mark.parametrize("quantity", ["0", "1e-9", "1e15"])
@pytest.mark.parametrize(("unit_amount", "per"), [("0.000000000001", 1), ("3", 1), ("10", 1_000_000)])
def test_extreme_quantities_are_exact(quantity: str, unit_amount: str, per: int) -> None:
    price = cards.PRICE.validate_python({"model": "per_unit", "unit_amount": unit_amount, "per": per})
    assert Fraction(rate(price, Decimal(quantity)).amount) == Fraction(quantity) * Fraction(unit_amount) / per


@pytest.mark.parametrize("path", sorted(Path(engine.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_the_engine_knows_no_float(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float))
        assert not (isinstance(node, ast.Name) and node.id in ("float", "round"))
        assert not (isinstance(node, ast.Import | ast.ImportFrom) and "math" in ast.unparse(node).split())


def test_amounts_do_not_depend_on_the_caller_s_decimal_context() -> None:
    price = cards.PRICE.validate_python({"model": "per_unit", "unit_amount": "0.123456789012"})
    with localcontext(prec=3):
        amount = rate(price, Decimal("987654321.123456789")).amount
        increment = rate_increment(price, Decimal("987654321"), Decimal("0.123456789")).amount
    assert Fraction(amount) == Fraction("987654321.123456789") * Fraction("0.123456789012")
    assert Fraction(increment) == Fraction("0.123456789") * Fraction("0.123456789012")
