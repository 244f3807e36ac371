"""A price as a table: the ranges of the quantity in which it is linear, or climbs in steps. For rating by the million.

Not every price has such a table: those that don't (a quotient that no decimal holds, a conversion that rounds, a tiered
discount, a tier with a cap of its own) are None here, and are rated one by one by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from clawbill_pipeline.catalog import prices
from clawbill_pipeline.catalog.prices import (
    ONE,
    ZERO,
    Discount,
    FixedDiscount,
    PercentageDiscount,
    Price,
    Rounding,
    Simple,
)
from clawbill_pipeline.rating.engine import RatingError, Usage, rate
from clawbill_pipeline.rating.engine.arithmetic import exactly, whole


@dataclass(frozen=True, slots=True)
class Piece:
    """Quantities above ``above`` up to ``up_to`` (None: all) cost ``base + quantity * unit``.

    With a ``step`` it is ``base + n * unit`` instead, for the ``n`` steps (whole by ``rounding``) above ``start``.
    """

    above: Decimal
    up_to: Decimal | None
    base: Decimal
    unit: Decimal
    step: Decimal | None = None
    start: Decimal = ZERO
    rounding: Rounding = "up"


@dataclass(frozen=True, slots=True)
class Pieces:
    """All pieces of a price, for quantities above 0; ``zero`` is the amount of none. Then the limits, in this order.

    ``floor`` is None where no amount can fall below zero or a minimum.
    """

    pieces: tuple[Piece, ...]
    zero: Decimal
    cap: Decimal | None
    floor: Decimal | None


def pieces_of(price: Price, part: str | None = None) -> Pieces | None:
    """The table of ``price`` (of its ``part``, for a matrix or time of use), or None where it has none."""
    try:
        zero = rate(price, Usage(ZERO, part=part)).amount
        with exactly():
            return _limited(price, _inner(price, part), zero)
    except (RatingError, _NoTable):
        return None  # a quotient that does not end is a RatingError too, in exact arithmetic


class _NoTable(Exception):
    """The price is not made of lines and steps."""


def _inner(price: Price, part: str | None) -> list[Piece]:
    if isinstance(price, prices.Capacity):
        return list(_capacity(price))
    if not isinstance(price, prices.Matrix | prices.TimeOfUse):
        return list(_simple(price))
    named = price.cells if isinstance(price, prices.Matrix) else {band.name: band.price for band in price.bands}
    cell = named.get(part or "", price.otherwise)
    if cell is None or cell.discounts or cell.maximum is not None or cell.minimum is not None:
        raise _NoTable
    flat = price.flat_amount if isinstance(price, prices.TimeOfUse) else ZERO
    return [replace(piece, base=piece.base + flat) for piece in _simple(cell)]


def _limited(price: Price, inner: list[Piece], zero: Decimal) -> Pieces:
    keep, off = _discount(price.discounts)
    pieces = tuple(replace(piece, base=piece.base * keep - off, unit=piece.unit * keep) for piece in inner)
    floor = price.minimum or (ZERO if off else None)
    return Pieces(pieces, zero, price.maximum, floor)


def _discount(discounts: Iterable[Discount]) -> tuple[Decimal, Decimal]:
    """``(keep, off)``: percentages and fixed discounts in any order leave ``amount * keep - off``, never below zero."""
    keep, off = ONE, ZERO
    for discount in discounts:
        if isinstance(discount, PercentageDiscount):
            left = 1 - discount.percent.scaleb(-2)
            keep, off = keep * left, off * left
        elif isinstance(discount, FixedDiscount):
            off += discount.amount
        else:
            raise _NoTable
    return keep, off


def _simple(price: Simple) -> Iterator[Piece]:
    """The model's pieces, moved from priced units to metered ones: ``units = quantity * factor - included``."""
    rule = price.convert
    if rule is not None and rule.round is not None:
        raise _NoTable
    times, by = (ONE, ONE) if rule is None else (rule.multiply_by or ONE, rule.divide_by or ONE)
    pieces = list(_MODELS[type(price)](price))

    def metered(units: Decimal) -> Decimal:
        return (units + price.included) * by / times

    if price.included:
        first = pieces[0]
        # Nothing is left of these quantities, yet they are usage: flat amounts are due.
        yield Piece(ZERO, metered(ZERO), first.base, ZERO)
    for piece in pieces:
        up_to = None if piece.up_to is None else metered(piece.up_to)
        if piece.step is None:
            slope = piece.unit * times / by
            yield Piece(metered(piece.above), up_to, piece.base - price.included * piece.unit, slope)
        else:
            step, start = piece.step * by / times, metered(piece.start)
            yield Piece(metered(piece.above), up_to, piece.base, piece.unit, step, start, piece.rounding)


