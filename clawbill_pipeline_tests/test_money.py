"""Exact money: what is taken, what is refused, and the one rounding."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.money import (
    LIMIT,
    SCALE,
    MoneyError,
    currency_code,
    exact,
    exponent,
    from_minor,
    from_stripe,
    invoice_amount,
    plain,
    rounded,
    stripe_exponent,
    total,
)

#: All that NUMERIC(38, 12) holds, as whole units of its last place.
units = st.integers(-(10**38 - 1), 10**38 - 1)
currencies = st.sampled_from(["USD", "EUR", "JPY", "KWD", "ISK", "UGX"])


def _amount(whole: int) -> Decimal:
    """As text, since arithmetic would round to the context."""
    digits = f"{abs(whole):039d}"
    return Decimal(("-" if whole < 0 else "") + digits[:-SCALE] + "." + digits[-SCALE:])


amounts = units.map(_amount)


@given(amounts)
def test_every_digit_that_the_ledger_holds_survives(amount: Decimal) -> None:
    assert exact(amount) == amount
    assert exact(plain(amount)) == amount
    assert exact(str(amount)) == amount


@given(st.lists(amounts, max_size=20))
def test_totals_are_exact_in_any_order_and_python_context(values: list[Decimal]) -> None:
    # As integers, so that the expectation knows no Decimal rounding.
    whole = sum(int(f"{value:.12f}".replace(".", "")) for value in values)
    with localcontext() as context:
        context.prec = 5
        assert total(reversed(values)) == total(values) == _amount(whole)


@pytest.mark.parametrize(
    "value",
    [
        "", " 1", "1 ", "1_000", "١٢", "1,5", "0x10", "NaN", "-Infinity", "1e", "--1", "1.5.5", Decimal("NaN"),
        Decimal("sNaN"), Decimal("Infinity"), "1e-13", "0.0000000000001", "1e26", 10**26, "-1e26", "1e999999999",
        "1e9999999999999999999", "0.1" + "0" * 200 + "1",
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused(value: str | int | Decimal) -> None:
    with pytest.raises(MoneyError):
        exact(value)


@pytest.mark.parametrize("value", [1.5, True, None, b"1", [1]])
def test_floats_and_other_types_are_refused_by_name(value: object) -> None:
    with pytest.raises(MoneyError, match=type(value).__name__):
        exact(value)  # type: ignore[arg-type]


def test_largest_and_smallest_amounts_are_held() -> None:
    largest = "99999999999999999999999999.999999999999"
    assert plain(exact(largest)) == largest
    assert exact(largest) < LIMIT
    assert plain(exact("-1e-12")) == "-0.000000000001"


@given(amounts, st.integers(0, SCALE))
def test_rounding_is_half_away_from_zero(amount: Decimal, digits: int) -> None:
    once = rounded(amount, digits)
    step = Decimal(1).scaleb(-digits)
    gap = total([once, amount.copy_negate()])  # a bare minus rounds to the context
    assert abs(gap) <= step / 2
    assert rounded(amount.copy_negate(), digits) == once.copy_negate()
    if abs(gap) == step / 2:
        assert once.copy_abs() >= amount.copy_abs()
    assert rounded(once, digits) == once


def test_rounding_ignores_what_the_program_set() -> None:
    with localcontext() as context:
        context.prec, context.rounding = 3, ROUND_DOWN
        assert [rounded(Decimal(text), 2) for text in ("0.125", "0.135", "-0.125", "12345.675")] == [
            Decimal("0.13"), Decimal("0.14"), Decimal("-0.13"), Decimal("12345.68"),
        ]  # fmt: skip


def test_peers_11_minor_units_of_currencies() -> None:
    # JPY 80 charges 80; Stripe counts ISK and UGX in hundredths.
    assert from_minor(80, "JPY") == from_stripe(80, "JPY") == 80
    assert from_minor(5, "ISK") == 5
    assert from_stripe(500, "ISK") == from_stripe(500, "UGX") == 5
    assert from_minor(250, "USD") == Decimal("2.5")
    assert from_minor(1_234, "KWD") == Decimal("1.234")
    assert (exponent("jpy"), exponent("kwd"), exponent("usd"), stripe_exponent("isk")) == (0, 3, 2, 2)
    assert invoice_amount(Decimal("79.5"), "JPY") == 80
    assert invoice_amount(Decimal("0.0005"), "KWD") == Decimal("0.001")


@given(amounts, currencies)
def test_an_invoice_amount_is_whole_minor_units(amount: Decimal, currency: str) -> None:
    shown = invoice_amount(amount, currency)
    assert -shown.as_tuple().exponent == exponent(currency)  # type: ignore[operator]


def test_minor_units_with_too_many_digits_are_refused_not_rounded() -> None:
    with pytest.raises(MoneyError, match="more digits"):
        from_minor(Decimal("1." + "0" * 120 + "1"), "USD")


@given(amounts)
def test_plain_text_has_no_exponent_no_trailing_zero_and_no_minus_zero(amount: Decimal) -> None:
    shown = plain(amount)
    assert Decimal(shown) == amount
    assert "E" not in shown
    assert shown != "-0"
    assert "." not in shown or not shown.endswith("0")


def test_plain_of_zeros() -> None:
    assert [plain(Decimal(zero)) for zero in ("0", "-0", "0.000", "-0E+5", "0E-12")] == ["0"] * 5
    assert plain(Decimal("1E+20")) == "1" + "0" * 20


def test_currency_codes() -> None:
    assert currency_code("usd") == "USD"
    for wrong in ("", "US", "DOLLAR", "U$D", "ÜSD"):
        with pytest.raises(MoneyError, match="currency"):
            currency_code(wrong)
