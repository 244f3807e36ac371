"""What a quantity costs by a Stripe price: the lines an invoice shows. Pure; reads the price object, writes nothing.

Each line is quantity x unit_amount_decimal, rounded once, half away from zero, to the unit Stripe charges in.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from clawbill_pipeline.money import exponent, rounded, stripe_exponent


@dataclass(frozen=True, slots=True)
class PricedLine:
    """One invoice line: its ``quantity``, ``amount`` in Stripe's minor units, the unit price, and which tier it is."""

    quantity: int
    amount: int
    unit_amount_decimal: Decimal
    note: str = ""


def minor_amount(exact: Decimal, currency: str) -> int:
    """``exact`` minor units as Stripe charges them; ISK and UGX have no cents, so theirs end in 00."""
    return int(rounded(exact, exponent(currency) - stripe_exponent(currency)))


def priced_lines(price: dict[str, Any], quantity: int) -> list[PricedLine]:
    """The lines of ``quantity`` units by ``price``. A negative total bills as 0.

    Per unit: one line. Graduated: a line for each tier reached, and one for its flat fee. Volume: the tier that the
    whole quantity falls in. The first tier's flat fee is charged on no usage too. Tiers are ``up_to`` inclusive.
    """
    quantity = max(quantity, 0)
    currency: str = price["currency"]
    if price["billing_scheme"] == "per_unit":
        return [_line(_transformed(price, quantity), quantity, Decimal(price["unit_amount_decimal"]), currency)]
    if price["tiers_mode"] == "volume":
        number, tier = next(
            (n, t) for n, t in enumerate(price["_tiers"], 1) if t["up_to"] is None or quantity <= t["up_to"]
        )
        return _tier_lines(number, tier, quantity, currency)
    lines: list[PricedLine] = []
    floor = 0
    for number, tier in enumerate(price["_tiers"], 1):
        top = quantity if tier["up_to"] is None else min(quantity, tier["up_to"])
        lines += _tier_lines(number, tier, top - floor, currency)
        if quantity <= top:
            break
        floor = top
    return lines


def _transformed(price: dict[str, Any], quantity: int) -> int:
    rule: dict[str, Any] | None = price["transform_quantity"]
    if rule is None:
        return quantity
    whole, rest = divmod(quantity, int(rule["divide_by"]))
    return whole + (1 if rest and rule["round"] == "up" else 0)


def _tier_lines(number: int, tier: dict[str, Any], quantity: int, currency: str) -> list[PricedLine]:
    unit = Decimal(tier["unit_amount_decimal"] or 0)
    lines = [_line(quantity, quantity, unit, currency, f"Tier {number}")]
    flat = Decimal(tier["flat_amount_decimal"] or 0)
    if flat:
        # Quantity 0: the fee is no usage, and the quantities of a price's lines add up to the usage.
        lines.append(PricedLine(0, minor_amount(flat, currency), flat, f"Tier {number} flat fee"))
    return lines


def _line(billed: int, shown: int, unit: Decimal, currency: str, note: str = "") -> PricedLine:
    return PricedLine(shown, minor_amount(billed * unit, currency), unit, note)