def _per_unit(price: prices.PerUnit) -> Iterator[Piece]:
    if price.increment is None:
        yield Piece(ZERO, None, price.flat_amount, price.unit_amount / price.per)
    else:
        unit = price.increment * price.unit_amount / price.per
        yield Piece(ZERO, None, price.flat_amount, unit, price.increment)


def _dynamic(price: prices.Dynamic) -> Iterator[Piece]:
    yield Piece(ZERO, None, ZERO, price.multiplier)


def _percentage(price: prices.Percentage) -> Iterator[Piece]:
    if price.fixed_per_event or price.min_per_event is not None or price.max_per_event is not None:
        raise _NoTable
    yield Piece(ZERO, None, ZERO, price.percent.scaleb(-2))


def _package(price: prices.Package) -> Iterator[Piece]:
    yield Piece(ZERO, None, ZERO, price.package_amount, price.package_size, ZERO, price.round)


def _tiers(tiers: Iterable[Any], per: Decimal, *, all_at_one_price: bool) -> Iterator[Piece]:
    above, before = ZERO, ZERO
    for tier in tiers:
        if getattr(tier, "maximum", None) is not None:
            raise _NoTable
        unit = (tier.percent.scaleb(-2) if isinstance(tier, prices.PercentTier) else tier.unit_amount) / per
        base = tier.flat_amount if all_at_one_price else before + tier.flat_amount - above * unit
        yield Piece(above, tier.up_to, base, unit)
        if tier.up_to is not None:
            above, before = tier.up_to, base + tier.up_to * unit


def _graduated(price: prices.Graduated) -> Iterator[Piece]:
    return _tiers(price.tiers, price.per, all_at_one_price=False)


def _volume(price: prices.Volume) -> Iterator[Piece]:
    return _tiers(price.tiers, price.per, all_at_one_price=True)


def _graduated_percentage(price: prices.GraduatedPercentage) -> Iterator[Piece]:
    return _tiers(price.tiers, ONE, all_at_one_price=False)


def _block(price: prices.Block) -> Iterator[Piece]:
    above, before = ZERO, ZERO
    for tier in price.tiers:
        start, base = (ZERO, ZERO) if price.mode == "volume" else (above, before)
        yield Piece(above, tier.up_to, base, tier.block_amount, tier.block_size, start)
        if tier.up_to is not None:
            before += whole(tier.up_to - above, tier.block_size, "up") * tier.block_amount
            above = tier.up_to


def _capacity(price: prices.Capacity) -> Iterator[Piece]:
    if len({unit for tier in price.tiers for unit in tier.limits}) > 1:
        raise _NoTable
    above = ZERO
    for tier in price.tiers:
        up_to = next(iter(tier.limits.values()), None)
        if up_to != above:
            yield Piece(above, up_to, tier.amount, ZERO)
        above = up_to or ZERO


_MODELS: dict[type, Callable[[Any], Iterator[Piece]]] = {
    prices.PerUnit: _per_unit,
    prices.Dynamic: _dynamic,
    prices.Percentage: _percentage,
    prices.Package: _package,
    prices.Graduated: _graduated,
    prices.Volume: _volume,
    prices.GraduatedPercentage: _graduated_percentage,
    prices.Block: _block,
}
