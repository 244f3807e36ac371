"""A lake and a ledger into which tests land events, and a plain Python account of what metering must come to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.lake import EVENT_SCHEMA, Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import Metered, meter
from clawbill_pipeline.money import plain

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOW = datetime(2026, 12, 24, tzinfo=UTC)

CATALOGUE = """
version: 1
start: 2026-01-01T00:00:00Z
{calendar}
services:
  calls: {{unit: call, allow_negative: true}}
  tokens: {{unit: token, dimensions: [model]}}
  jobs: {{unit: job, aggregation: count}}
  seats: {{unit: seat, aggregation: max, allow_negative: true}}
  quota: {{unit: GB, aggregation: latest, allow_negative: true}}
  disk: {{unit: GB-hour, aggregation: time_weighted}}
  users: {{unit: user-hour, aggregation: unique_count, unique_by: user}}
  members: {{unit: user, aggregation: unique_count, unique_by: user, unique_over: period}}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {{calls: &one {{model: per_unit, unit_amount: 1}}, tokens: *one, jobs: *one, seats: *one, quota: *one,
                 disk: *one, users: *one, members: *one}}
tenants:
  acme: {{rate_card: card}}
  globex: {{rate_card: card}}
  kathmandu: {{rate_card: card, time_zone: Asia/Kathmandu}}
"""


def catalogue(calendar: str = "") -> Catalog:
    return parse(CATALOGUE.format(calendar=calendar))


class Event(NamedTuple):
    """A usage event as it lands."""

    event_id: str
    at: datetime
    quantity: Decimal = Decimal(1)
    tenant_id: str = "acme"
    service: str = "calls"
    dimensions: str = ""
    source: str = "app"
    line: int = 1
    user: str = ""

    @property
    def hour(self) -> datetime:
        return self.at.replace(minute=0, second=0, microsecond=0)


def event(event_id: str, minutes: float = 0, quantity: str | int = 1, **more: Any) -> Event:
    """An event so many minutes after START."""
    return Event(event_id, START + timedelta(minutes=minutes), Decimal(quantity), **more)


#: (hour, tenant, service, dimensions, window start) → quantity
Quantities = dict[tuple[datetime, str, str, str, datetime], Decimal]


def write_events(path: Path, landing_id: int, events: Sequence[Event]) -> None:
    rows = [
        {
            "landing_id": landing_id, "source": e.source, "uri": f"file:///{landing_id}", "line": e.line,
            "byte_offset": e.line * 100, "event_id": e.event_id, "tenant_id": e.tenant_id, "service": e.service,
            "dimensions": e.dimensions, "quantity": e.quantity, "event_time": e.at,
            "unique_value": e.user,
        }
        for e in events
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), path)


@dataclass
class World:
    lake: Lake
    ledger: Ledger
    catalog: Catalog = field(default_factory=catalogue)
    _uris: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def land(self, events: Iterable[Event]) -> None:
        """One landing: files in the lake, rows in the ledger."""
        hours: dict[datetime, list[Event]] = {}
        for e in events:
            hours.setdefault(e.hour, []).append(e)
        count = sum(len(of_hour) for of_hour in hours.values())
        with self.ledger.transaction() as c:
            landing_id = c.scalar(
                text("INSERT INTO landings (source, uri, position, size, sha256, lines, event_lines, events,"
                     " quarantined, skipped, landed_at, run_id) VALUES "
                     "('app', :uri, '0', 1, '', :n, :n, :n, 0, 0, :now, 'r') RETURNING id"),
                {"uri": str(next(self._uris)), "n": count, "now": NOW},
            )  # fmt: skip
            for hour, of_hour in hours.items():
                file = self.lake.events_file(hour, landing_id)
                write_events(self.lake.path(file), landing_id, of_hour)
                c.execute(
                    text("INSERT INTO landed_hours VALUES (:id, :hour, :events, :file)"),
                    {"id": landing_id, "hour": hour, "events": len(of_hour), "file": file},
                )

    def meter(self, first: int = 0, hours: int = 1, run_id: str = "run", **more: Any) -> Metered:
        """Meters so many hours from the ``first`` after START; its books must balance."""
        start = START + first * HOUR
        result = meter(
            self.ledger, self.lake, self.catalog, start=start, end=start + hours * HOUR, now=NOW, run_id=run_id, **more
        )
        assert all(check.passed for check in result.checks), result
        return result

    def rows(self, query: str) -> list[dict[str, Any]]:
        with self.ledger.transaction() as c:
            return [dict(row) for row in c.execute(text(query)).mappings()]

    def held(self) -> Quantities:
        """The newest quantity of each window, zeros left out."""
        rows = self.rows("SELECT * FROM metered_usage ORDER BY revision")
        newest = {
            (r["hour"], r["tenant_id"], r["service"], r["dimensions"], r["window_start"]): r["quantity"] for r in rows
        }
        return {key: quantity for key, quantity in newest.items() if quantity}

    def revisions(self, **where: str) -> list[tuple[int, str, str]]:
        """(revision, reason, quantity) in order."""
        rows = self.rows("SELECT * FROM metered_usage ORDER BY hour, tenant_id, service, window_start, revision")
        rows = [row for row in rows if all(row[name] == value for name, value in where.items())]
        return [(row["revision"], row["reason"], plain(row["quantity"])) for row in rows]


@contextmanager
def world(folder: Path, url: str, **more: Any) -> Iterator[World]:
    ledger = Ledger(url)
    try:
        yield World(Lake(folder / "lake"), ledger, **more)
    finally:
        ledger.dispose()
