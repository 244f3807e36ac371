"""Time that bills are cut by: hours and billing periods. Pure calendar arithmetic, no clock."""

from __future__ import annotations

import calendar as days
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

HOUR = timedelta(hours=1)

Interval = Literal["day", "week", "month", "year"]
#: Where intervals are counted from unless a day is named: a Monday, the first of a month, of a quarter and of a year.
FIRST = date(2024, 1, 1)


@dataclass(frozen=True, order=True, slots=True)
class Period:
    """A half-open billing period in UTC.

    ``key`` is the month (``2026-10``) in which it starts, in its zone; of intervals of days and weeks, the day.
    """

    start: datetime
    end: datetime
    key: str

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    @property
    def empty(self) -> bool:
        """Whether it stands for no period at all: none that has its key starts."""
        return self.start == self.end


@dataclass(frozen=True, slots=True)
class Cadence:
    """How long billing periods are: ``count`` intervals each, of which one starts on ``anchor``."""

    interval: Interval = "month"
    count: int = 1
    anchor: date = FIRST

    @property
    def by_days(self) -> bool:
        return self.interval in ("day", "week")

    def period_at(self, instant: datetime, zone: ZoneInfo) -> Period:
        """The period that ``instant`` (aware) lies in."""
        number = self._number(instant.astimezone(zone).date())
        # A midnight that never was, or came twice, is not where the calendar's day begins.
        while self._start(number, zone) > instant:
            number -= 1
        while self._start(number + 1, zone) <= instant:
            number += 1
        return self._period(number, zone)

    def period(self, key: str, zone: ZoneInfo) -> Period:
        """The period with that ``key``; an ``empty`` one where none starts then. Raises ValueError for no key."""
        day = _day(key)
        number = self._number(day) if (len(key) == _DAYS) == self.by_days else None
        if number is not None:
            number += not self.by_days and self._first_day(number) < day  # the month's first may be before the anchor
            found = self._period(number, zone)
            if found.key == key:
                return found
        start = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
        return Period(start, start, key)

    def _number(self, day: date) -> int:
        """Which period, counted from the anchor, ``day`` lies in."""
        if self.by_days:
            return (day - self.anchor).days // (self.count * (7 if self.interval == "week" else 1))
        number = ((day.year - self.anchor.year) * 12 + day.month - self.anchor.month) // self._months
        return number - (self._first_day(number) > day)

    @property
    def _months(self) -> int:
        return self.count * (12 if self.interval == "year" else 1)

    def _first_day(self, number: int) -> date:
        if self.by_days:
            return self.anchor + number * self.count * timedelta(days=7 if self.interval == "week" else 1)
        # Month arithmetic always starts at the anchor, never at the last boundary: the 31st comes back after February.
        months = self.anchor.year * 12 + self.anchor.month - 1 + number * self._months
        year, month = months // 12, months % 12 + 1
        return date(year, month, min(self.anchor.day, days.monthrange(year, month)[1]))

    def _start(self, number: int, zone: ZoneInfo) -> datetime:
        day = self._first_day(number)
        return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)

    def _period(self, number: int, zone: ZoneInfo) -> Period:
        day = self._first_day(number)
        key = f"{day:%Y-%m-%d}" if self.by_days else f"{day:%Y-%m}"
        return Period(self._start(number, zone), self._start(number + 1, zone), key)


_DAYS = len("2026-01-01")


def _day(key: str) -> date:
    """The day, or the first of the month, that a period's key names."""
    return date.fromisoformat(key if len(key) == _DAYS else f"{key}-01")


def utc_hour(instant: datetime) -> datetime:
    """The start of the UTC hour that ``instant`` (aware) lies in."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def moment(text: str) -> datetime:
    """The instant that ``text`` names in ISO 8601: a day is its UTC midnight, a time has a zone. Raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 2026-01-01 or 2026-01-01T05:00:00Z") from None
    if found.tzinfo is None and ":" in text:
        raise ValueError(f"{text!r} has no time zone; write for example {text}Z")
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def hours_between(start: datetime, end: datetime) -> Iterator[datetime]:
    """The UTC hours of the half-open interval ``[start, end)``, both on the hour."""
    hour = start
    while hour < end:
        yield hour
        hour += HOUR


def period_of_month(key: str, anchor_day: int, zone: ZoneInfo) -> Period:
    """The monthly period that starts in month ``key`` (``YYYY-MM``): each month starts exactly one."""
    return _monthly(anchor_day).period(key, zone)


def period_at(instant: datetime, anchor_day: int, zone: ZoneInfo) -> Period:
    """The monthly period that ``instant`` (aware) lies in."""
    return _monthly(anchor_day).period_at(instant, zone)


def _monthly(anchor_day: int) -> Cadence:
    return Cadence(anchor=FIRST.replace(day=anchor_day))
