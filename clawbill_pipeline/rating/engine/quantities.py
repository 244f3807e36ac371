"""Quantities that are more than a sum of events, for prices of capacity held over time."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from clawbill_pipeline.catalog.prices import ZERO
from clawbill_pipeline.money import SCALE
from clawbill_pipeline.rating.engine.arithmetic import exactly, rounded_quotient
from clawbill_pipeline.rating.engine.values import RatingError


def weighted_sum(
    deltas: Iterable[tuple[Decimal, Decimal]], period: Decimal, *, initial: Decimal = ZERO, places: int = SCALE
) -> Decimal:
    """The mean over a period of a level that changes: GB held, seats taken. Rounded once, to ``places``.

    ``deltas`` are ``(seconds since the period's start, change of the level)`` in any order, ``period`` its seconds,
    ``initial`` the level at its start. A change outside the period raises RatingError.
    """
    level, since, area = initial, ZERO, ZERO
    with exactly():
        for at, delta in sorted(deltas):
            if not 0 <= at <= period:
                raise RatingError(f"a change at second {at:f} lies outside the period of {period:f} seconds")
            area += level * (at - since)
            level, since = level + delta, at
        return rounded_quotient(area + level * (period - since), period, places)
