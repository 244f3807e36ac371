"""What gateways themselves say was used: their answers, read from files as witnesses. Nobody is billed by them.

OpenClaw answers ``usage.cost`` by days and ``sessions.usage`` by quarters of an hour. Both count every line of every
session, copies among them; what they come to beside metering is told in ``ledger.witnesses``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import archived
from clawbill_pipeline.ledger.tables import usage_witnesses
from clawbill_pipeline.usage.events import TENANT, witnessed

#: Service → the member of an answer that counts it, and the one that has its cost.
_MEMBERS = {
    "tokens.input": ("input", "inputCost"),
    "tokens.output": ("output", "outputCost"),
    "tokens.cache_read": ("cacheRead", "cacheReadCost"),
    "tokens.cache_write": ("cacheWrite", "cacheWriteCost"),
}
_FILE = re.compile(r"(usage\.cost|sessions\.usage)_(.+)\.json")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY, _HOUR = timedelta(days=1), timedelta(hours=1)


class Said(NamedTuple):
    """What a witness says of one service in ``[starts, ends)``, in UTC. ``cost`` in USD, or None."""

    uri: str
    tenant_id: str
    service: str
    starts: datetime
    ends: datetime
    quantity: Decimal
    cost: Decimal | None
    said_at: datetime


class NoAnswer(ValueError):
    """A file that is none of a gateway's answers. The message says why."""


def answers(folder: Path) -> list[tuple[Path, str, str]]:
    """``(file, answer, tenant)`` of the answers in a folder, by their names. Raises OSError."""
    found = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.iterdir()) if path.is_file())
    return [(path, name[1], name[2]) for path, name in found if name is not None and TENANT.fullmatch(name[2])]


def said(path: Path, answer: str, tenant_id: str, services: Sequence[str]) -> list[Said]:
    """What an answer says of these services; nothing while it is being made anew. Raises NoAnswer and OSError."""
    try:
        document = json.loads(path.read_bytes(), parse_float=Decimal, parse_int=Decimal)
        if document["cacheStatus"]["status"] != "fresh":
            return []
        at = _EPOCH + timedelta(milliseconds=int(document["updatedAt"]))
        spans = _days(document) if answer == "usage.cost" else _hours(document)
        return [
            Said(path.name, tenant_id, service, starts, ends, quantity, witnessed(told.get(_MEMBERS[service][1])), at)
            for (starts, ends), told in spans
            for service in services
            if service in _MEMBERS and (quantity := witnessed(told.get(_MEMBERS[service][0]))) is not None
        ]
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise NoAnswer(
            f"it is no answer to {answer} ({type(error).__name__}: {error}); ask the gateway again"
        ) from None


_Span = tuple[tuple[datetime, datetime], Mapping[str, Any]]


def _days(document: Mapping[str, Any]) -> Iterator[_Span]:
    for day in document["daily"]:
        starts = _midnight(day["date"])
        yield (starts, starts + _DAY), day


def _hours(document: Mapping[str, Any]) -> Iterator[_Span]:
    """Quarters of all sessions, added up by the hour. Their costs are not told by kinds of tokens."""
    hours: dict[datetime, dict[str, Decimal]] = {}
    for session in document["sessions"]:
        for quarter in session["usage"].get("utcQuarterHourTokenUsage", ()):
            starts = _midnight(quarter["date"]) + int(quarter["quarterIndex"]) // 4 * _HOUR
            told = hours.setdefault(starts, {})
            for member, _ in _MEMBERS.values():
                told[member] = told.get(member, Decimal(0)) + quarter[member]
    for starts, told in sorted(hours.items()):
        yield (starts, starts + _HOUR), told


def _midnight(day: str) -> datetime:
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)


def keep(ledger: Ledger, source: str, rows: Sequence[Said], now: datetime) -> int:
    """Keeps what is new of ``rows``; returns how many were. What is said of months that are archived is not kept.

    Gateways say everything again whenever they are asked: what was said once its time was over is kept when it changes.
    """
    with ledger.transaction() as connection:
        gone = {each.month for each in archived(connection) if each.table == usage_witnesses.name}
    kept = [row for row in rows if row.starts.date().replace(day=1) not in gone]
    ledger.ensure_partitions({row.starts for row in kept}, [usage_witnesses])
    with ledger.transaction() as connection:
        return sum(connection.execute(_KEEP, {**row._asdict(), "source": source, "now": now}).rowcount for row in kept)


_KEEP = text("""
    INSERT INTO usage_witnesses (source, uri, tenant_id, service, starts, ends, quantity, cost, said_at, read_at)
    SELECT :source, :uri, :tenant_id, :service, :starts, :ends, :quantity, CAST(:cost AS numeric), :said_at, :now
    WHERE NOT EXISTS (
        SELECT FROM (
            SELECT * FROM usage_witnesses
            WHERE source = :source AND tenant_id = :tenant_id AND service = :service AND starts = :starts
              AND ends = :ends AND said_at < :said_at
            ORDER BY said_at DESC LIMIT 1
        ) before
        WHERE quantity = :quantity AND cost IS NOT DISTINCT FROM CAST(:cost AS numeric) AND said_at >= :ends
    )
    ON CONFLICT DO NOTHING
""")
