"""What each simple price model charges for a number of units, before discounts and limits. One function a model.

Units come as ``units / per``: a conversion that does not end as a decimal (bytes by the third) is divided out last,
so ``per`` is 1 but for conversions that keep parts of a unit. ``flat`` says whether flat amounts are due at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from clawbill_pipeline.catalog import prices
from clawbill_pipeline.catalog.prices import ONE, ZERO, Simple, Tier
from clawbill_pipeline.rating.engine.arithmetic import quotient, whole
from clawbill_pipeline.rating.engine.values import Line, RatingError, Usage

HUNDRED = Decimal(100)


def converted(price: Simple, quantity: Decimal) -> tuple[Decimal, Decimal]:
    """``(units, per)`` of a metered quantity: the price's units are ``units / per``."""
    rule = price.convert
    if rule is None:
        return quantity, ONE
    units, per = quantity * (rule.multiply_by or ONE), rule.divide_by or ONE
    if rule.round is None:
        return units, per
    return whole(units.scaleb(rule.decimals), per, rule.round).scaleb(-rule.decimals), ONE


def charge(price: Simple, usage: Usage) -> list[Line]:
    """The lines of ``usage``, before discounts and limits."""
    if usage.quantity < 0 and not isinstance(price, prices.PerUnit | prices.Dynamic | prices.Percentage):
        raise RatingError(f"a {price.model} price has no amount for the negative quantity {usage.quantity:f}")
    if isinstance(price, prices.Percentage):
        return list(_percentage(price, usage))
    units, per = converted(price, usage.quantity)
    flat = usage.quantity > 0 or (price.charge_flat_on_zero and usage.quantity == 0)
    return list(_MODELS[type(price)](price, _beyond(units, price.included * per), per, flat))


def _beyond(units: Decimal, included: Decimal) -> Decimal:
    return max(units - included, ZERO) if included and units > 0 else units


def _line(units: Decimal, unit_amount: Decimal, per: Decimal, tier: int | None = None) -> Line:
    return Line("usage", quotient(units * unit_amount, per), units, unit_amount, per, tier)


def _per_unit(price: prices.PerUnit, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    if price.increment is not None:
        units, per = whole(units, price.increment * per, "up") * price.increment, ONE
    if units:
        yield _line(units, price.unit_amount, per * price.per)
    if flat and price.flat_amount:
        yield Line("flat", price.flat_amount)


def _dynamic(price: prices.Dynamic, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    if units:
        yield _line(units, price.multiplier, per)


def _graduated(price: prices.Graduated, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    for number, tier, part in _slices(price.tiers, units, per):
        yield from _tier(number, tier, part, per * price.per, flat)


def _volume(price: prices.Volume, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    number, tier = _reached(price.tiers, units, per)
    yield from _tier(number, tier, units, per * price.per, flat)


def _graduated_percentage(
    price: prices.GraduatedPercentage, units: Decimal, per: Decimal, flat: bool
) -> Iterator[Line]:
    for number, tier, part in _slices(price.tiers, units, per):
        if part:
            yield _line(part, tier.percent.scaleb(-2), per, number)
        if flat and tier.flat_amount:
            yield Line("flat", tier.flat_amount, tier=number)


def _package(price: prices.Package, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    packages = whole(units, price.package_size * per, price.round)
    if packages:
        yield _line(packages, price.package_amount, ONE)


def _block(price: prices.Block, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    if price.mode == "volume":
        slices = iter([(*_reached(price.tiers, units, per), units)])
    else:
        slices = _slices(price.tiers, units, per)
    for number, tier, part in slices:
        blocks = whole(part, tier.block_size * per, "up")
        if blocks:
            yield _line(blocks, tier.block_amount, ONE, number)


def _tier(number: int, tier: Tier, units: Decimal, per: Decimal, flat: bool) -> Iterator[Line]:
    lines = [_line(units, tier.unit_amount, per, number)] if units else []
    if flat and tier.flat_amount:
        lines.append(Line("flat", tier.flat_amount, tier=number))
    yield from lines
    over = sum((line.amount for line in lines), ZERO) - tier.maximum if tier.maximum is not None else ZERO
    if over > 0:
        yield Line("maximum", -over, tier=number)


def _slices(tiers: tuple[Any, ...], units: Decimal, per: Decimal) -> Iterator[tuple[int, Any, Decimal]]:
    """Each tier that ``units`` reach, with the units in it. Zero units reach the first tier with nothing."""
    start = ZERO
    for number, tier in enumerate(tiers, 1):
        end = units if tier.up_to is None else min(units, tier.up_to * per)
        yield number, tier, end - start
        if end == units:
            return
        start = end


def _reached(tiers: tuple[Any, ...], units: Decimal, per: Decimal) -> tuple[int, Any]:
    """The one tier that ``units`` fall into, with its number."""
    return next((n, tier) for n, tier in enumerate(tiers, 1) if tier.up_to is None or units <= tier.up_to * per)


def _percentage(price: prices.Percentage, usage: Usage) -> Iterator[Line]:
    if usage.events is not None:
        return _percentage_of_each(price, usage.events)
    if price.min_per_event is not None or price.max_per_event is not None:
        raise RatingError("a percentage with limits an event needs the amount of each event, not only their sum")
    return _percentage_of_sum(price, usage)


def _percentage_of_sum(price: prices.Percentage, usage: Usage) -> Iterator[Line]:
    units, per = converted(price, usage.quantity)
    units = _beyond(units, price.included * per)
    if units:
        yield _line(units, price.percent.scaleb(-2), per)
    if price.fixed_per_event and usage.quantity:
        if usage.event_count is None:
            raise RatingError("a percentage with a fixed fee an event needs the number of events")
        charged = max(usage.event_count - price.free_events, 0)
        if charged:
            yield _fees(price, charged)


def _fees(price: prices.Percentage, events: int) -> Line:
    return Line("usage", events * price.fixed_per_event, Decimal(events), price.fixed_per_event, name="per event")


def _percentage_of_each(price: prices.Percentage, events: tuple[Decimal, ...]) -> Iterator[Line]:
    """Event by event: the first ones are free as long as the included amount and the free events last, of those that
    the price has."""
    included = price.included
    charged, base, raised, cut = 0, ZERO, ZERO, ZERO
    for number, event in enumerate(events, 1):
        units, per = converted(price, event)
        value = quotient(units, per)
        if price.included:
            taken = min(included, max(value, ZERO)) if number <= (price.free_events or number) else ZERO
            if taken and taken == value:
                included -= taken
                continue
            included, value = included - taken, value - taken
        elif number <= price.free_events:
            continue
        amount = value * price.percent / HUNDRED + price.fixed_per_event
        charged, base = charged + 1, base + value
        if price.min_per_event is not None and amount < price.min_per_event:
            raised += price.min_per_event - amount
        elif price.max_per_event is not None and amount > price.max_per_event:
            cut += amount - price.max_per_event
    if base:
        yield _line(base, price.percent.scaleb(-2), ONE)
    if charged and price.fixed_per_event:
        yield _fees(price, charged)
    if raised:
        yield Line("minimum", raised, name="per event")
    if cut:
        yield Line("maximum", -cut, name="per event")


_MODELS: dict[type, Callable[[Any, Decimal, Decimal, bool], Iterator[Line]]] = {
    prices.PerUnit: _per_unit,
    prices.Dynamic: _dynamic,
    prices.Graduated: _graduated,
    prices.Volume: _volume,
    prices.GraduatedPercentage: _graduated_percentage,
    prices.Package: _package,
    prices.Block: _block,
}
