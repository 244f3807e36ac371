"""The company of the simulated month: its catalogue, and the usage logs that it writes by the hour, with the faults of
real logs. Always the same for the same story. What it owes is reckoned elsewhere, from the files alone (month_bill).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

HOUR = timedelta(hours=1)
#: The logger closes an hour's file so long after the hour's end.
WRITTEN_AFTER = timedelta(minutes=5)
#: A tenant's rate card at first, and how much it uses.
TENANTS = {
    "acme": ("standard", 1.0), "globex": ("standard", 2.5), "initech": ("standard", 0.4), "hooli": ("standard", 6.0),
    "boston": ("standard", 0.8), "midway": ("standard", 1.2), "grower": ("growing", 1.5), "vandelay": ("growing", 0.3),
    "mover": ("standard", 0.9), "wonka": ("euro", 1.1), "stark": ("euro", 3.0), "osaka": ("yen", 0.7),
    "quiet": ("standard", 0.0),
}  # fmt: skip
_PLACED = {"boston": ", time_zone: America/New_York", "midway": ", anchor_day: 16"}
#: How much a tenant of size 1 uses at once, and how often in an hour.
_USES = {"tokens": (900_000, 3.0), "calls": (400, 1.5), "exports": (4000, 0.7), "storage": (60, 1.0),
         "support": (9, 0.2), "people": (1, 1.0)}  # fmt: skip
_CARDS = {
    "standard": ("USD", "0.00002", "0.00006", "0.0004", "0.05", "0.02", "0.5", ", minimum: 25"),
    "growing": ("USD", "0.000018", "0.00005", "0.0004", "0.05", "0.018", "0.4", ""),
    "euro": ("EUR", "0.000019", "0.000055", "0.0003", "0.045", "0.018", "0.45", ""),
    "yen": ("JPY", "0.003", "0.009", "0.06", "7", "3", "70", ""),
}
_GROWN = ("USD", "0.00001", "0.00003", "0.0004", "0.04", "0.012", "0.4", "")
_HEAD = """version: 1
start: {start:%Y-%m-%dT%H:%M:%SZ}
calendar: {{stripe_grace: 1h}}
rating: {{attempts: 2, timeout: 10s}}
sources: [{{name: app, kind: json_lines, path: usage}}]
services:
  tokens: {{unit: token, dimensions: [model]}}
  calls: {{unit: call, bill_by: quantity}}
  exports: {{unit: row}}
  storage: {{unit: GB-hour, basis: period_to_date}}
  support: {{unit: minute, basis: period_to_date}}
  people: {{unit: user, aggregation: unique_count, unique_by: user_id, unique_over: period}}
rate_cards:
"""


@dataclass(frozen=True)
class Outage:
    """``start`` to ``end``, nothing of it answers."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Story:
    """What happens, and when. All times are UTC; usage ends at ``end``, and what is left to do at ``over``."""

    start: datetime
    hours: int
    over: datetime
    #: From this hour on the growing plan costs less, and the mover has it, too.
    change: datetime
    #: Somebody takes usage back in Stripe's dashboard; a person approves the correction of what is worth more.
    taken_back: datetime
    approved: datetime
    webhooks: tuple[Outage, ...]
    openclaw: tuple[Outage, ...]
    #: A person has what was corrected compared at once, instead of waiting for the next day.
    compared: datetime | None = None
    #: At these minutes of an hour the daemon looks, at others only where something is due: drafts so many minutes.
    minutes: tuple[int, ...] = (10,)
    drafts: int = 10

    @property
    def end(self) -> datetime:
        return self.start + self.hours * HOUR

    def ends(self, tenant: str) -> list[datetime]:
        """Where its billing periods end."""
        first, month = self.end.replace(month=self.end.month - 1), self.end
        at = {"boston": [first + 4 * HOUR, month + 4 * HOUR], "midway": [first + 15 * 24 * HOUR]}
        return [end for end in at.get(tenant, [month]) if self.start < end <= self.over]

    def is_whole(self, tenant: str, end: datetime) -> bool:
        """Whether the period that ends there began no earlier than the catalogue: then a minimum is owed for none."""
        first = self.end.replace(month=self.end.month - 1)
        began = {"boston": first + 4 * HOUR, "midway": first + 15 * 24 * HOUR}.get(tenant, first)
        return self.start <= began < end


def catalogue(story: Story, now: datetime) -> str:
    """The catalogue as it stands at ``now``: the new prices are written a while before they hold, and the mover moves
    once its last hour under the old plan is rated."""
    text = _HEAD.format(start=story.start)
    for name, prices in _CARDS.items():
        text += f"  {name}:\n    currency: {prices[0]}\n    versions:\n" + _version("2026-01-01T00:00:00Z", prices)
        if name == "growing" and now >= story.change - 6 * HOUR:
            text += _version(f"{story.change:%Y-%m-%dT%H:%M:%SZ}", _GROWN)
    text += "tenants:\n"
    for tenant, (card, _) in TENANTS.items():
        if tenant == "mover" and now >= story.change + timedelta(minutes=20):
            card = "growing"
        text += f"  {tenant}: {{rate_card: {card}{_PLACED.get(tenant, '')}}}\n"
    return text


