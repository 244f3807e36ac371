"""Exact money: currencies, minor units and the one rounding. Not for prices (rating) or storage (ledger).

Amounts are ``Decimal`` in the currency's major unit (dollars, yen) everywhere in clawbill; minor units (cents)
exist only at the borders, where OpenClaw and Stripe speak them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, localcontext

# Wide enough that no sum or product of NUMERIC(38, 12) values is ever rounded on the way.
EXACT = Context(prec=100, rounding=ROUND_HALF_UP)

#: Digits after the point that the ledger keeps: ``NUMERIC(38, 12)``.
SCALE = 12
#: Largest magnitude that ``NUMERIC(38, 12)`` holds.
LIMIT = Decimal(10) ** 26
#: Billed amounts travel to Stripe in whole millionths of the major unit.
MICRO = Decimal(1_000_000)

# ISO 4217 currencies whose exponent is not 2, and what Stripe charges in (docs.stripe.com/currencies#zero-decimal).
# ISK and UGX have no minor unit, yet Stripe wants them in hundredths that end in 00.
_EXPONENT = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF"), 0),
    **dict.fromkeys(("VND", "VUV", "XAF", "XOF", "XPF", "ISK", "UGX"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
_STRIPE_EXPONENT = {**_EXPONENT, "ISK": 2, "UGX": 2}
_CURRENCY = re.compile(r"[A-Z]{3}")
# Narrower than Decimal(), which also takes blanks, underscores and the digits of every script.
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:s?nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)


class MoneyError(ValueError):
    """A value that cannot be exact money: not a number, not finite, or more digits than the ledger holds."""


def currency_code(text: str) -> str:
    """The upper-case ISO 4217 code of ``text``. Raises MoneyError for anything that is not three letters."""
    code = text.upper()
    if not _CURRENCY.fullmatch(code):
        raise MoneyError(f"{text!r} is not a three-letter currency code")
    return code


def exponent(currency: str) -> int:
    """Digits of the currency's minor unit by ISO 4217: 2 for USD, 0 for JPY, 3 for KWD."""
    return _EXPONENT.get(currency.upper(), 2)


def stripe_exponent(currency: str) -> int:
    """Digits of the unit that Stripe counts ``amount`` in; as ISO 4217 but for ISK and UGX."""
    return _STRIPE_EXPONENT.get(currency.upper(), 2)


def exact(value: str | int | Decimal) -> Decimal:
    """``value`` as a Decimal that ``NUMERIC(38, 12)`` holds without change.

    Raises MoneyError for floats (they already lost digits), NaN, infinities, and values with more than 12
    decimal places or 26 digits before the point.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise MoneyError(f"{value!r} is a {type(value).__name__}, not an exact number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        why = "finite" if _NOT_FINITE.fullmatch(value) else "a number"
        raise MoneyError(f"{value[:80]!r} is not {why}")
    number = Decimal(value)
    if not number.is_finite():
        raise MoneyError(f"{value!r} is not finite")
    if number.copy_abs() >= LIMIT:  # abs() would round to the 28 digits of Python's default context
        raise MoneyError(f"{str(number)[:80]} has more than 26 digits before the point")
    with localcontext(EXACT):
        kept = number.quantize(Decimal(1).scaleb(-SCALE))
        if kept != number:
            raise MoneyError(f"{str(number)[:80]} has more than {SCALE} decimal places")
        return kept.normalize() + 0 if number else Decimal(0)


def total(values: Iterable[Decimal]) -> Decimal:
    """The exact sum; Python's own ``sum`` rounds to 28 digits, and ``NUMERIC(38, 12)`` holds 38."""
    with localcontext(EXACT):
        return sum(values, Decimal(0))


def rounded(amount: Decimal, digits: int) -> Decimal:
    """``amount`` with ``digits`` decimal places, half away from zero: the only rounding clawbill knows."""
    with localcontext(EXACT):
        return amount.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)


def invoice_amount(amount: Decimal, currency: str) -> Decimal:
    """What an invoice line shows for the exact ``amount``: rounded once, to the currency's minor unit."""
    return rounded(amount, exponent(currency))


def from_minor(minor: Decimal | int, currency: str) -> Decimal:
    """Major units of an amount in ISO minor units (OpenClaw's ``amount_cents``): 250 → 2.5 USD, 80 → 80 JPY."""
    return _shifted(minor, exponent(currency))


def from_stripe(minor: Decimal | int, currency: str) -> Decimal:
    """Major units of an ``amount`` in Stripe's own minor units: ISK 500 → 5."""
    return _shifted(minor, stripe_exponent(currency))


def _shifted(minor: Decimal | int, digits: int) -> Decimal:
    with localcontext(EXACT) as context:
        context.traps[Inexact] = True
        try:
            return Decimal(minor).scaleb(-digits)
        except Inexact:
            raise MoneyError(f"{str(minor)[:80]} has more digits than the ledger holds") from None


def plain(value: Decimal) -> str:
    """``value`` as a decimal string for people and JSON: no exponent, no trailing zeros, never ``-0``."""
    with localcontext(EXACT):
        text = format(value.normalize() + 0, "f")
    return "0" if text in ("-0", "") else text
