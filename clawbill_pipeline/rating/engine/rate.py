"""``rate``: a price and usage to an amount. And what is built on it: buckets, increments, corrections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from clawbill_pipeline.catalog.prices import ZERO, Capacity, Matrix, Price, Simple, TimeOfUse
from clawbill_pipeline.rating.engine.adjustments import WHOLE, discount_lines, limit_lines, price_for_share, total
from clawbill_pipeline.rating.engine.arithmetic import exactly
from clawbill_pipeline.rating.engine.charges import charge
from clawbill_pipeline.rating.engine.values import Line, Rating, RatingError, Share, Usage


def rate(price: Price, usage: Usage | Decimal, *, share: Share = WHOLE, credit: Decimal = ZERO) -> Rating:
    """The exact amount of ``usage`` at ``price``.

    ``share`` prorates what belongs to the period and not to usage: flat amounts, included units, minimum and maximum.
    ``credit`` is a prepaid balance that is drawn down last. Raises RatingError where the price needs to know more.
    """
    usage = Usage(usage) if isinstance(usage, Decimal) else usage
    price = price_for_share(price, share)
    with exactly():
        lines = _rated(price, usage)
        if credit:
            lines.append(Line("credit", -min(credit, max(total(lines), ZERO))))
        return Rating(total(lines), tuple(lines), price.maximum, price.minimum)


def rate_buckets(price: Price, buckets: Iterable[Usage | Decimal]) -> Rating:
    """Each time bucket rated by itself, then summed: tiers start anew in every bucket."""
    lines = tuple(line for bucket in buckets for line in rate(price, bucket).lines)
    with exactly():
        return Rating(total(lines), lines)


def rate_increment(price: Price, before: Decimal, added: Decimal, *, billed: Decimal | None = None) -> Rating:
    """What ``added`` units cost on top of ``before`` units of the same period: increments sum to the rate of the whole.

    Without ``billed`` it is the difference of two ratings, where ``before = 0`` means that nothing was rated yet. With
    it, that is what the period's earlier bills came to, and the price's limits count it in.
    """
    if billed is None:
        with exactly():
            quantity = before + added
        lines = rate(price, quantity).lines
        return _difference(lines, rate(price, before).lines if before else ())
    limitless = price.model_copy(update={"maximum": None, "minimum": None})
    increment = rate_increment(limitless, before, added)
    with exactly():
        lines = (*increment.lines, *limit_lines(billed + increment.amount, price.maximum, price.minimum))
        return Rating(total(lines), lines)


def correction(price: Price, usage: Usage | Decimal, billed: Decimal) -> Rating:
    """What is still to be booked once ``usage`` is known in full: negative where a late unit reprices all of them."""
    rating = rate(price, usage)
    with exactly():
        lines = (*rating.lines, Line("billed", -billed))
        return Rating(total(lines), lines)


def _rated(price: Price, usage: Usage) -> list[Line]:
    if isinstance(price, Matrix):
        lines = [line for part, quantity in _cells(price, usage) for line in _part(price, part, quantity)]
    elif isinstance(price, TimeOfUse):
        lines = [line for part, quantity in _bands(price, usage) for line in _part(price, part, quantity)]
        if price.flat_amount and (usage.quantity > 0 or price.charge_flat_on_zero):
            lines.append(Line("flat", price.flat_amount))
    elif isinstance(price, Capacity):
        lines = [_capacity(price, usage)]
    else:
        lines = charge(price, usage)
    lines.extend(discount_lines(total(lines), price.discounts))
    lines.extend(limit_lines(total(lines), price.maximum, price.minimum))
    return lines


def _part(price: Matrix | TimeOfUse, part: str, quantity: Decimal) -> list[Line]:
    return [replace(line, part=part) for line in _rated(_price_of(price, part), Usage(quantity))]


def _price_of(price: Matrix | TimeOfUse, part: str) -> Simple:
    named = price.cells if isinstance(price, Matrix) else {band.name: band.price for band in price.bands}
    found = named.get(part, price.otherwise)
    if found is None:
        raise RatingError(f"the {price.model} price has no price for {part!r}; there is {', '.join(named)}")
    return found


def _cells(price: Matrix, usage: Usage) -> Iterable[tuple[str, Decimal]]:
    if usage.parts is not None:
        return usage.parts.items()
    if usage.part is None:
        raise RatingError(f"a matrix price needs the dimensions, as in service:{next(iter(price.cells))}")
    return [(usage.part, usage.quantity)]


def _bands(price: TimeOfUse, usage: Usage) -> Iterable[tuple[str, Decimal]]:
    if usage.parts is not None:
        return usage.parts.items()
    band = usage.part or (usage.at and price.band_at(usage.at))
    if not band:
        raise RatingError(f"a time-of-use price needs the band, as in service:{price.bands[0].name}")
    return [(band, usage.quantity)]


def _capacity(price: Capacity, usage: Usage) -> Line:
    units = {unit for tier in price.tiers for unit in tier.limits}
    if usage.parts is not None:
        used = usage.parts
    elif len(units) <= 1:
        used = dict.fromkeys(units, usage.quantity)
    else:
        raise RatingError(f"a capacity price needs the quantity of each unit: {', '.join(sorted(units))}")
    number, tier = next(
        (number, tier)
        for number, tier in enumerate(price.tiers, 1)
        if all(used.get(unit, ZERO) <= most for unit, most in tier.limits.items())
    )
    due = price.charge_flat_on_zero or any(used.values())
    return Line("flat", tier.amount if due else ZERO, tier=number)


def _difference(lines: tuple[Line, ...], before: tuple[Line, ...]) -> Rating:
    """``lines`` less ``before``, matched by what they are for; what came to nothing is left out."""
    merged: dict[tuple[object, ...], Line] = {}
    with exactly():
        for line in (*lines, *map(_negative, before)):
            key = (line.kind, line.tier, line.part, line.name, line.unit_amount)
            merged[key] = _joined(merged[key], line) if key in merged else line
        kept = tuple(line for line in merged.values() if line.amount or line.quantity)
        return Rating(total(kept), kept)


def _negative(line: Line) -> Line:
    return replace(line, amount=-line.amount, quantity=None if line.quantity is None else -line.quantity)


def _joined(one: Line, other: Line) -> Line:
    quantity = None if one.quantity is None or other.quantity is None else one.quantity + other.quantity
    return replace(one, amount=one.amount + other.amount, quantity=quantity)