def _version(since: str, prices: tuple[str, ...]) -> str:
    _, small, large, call, export, stored, minute, minimum = prices
    return f"""      - effective_from: {since}
        prices:
          tokens: {{model: per_unit, unit_amount: "{small}"}}
          tokens:large: {{model: per_unit, unit_amount: "{large}"}}
          calls: {{model: per_unit, unit_amount: "{call}"}}
          exports: {{model: package, package_size: 1000, package_amount: "{export}"}}
          storage:
            model: graduated
            tiers: [{{up_to: 500, unit_amount: "{stored}"}}, {{up_to: null, unit_amount: "{_half(stored)}"}}]
          support: {{model: per_unit, unit_amount: "{minute}"{minimum}}}
          people: {{model: per_unit, unit_amount: "{_half(minute)}"}}
"""


def _half(price: str) -> str:
    return f"{Decimal(price) / 2:f}"


@dataclass
class Logger:
    """Writes the files of ``folder``, an hour's when it is over. ``lines`` and ``bad`` count what was written."""

    story: Story
    folder: Path
    lines: int = 0
    bad: int = 0
    again: int = 0
    late: int = 0
    _next: datetime = field(init=False)
    _waiting: dict[datetime, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._next = self.story.start

    def write(self, now: datetime) -> None:
        """Writes the files that are due by ``now``, and what a night's job brings half an hour after a month's end."""
        while self._next < self.story.end + 8 * HOUR and self._next + HOUR + WRITTEN_AFTER <= now:
            self._write_hour(self._next)
            self._next += HOUR
        if (
            self.story.end + timedelta(minutes=25) <= now
            and not (night := self._file(self.story.end, "-night")).exists()
        ):
            at = self.story.end - 2 * HOUR
            self._put(night, [_event("hooli", "calls", f"night-{n}", at, 111 + n) for n in range(3)])
            self.late += 3

    def _write_hour(self, hour: datetime) -> None:
        chance = random.Random(f"{hour:%Y%m%d%H}")
        lines = self._waiting.pop(hour, [])
        self.late += len(lines)
        late = self._late_until(hour, chance)
        for tenant, (_, size) in TENANTS.items():
            for line in _events(tenant, size, hour, chance):
                arrives = self._arrives(tenant, hour, late) if late and chance.random() < 0.2 else hour
                (lines if arrives == hour else self._waiting[arrives]).append(line)
                if chance.random() < 0.03:
                    self.again += 1
                    lines.append(line)  # the logger's own retry
        if chance.random() < 0.25:
            lines.append(_broken(hour, chance))
            self.bad += 1
        self._put(self._file(hour), lines)
        for old in sorted(self.folder.glob("*/"))[:-4]:  # as logrotate does
            kept = self.folder.with_name("rotated")
            kept.mkdir(exist_ok=True)
            old.rename(kept / old.name)

    def _late_until(self, hour: datetime, chance: random.Random) -> datetime | None:
        """In some hours a machine's logs come a few hours later: when."""
        lag, is_late = chance.randint(1, 20) * HOUR, chance.random() < 0.15 or hour == self.story.start
        return hour + lag if is_late and hour < self.story.end else None

    def _arrives(self, tenant: str, hour: datetime, late: datetime) -> datetime:
        """Within the tenant's billing period and prices: no later than in the last file before their end."""
        bounds = [*self.story.ends(tenant), self.story.change, self.story.end]
        return min([late, *(at - HOUR for at in bounds if hour < at <= late)])

    def _file(self, hour: datetime, kind: str = "") -> Path:
        return self.folder / f"{hour:%Y-%m-%d}" / f"{hour:%H}{kind}.jsonl"

    def _put(self, path: Path, lines: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        fresh.replace(path)
        self.lines += len(lines)


def _events(tenant: str, size: float, hour: datetime, chance: random.Random) -> Iterator[str]:
    for service, (most, often) in _USES.items():
        times = int(often * min(size, 2) + chance.random())
        for number in range(times if size else 0):
            at = hour + timedelta(milliseconds=chance.randrange(3_600_000))
            quantity: object = chance.randint(1, max(1, round(most * size)))
            if service == "storage":
                quantity = f"{size * chance.uniform(20, most):.3f}"
            yield _event(
                tenant, service, f"{hour:%m%d%H}-{number}", at, 1 if service == "people" else quantity,
                **({"model": "large" if chance.random() < 0.3 else "small"} if service == "tokens" else {}),
                **({"user_id": f"u{chance.randint(1, 40)}"} if service == "people" else {}),
            )  # fmt: skip


def _event(tenant: str, service: str, number: str, at: datetime, quantity: object, **more: str) -> str:
    event = {"event_id": f"{tenant}-{service}-{number}", "tenant_id": tenant, "service": service, "quantity": quantity}
    return json.dumps(event | {"timestamp": at.isoformat(timespec="milliseconds")} | more)


def _broken(hour: datetime, chance: random.Random) -> str:
    """A line that is no usage event: cut off, negative, not a number, or of no time."""
    whole = _event("acme", "calls", f"{hour:%m%d%H}-bad", hour, 77)
    return [
        whole[: len(whole) // 2],
        whole.replace(" 77", " -77"),
        whole.replace(" 77", ' "lots"'),
        whole.replace('"timestamp"', '"when"'),
    ][chance.randrange(4)]
