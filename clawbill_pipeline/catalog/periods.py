"""Time that bills are cut by: hours and billing periods. Pure calendar arithmetic, no clock."""

from __future__ import annotations

import calendar as days
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

HOUR = timedelta(hours=1)


@dataclass(frozen=True, order=True, slots=True)
class Period:
    """A half-open billing period in UTC. ``key`` is the month (``2026-10``) in which it starts, in its zone."""

    start: datetime
    end: datetime
    key: str

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end


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


def _boundary(year: int, month: int, anchor_day: int, zone: ZoneInfo) -> datetime:
    # Month arithmetic always starts at the anchor, never at the last boundary: the 31st comes back after February.
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    day = min(anchor_day, days.monthrange(year, month)[1])
    return datetime(year, month, day, tzinfo=zone).astimezone(UTC)


def period_of_month(key: str, anchor_day: int, zone: ZoneInfo) -> Period:
    """The period that starts in month ``key`` (``YYYY-MM``): each month starts exactly one, so periods tile time."""
    year, month = (int(part) for part in key.split("-"))
    return Period(_boundary(year, month, anchor_day, zone), _boundary(year, month + 1, anchor_day, zone), key)


def period_at(instant: datetime, anchor_day: int, zone: ZoneInfo) -> Period:
    """The period that ``instant`` (aware) lies in."""
    local = instant.astimezone(zone)
    start = _boundary(local.year, local.month, anchor_day, zone)
    year, month = (local.year, local.month) if start <= instant else (local.year, local.month - 1)
    first = datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=UTC)
    return period_of_month(f"{first:%Y-%m}", anchor_day, zone)
