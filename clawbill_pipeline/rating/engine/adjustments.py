"""What happens to an amount after its model: discounts, limits, proration, true-ups. In major units, exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from clawbill_pipeline.catalog.prices import (
    ONE,
    ZERO,
    Capacity,
    Discount,
    FixedDiscount,
    Graduated,
    GraduatedPercentage,
    Matrix,
    PercentageDiscount,
    PercentTier,
    Price,
    Tier,
    TieredDiscount,
    TimeOfUse,
    Volume,
)
from clawbill_pipeline.rating.engine.arithmetic import exactly, quotient
from clawbill_pipeline.rating.engine.values import Line, Rating, Share

WHOLE = Share(ONE, ONE)


def discounted(amount: Decimal, discounts: Iterable[Discount]) -> Rating:
    """``amount`` with ``discounts`` taken off in their order, each from what the ones before it have left."""
    with exactly():
        lines = (Line("usage", amount), *discount_lines(amount, discounts))
        return Rating(total(lines), lines)


def prorated(amount: Decimal, share: Share) -> Decimal:
    """``amount`` for a share of the period; to the ledger's 12 places where the division does not end."""
    with exactly():
        return quotient(amount * share.part, share.whole)


def price_for_share(price: Price, share: Share) -> Price:
    """``price`` with what belongs to the period and not to usage for a share of it: flat amounts, included units,
    maximum and minimum, also of its tiers, cells and bands. Nothing else changes."""
    if share is WHOLE:
        return price
    with exactly():
        return _shrunk(price, share)


def _shrunk(price: Price, share: Share) -> Price:
    changes: dict[str, Any] = {}
    for name in ("flat_amount", "included", "maximum", "minimum"):
        if (amount := getattr(price, name, None)) is not None:
            changes[name] = quotient(amount * share.part, share.whole)
    match price:
        case Capacity():
            amounts = (quotient(tier.amount * share.part, share.whole) for tier in price.tiers)
            tiers = zip(price.tiers, amounts, strict=True)
            changes["tiers"] = tuple(tier.model_copy(update={"amount": amount}) for tier, amount in tiers)
        case Graduated() | Volume() | GraduatedPercentage():
            changes["tiers"] = tuple(_flat_shrunk(tier, share) for tier in price.tiers)
        case Matrix():
            changes["cells"] = {name: _shrunk(cell, share) for name, cell in price.cells.items()}
        case TimeOfUse():
            changes["bands"] = tuple(
                band.model_copy(update={"price": _shrunk(band.price, share)}) for band in price.bands
            )
    if (otherwise := getattr(price, "otherwise", None)) is not None:
        changes["otherwise"] = _shrunk(otherwise, share)
    return price.model_copy(update=changes)


def _flat_shrunk(tier: Tier | PercentTier, share: Share) -> Tier | PercentTier:
    return tier.model_copy(update={"flat_amount": quotient(tier.flat_amount * share.part, share.whole)})


def true_up(minimum: Decimal, invoiced: Decimal) -> Decimal:
    """What is missing to ``minimum``. Give the rounded line: that is what a customer compares with the commitment."""
    with exactly():
        return max(minimum - invoiced, ZERO)


def total(lines: Iterable[Line]) -> Decimal:
    return sum((line.amount for line in lines), ZERO)


def discount_lines(amount: Decimal, discounts: Iterable[Discount]) -> Iterator[Line]:
    """Credits pass undiscounted but for plain percentages: less is given back for what was bought at a discount."""
    for discount in discounts:
        off = _off(amount, discount)
        amount -= off
        yield Line("discount", -off, name=discount.name or discount.kind)


def limit_lines(amount: Decimal, maximum: Decimal | None, minimum: Decimal | None) -> Iterator[Line]:
    """The line that brings ``amount`` down to ``maximum`` or up to ``minimum``, if one is needed."""
    if maximum is not None and amount > maximum:
        yield Line("maximum", maximum - amount)
    elif minimum is not None and amount < minimum:
        yield Line("minimum", minimum - amount)


def _off(amount: Decimal, discount: Discount) -> Decimal:
    if isinstance(discount, PercentageDiscount):
        return _percent(amount, discount.percent)
    if isinstance(discount, FixedDiscount):
        return min(discount.amount, max(amount, ZERO))
    return _tiered(max(amount, ZERO), discount)


def _tiered(amount: Decimal, discount: TieredDiscount) -> Decimal:
    start, off = ZERO, ZERO
    for tier in discount.tiers:
        last = tier.up_to is None or amount <= tier.up_to
        end = amount if tier.up_to is None else min(amount, tier.up_to)
        if last and discount.mode == "volume":
            return _percent(amount, tier.percent)
        off += _percent(end - start, tier.percent)
        if last:
            break
        start = end
    return off


def _percent(amount: Decimal, percent: Decimal) -> Decimal:
    return amount * percent.scaleb(-2)
