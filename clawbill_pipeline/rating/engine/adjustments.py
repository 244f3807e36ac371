"""What happens to an amount after its model: discounts, limits, proration, true-ups. In major units, exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

from clawbill_pipeline.catalog.prices import ONE, ZERO, Discount, FixedDiscount, PercentageDiscount, TieredDiscount
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
        return scaled(amount, share)


def true_up(minimum: Decimal, invoiced: Decimal) -> Decimal:
    """What is missing to ``minimum``. Give the rounded line: that is what a customer compares with the commitment."""
    with exactly():
        return max(minimum - invoiced, ZERO)


def total(lines: Iterable[Line]) -> Decimal:
    return sum((line.amount for line in lines), ZERO)


def scaled(amount: Decimal, share: Share) -> Decimal:
    return amount if share is WHOLE else quotient(amount * share.part, share.whole)


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
