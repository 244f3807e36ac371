"""Exact decimal arithmetic: sums and products never round, quotients only where no decimal can hold them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, Inexact, localcontext

from clawbill_pipeline.catalog.prices import ONE, Rounding
from clawbill_pipeline.money import EXACT, SCALE
from clawbill_pipeline.rating.engine.values import RatingError

_CONTEXT = EXACT.copy()
_CONTEXT.traps[Inexact] = True


@contextmanager
def exactly() -> Iterator[None]:
    """Arithmetic that raises RatingError rather than lose a digit. All of this package's functions run in it."""
    with localcontext(_CONTEXT):
        try:
            yield
        except Inexact:
            raise RatingError(f"the exact amount has more than {EXACT.prec} digits") from None


def whole(value: Decimal, of: Decimal, rounding: Rounding) -> Decimal:
    """How many whole ``of`` are in ``value``; what is left over is rounded by magnitude, half away from zero."""
    count, rest = divmod(abs(value), of)
    if (rounding == "up" and rest) or (rounding == "half_up" and 2 * rest >= of):
        count += 1
    return count.copy_sign(value)


def quotient(value: Decimal, by: Decimal) -> Decimal:
    """``value / by``, exact where the division ends, else to the ledger's 12 places, half away from zero.

    Divide last: prices by the third of an hour stay exact for every quantity that makes them so.
    """
    if by == ONE:
        return value
    try:
        return value / by
    except Inexact:
        return rounded_quotient(value, by, SCALE)


def rounded_quotient(value: Decimal, by: Decimal, places: int) -> Decimal:
    """``value / by`` to ``places`` decimal places, half away from zero, in a single rounding."""
    return whole(value.scaleb(places), by, "half_up").scaleb(-places)
