"""What time it is: the wall clock, or the clock of the data in a demonstration. Nothing else asks for the time.

Only waiting, latency and signatures use the machine's own clock; whatever a decision depends on comes from here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

Clock = Callable[[], datetime]


def wall_clock() -> datetime:
    """The machine's time in UTC."""
    return datetime.now(UTC)


def file_clock(path: Path) -> Clock:
    """A clock that shows the ISO 8601 time in ``path``, so that several processes live at the same moment.

    Falls back on the wall clock while the file is not there.
    """

    def now() -> datetime:
        try:
            return datetime.fromisoformat(path.read_text(encoding="ascii").strip()).astimezone(UTC)
        except FileNotFoundError:
            return wall_clock()

    return now


def set_file_clock(path: Path, instant: datetime) -> None:
    """Moves the clock in ``path``; readers see the old or the new time, never half of one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(instant.astimezone(UTC).isoformat(), encoding="ascii")
    fresh.replace(path)


def clock_of(path: Path | None) -> Clock:
    """The clock that settings ask for: that of a file, or the wall clock."""
    return wall_clock if path is None else file_clock(path)
