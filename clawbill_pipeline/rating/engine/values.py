"""What the engine takes and gives: usage, lines, ratings. No arithmetic but the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Literal

from clawbill_pipeline.money import EXACT

LineKind = Literal["usage", "flat", "discount", "maximum", "minimum", "credit", "billed"]


class RatingError(ValueError):
    """The price cannot rate this usage: it needs more than a quantity, or the quantity makes no sense for it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is rated. Most prices need the quantity alone; the others say in a RatingError what they miss.

    ``events`` are the quantities of single events (percentages with limits an event), ``event_count`` their number
    where only that is known. ``parts`` are quantities by dimension set (matrix), band (time of use) or unit (capacity);
    ``part`` names the one that the whole quantity belongs to, and ``at`` (aware) lets a time-of-use price find it.
    """

    quantity: Decimal
    events: tuple[Decimal, ...] | None = None
    event_count: int | None = None
    parts: Mapping[str, Decimal] | None = None
    part: str | None = None
    at: datetime | None = None

    @classmethod
    def of_events(cls, quantities: Iterable[Decimal]) -> Usage:
        events = tuple(quantities)
        return cls(_sum(events), events=events, event_count=len(events))

    @classmethod
    def of_parts(cls, parts: Mapping[str, Decimal]) -> Usage:
        return cls(_sum(parts.values()), parts=parts)


def _sum(quantities: Iterable[Decimal]) -> Decimal:
    with localcontext(EXACT):
        return sum(quantities, Decimal(0))


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a period that a subscription ran, such as 17 of 31 days. The unit is the caller's."""

    part: Decimal
    whole: Decimal

    def __post_init__(self) -> None:
        if not 0 <= self.part <= self.whole or not self.whole:
            raise RatingError(f"{self.part} of {self.whole} is no share of a period")


@dataclass(frozen=True, slots=True)
class Line:
    """One summand of an amount, in major units; discounts, caps and credits are negative.

    ``quantity`` times ``unit_amount`` by ``per`` explains the amount where it has such a form. ``tier`` counts from 1.
    """

    kind: LineKind
    amount: Decimal
    quantity: Decimal | None = None
    unit_amount: Decimal | None = None
    per: Decimal = Decimal(1)
    tier: int | None = None
    part: str | None = None
    name: str = ""

    @property
    def is_of_the_whole(self) -> bool:
        """Whether the line is about all of the price, not a tier, a part or single events."""
        return self.tier is None and self.part is None and not self.name


@dataclass(frozen=True, slots=True)
class Rating:
    """An exact, unrounded amount in major units, and the lines that sum to it.

    ``maximum`` and ``minimum`` are those of the price, prorated; ``unlimited`` is the amount before them.
    """

    amount: Decimal
    lines: tuple[Line, ...]
    maximum: Decimal | None = None
    minimum: Decimal | None = None

    @property
    def unlimited(self) -> Decimal:
        limits = (ln.amount for ln in self.lines if ln.kind in ("maximum", "minimum") and ln.is_of_the_whole)
        with localcontext(EXACT):
            return self.amount - sum(limits, Decimal(0))

    @property
    def discounts(self) -> tuple[Line, ...]:
        """The lines that are discounts."""
        return tuple(line for line in self.lines if line.kind == "discount")
