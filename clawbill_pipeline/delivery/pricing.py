"""A catalogue price in Stripe's terms: what a metered monthly price is created with. Pure; no call to Stripe here.

Stripe counts in whole units of a meter and in the currency's minor unit with at most 12 decimal places
(docs.stripe.com/api/prices/create). What it cannot price exactly is refused: approximating money is not an option.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

from clawbill_pipeline.catalog.prices import Graduated, Package, PerUnit, Price, Tier, Volume
from clawbill_pipeline.money import EXACT, MICRO, plain, stripe_exponent

#: Decimal places of ``unit_amount_decimal``.
_PLACES = 12


class Unpriceable(ValueError):
    """Stripe has no price that charges the same. The message says what is in the way and what to do."""


def amount_terms(currency: str) -> dict[str, Any]:
    """The price of one millionth of ``currency``'s major unit: what ``bill_by: amount`` sends is the amount itself."""
    return {"billing_scheme": "per_unit", "unit_amount_decimal": _minor(1 / MICRO, currency, "one millionth")}


def quantity_terms(price: Price, currency: str, decimals: int) -> dict[str, Any]:
    """The terms by which Stripe prices quantities that are sent times ``10 ** decimals``. Raises Unpriceable."""
    with localcontext(EXACT):
        _refuse_extras(price)
        scale = Decimal(10) ** decimals
        match price:
            case PerUnit():
                unit = price.unit_amount / (price.per * scale)
                return {"billing_scheme": "per_unit", "unit_amount_decimal": _minor(unit, currency, "unit_amount")}
            case Package():
                if price.round == "half_up":
                    raise _refusal("round: half_up", "Stripe rounds packages up or down")
                return {
                    "billing_scheme": "per_unit",
                    "unit_amount_decimal": _minor(price.package_amount, currency, "package_amount"),
                    "transform_quantity": {
                        "divide_by": _whole(price.package_size * scale, "package_size"),
                        "round": price.round,
                    },
                }
            case Graduated() | Volume():
                return {
                    "billing_scheme": "tiered",
                    "tiers_mode": price.model,
                    "tiers": [_tier(tier, price.per, scale, currency) for tier in price.tiers],
                }
        raise _refusal(f"model: {price.model}", "Stripe prices per_unit, graduated, volume and package")


def _refuse_extras(price: Price) -> None:
    for name in ("discounts", "maximum", "minimum", "convert", "included", "increment", "flat_amount", "prorate"):
        if getattr(price, name, None):
            raise _refusal(name, "a Stripe price has no such thing")
    if not price.charge_flat_on_zero and any(tier.flat_amount for tier in getattr(price, "tiers", ())[:1]):
        raise _refusal("charge_flat_on_zero: false", "Stripe charges the first tier's flat amount on no usage too")


def _tier(tier: Tier, per: Decimal, scale: Decimal, currency: str) -> dict[str, Any]:
    if tier.maximum is not None:
        raise _refusal("a tier's maximum", "a Stripe tier has no such thing")
    return {
        "up_to": "inf" if tier.up_to is None else _whole(tier.up_to * scale, "up_to"),
        "unit_amount_decimal": _minor(tier.unit_amount / (per * scale), currency, "a tier's unit_amount"),
        "flat_amount_decimal": plain(
            Decimal(_whole(tier.flat_amount.scaleb(stripe_exponent(currency)), "a tier's flat_amount in minor units"))
        ),
    }


def _minor(amount: Decimal, currency: str, what: str) -> str:
    with localcontext(EXACT):
        minor = amount.scaleb(stripe_exponent(currency))
        kept = minor.quantize(Decimal(1).scaleb(-_PLACES))
        if kept != minor:
            raise _refusal(f"{what} {amount.normalize()}", f"Stripe keeps {_PLACES} decimal places of a minor unit")
        return plain(kept)


def _whole(value: Decimal, what: str) -> int:
    if value != value.to_integral_value():
        raise _refusal(f"{what} {plain(value)}", "Stripe needs a whole number there; raise quantity_decimals")
    return int(value)


def _refusal(what: str, why: str) -> Unpriceable:
    return Unpriceable(f"{what}: {why}; use bill_by: amount, which bills any price exactly")


def described(terms: dict[str, Any]) -> str:
    """The terms for people, in one line."""
    if terms["billing_scheme"] == "per_unit":
        divided = terms.get("transform_quantity")
        size = f" a package of {divided['divide_by']}" if divided else " a unit"
        return f"{terms['unit_amount_decimal']} minor units{size}"
    return f"{terms['tiers_mode']}, {len(terms['tiers'])} tiers"
