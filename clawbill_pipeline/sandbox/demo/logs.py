"""Usage logs for the demonstration: 48 hours, always the same, with the faults of real logs. Only writes files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: The last two days of a month, so that the period's last hours are billed too.
START = datetime(2026, 1, 30, tzinfo=UTC)
HOURS = 48
#: Hours whose logs come late, and by how many hours.
LATE = {7: 5, 20: 9, 33: 2}
#: Hours whose file is delivered a second time, under another name.
TWICE = (11, 40)
UNMAPPED = "umbrella"

_TENANTS = {"acme": 1.0, "globex": 2.5, "initech": 0.6, UNMAPPED: 0.1}


def write_logs(folder: Path, now: datetime) -> int:
    """Writes what the demonstration's services have logged by ``now``; returns the number of new files.

    A file that is there is left alone, so that the same folder can be asked again and again.
    """
    new = 0
    for number in range(HOURS):
        hour = START + timedelta(hours=number)
        if hour + timedelta(hours=1 + LATE.get(number, 0)) > now:
            continue
        new += _write(folder / f"{hour:%Y-%m-%dT%H}.jsonl", number, hour)
        if number in TWICE:
            new += _write(folder / f"{hour:%Y-%m-%dT%H}-again.jsonl", number, hour)
    return new


def _write(path: Path, number: int, hour: datetime) -> int:
    if path.exists():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(line + "\n" for line in _lines(number, hour)), encoding="utf-8")
    fresh.replace(path)
    return 1


def _lines(number: int, hour: datetime) -> Iterator[str]:
    chance = random.Random(number)  # noqa: S311 - the same logs everywhere
    events = sorted(_events(number, hour, chance), key=lambda event: str(event["timestamp"]))
    for position, event in enumerate(events):
        line = json.dumps(event)
        yield line
        if position % 37 == 11:
            yield line  # a retry of the service's own logger
        if number == 15 and position == 3:
            yield line[: len(line) // 2]  # the machine was restarted in the middle of a line


def _events(number: int, hour: datetime, chance: random.Random) -> Iterator[dict[str, object]]:
    busy = 1 + 0.8 * (8 <= number % 24 < 20)
    for tenant, size in _TENANTS.items():
        for position in range(max(1, round(12 * size * busy))):
            moment = hour + timedelta(milliseconds=chance.randrange(3_600_000))
            event = {
                "event_id": f"{tenant}-{number:02d}-{position:04d}",
                "tenant_id": tenant,
                "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            }
            kind = chance.random()
            if kind < 0.5:
                yield event | {"service": "api.requests", "quantity": chance.randint(1, 400)}
            else:
                model = "large" if chance.random() < 0.3 else "small"
                service = "tokens.input" if kind < 0.75 else "tokens.output"
                yield event | {"service": service, "quantity": chance.randint(50, 9000), "model": model}
        yield {
            "event_id": f"{tenant}-{number:02d}-storage",
            "tenant_id": tenant,
            "timestamp": (hour + timedelta(minutes=59)).isoformat().replace("+00:00", "Z"),
            "service": "storage.gb_hours",
            "quantity": f"{size * chance.uniform(40, 60):.3f}",
        }
