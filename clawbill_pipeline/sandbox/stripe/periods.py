"""Billing cycles: where a subscription's periods begin and end. Pure; what happens at an end is in ``subscriptions``.

Rule (docs.stripe.com/billing/subscriptions/billing-cycle): periods are counted from the anchor, in UTC; a month that is
too short ends the period on its last day, and the next month goes back to the anchor's day (31 Jan, 28 Feb, 31 Mar).
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Cycle:
    """Periods of ``count`` ``interval``s (day, week, month, year) around ``anchor`` (unix seconds).

    ``day`` is the day of the month to go back to where the anchor itself was cut by a short month.
    """

    anchor: int
    interval: str
    count: int = 1
    day: int | None = None

    def boundary(self, index: int) -> int:
        """Unix seconds of the boundary ``index`` periods after the anchor (negative: before)."""
        at = datetime.fromtimestamp(self.anchor, UTC)
        steps = index * self.count
        if self.interval in ("day", "week"):
            return int((at + timedelta(days=steps * (7 if self.interval == "week" else 1))).timestamp())
        month = at.year * 12 + at.month - 1 + steps * (12 if self.interval == "year" else 1)
        year, month = divmod(month, 12)
        day = min(self.day or at.day, calendar.monthrange(year, month + 1)[1])
        return int(at.replace(year=year, month=month + 1, day=day).timestamp())

    def containing(self, moment: int) -> tuple[int, int]:
        """The half-open period ``(start, end)`` that ``moment`` lies in."""
        length = {"day": 86_400, "week": 604_800, "month": 2_629_746, "year": 31_556_952}[self.interval] * self.count
        index = (moment - self.anchor) // length
        while self.boundary(index) > moment:
            index -= 1
        while self.boundary(index + 1) <= moment:
            index += 1
        return self.boundary(index), self.boundary(index + 1)

    def pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """The periods that tile ``[start, end)``; the first and the last may be cut."""
        tiles: list[tuple[int, int]] = []
        while start < end:
            stop = min(self.containing(start)[1], end)
            tiles.append((start, stop))
            start = stop
        return tiles


def next_anchor(now: int, config: dict[str, int]) -> int:
    """The next moment (unix seconds, UTC) that ``billing_cycle_anchor_config`` names; unnamed clock parts are now's."""
    base = datetime.fromtimestamp(now, UTC)
    clock = {part: config.get(part, getattr(base, part)) for part in ("hour", "minute", "second")}
    month = base.year * 12 + base.month - 1
    for step in range(25):
        year, index = divmod(month + step, 12)
        if config.get("month", index + 1) != index + 1:
            continue
        day = min(config["day_of_month"], calendar.monthrange(year, index + 1)[1])
        at = int(datetime(year, index + 1, day, **clock, tzinfo=UTC).timestamp())
        if at > now:
            return at
    raise AssertionError("a day of the month comes round within two years")  # pragma: no cover
