"""The durable queue of ratings that failed: shown, worked off, given up. How a row is rated is in ``station``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate


class Waiting(NamedTuple):
    """A metered quantity that has no amount yet, and why. ``next_attempt_at`` is None where nobody will ask by itself:
    OpenClaw refused it (``refused``), or the catalogue does not know its tenant or service (``unmapped``)."""

    hour: datetime
    tenant_id: str
    service: str
    dimensions: str
    window_start: datetime
    metered_revision: int
    kind: str
    error: str
    answer: str | None
    attempts: int
    next_attempt_at: datetime | None
    failed_at: datetime


@dataclass(frozen=True)
class Worked:
    """What working off the queue came to: rows asked for again, and how many of them have an amount now."""

    due: int
    booked: int
    retry: int
    refused: int
    hours: tuple[datetime, ...]


def waiting(
    ledger: Ledger, *, kind: str | None = None, tenant_id: str | None = None, limit: int = 1000
) -> list[Waiting]:
    """What waits, the longest first."""
    with ledger.transaction() as connection:
        rows = connection.execute(_WAITING, {"kind": kind, "tenant_id": tenant_id, "limit": limit})
        return [Waiting(**row._mapping) for row in rows]


def due_hours(ledger: Ledger, *, now: datetime, limit: int = 100) -> list[datetime]:
    """Hours, oldest first, with a row whose next attempt has come."""
    with ledger.transaction() as connection:
        return list(connection.scalars(_DUE_HOURS, {"now": now, "limit": limit}))


def run_retries(ledger: Ledger, catalog: Catalog, openclaw: OpenClaw, *, now: datetime, run_id: str) -> Worked:
    """Asks again for every row whose next attempt has come, hour by hour; the others wait on."""
    hours = due_hours(ledger, now=now)
    done = [
        rate(ledger, catalog, openclaw, start=hour, end=hour + HOUR, now=now, run_id=run_id, only_retries=True)
        for hour in hours
    ]
    return Worked(
        due=sum(rated.due for rated in done),
        booked=sum(rated.booked for rated in done),
        retry=sum(rated.retry for rated in done),
        refused=sum(rated.refused for rated in done),
        hours=tuple(hour for hour, rated in zip(hours, done, strict=True) if rated.booked),
    )


def drop(ledger: Ledger, rows: Iterable[Waiting], *, why: str, by: str, now: datetime, run_id: str) -> int:
    """Takes rows out of the queue for good, on record; returns how many were in it.

    Their usage stays metered and without an amount, which reconciliation goes on to show; only a run of their hour
    asks for them again.
    """
    dropped = 0
    with ledger.transaction() as connection:
        for row in rows:
            key = {name: getattr(row, name) for name in _KEY}
            found = connection.execute(_DROP, {**key, "error": f"dropped by {by}: {why}", "now": now, "run_id": run_id})
            if found.rowcount:
                dropped += 1
                detail = {**key, "hour": row.hour.isoformat(), "window_start": row.window_start.isoformat(),
                          "error": row.error, "attempts": row.attempts, "by": by, "why": why}  # fmt: skip
                subject = f"{row.service} {row.hour.isoformat()}"
                connection.execute(
                    _AUDIT,
                    {"now": now, "tenant_id": row.tenant_id, "subject": subject, "detail": json.dumps(detail)},
                )
    return dropped


_KEY = ("hour", "tenant_id", "service", "dimensions", "window_start", "metered_revision")
_WAITING = text("""
    SELECT hour, tenant_id, service, dimensions, window_start, metered_revision, kind, error, answer, attempts,
           next_attempt_at, failed_at
    FROM rating_failures
    WHERE (CAST(:kind AS text) IS NULL OR kind = :kind) AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
    ORDER BY hour, tenant_id, service, dimensions, window_start LIMIT :limit
""")
_DUE_HOURS = text("""
    SELECT DISTINCT hour FROM rating_failures WHERE kind = 'retry' AND next_attempt_at <= :now
    ORDER BY hour LIMIT :limit
""")
_DROP = text("""
    UPDATE rating_failures
    SET kind = 'refused', error = :error, next_attempt_at = NULL, failed_at = :now, run_id = :run_id
    WHERE (hour, tenant_id, service, dimensions, window_start, metered_revision)
        = (:hour, :tenant_id, :service, :dimensions, :window_start, :metered_revision)
      AND kind = 'retry'
""")
_AUDIT = text("""
    INSERT INTO audit_trail (at, kind, tenant_id, subject, detail)
    VALUES (:now, 'rating.dropped', :tenant_id, :subject, :detail)
""")
