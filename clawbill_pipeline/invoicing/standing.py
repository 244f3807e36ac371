"""Tells OpenClaw how each tenant stands: what is queued in ``tenant_standing``, newest first, never out of order.

Which standing a tenant has is decided in ``states`` and written by ``inbox``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects.postgresql import distinct_on

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail, tenant_standing
from clawbill_pipeline.openclaw import OpenClaw, OpenClawError, OpenClawSession
from clawbill_pipeline.results import Check

_CHUNK = 1_000


@dataclass(frozen=True)
class Reported:
    """How many tenants' standings OpenClaw took, how many older ones they made moot, and what is still queued."""

    reported: int
    superseded: int
    queued: int
    problems: tuple[str, ...]
    checks: tuple[Check, ...]


def report_standing(ledger: Ledger, openclaw: OpenClaw, *, now: datetime, run_id: str) -> Reported:
    """Puts the newest unreported standing of each tenant to OpenClaw; older ones of the tenant count as reported too.

    A failure is noted on its row, which stays queued for the next call. Raises LedgerError.
    """
    # One at a time, or a slow call could put an old standing after a newer one.
    with ledger.transaction() as turn:
        lock(turn, "standing reports")
        return _report(ledger, openclaw, now, run_id)


def _report(ledger: Ledger, openclaw: OpenClaw, now: datetime, run_id: str) -> Reported:
    queue = _newest_unreported(ledger)
    reported = superseded = 0
    problems: list[str] = []
    for start in range(0, len(queue), _CHUNK):
        chunk = queue[start : start + _CHUNK]
        outcomes = asyncio.run(_put_all(openclaw, chunk))
        with ledger.transaction() as connection:
            for row, error in zip(chunk, outcomes, strict=True):
                tried = {"attempts": tenant_standing.c.attempts + 1, "error": error}
                connection.execute(
                    update(tenant_standing)
                    .where(tenant_standing.c.id == row.id)
                    .values(tried if error else {**tried, "reported_at": now})
                )
                if error:
                    problems.append(f"{row.tenant_id} ({row.standing}): {error}")
                    continue
                reported += 1
                moot = (
                    update(tenant_standing)
                    .where(tenant_standing.c.tenant_id == row.tenant_id, tenant_standing.c.id < row.id)
                    .where(tenant_standing.c.reported_at.is_(None))
                    .values(reported_at=now, error=f"superseded by {row.standing}")
                )
                superseded += connection.execute(moot).rowcount
                told = {"status": _status(row.standing), "since": row.since.isoformat(), "run_id": run_id}
                note = {"at": now, "kind": "standing.reported", "tenant_id": row.tenant_id, "subject": row.cause}
                connection.execute(insert(audit_trail).values(note | {"detail": told}))
    check = Check(
        "standing_reported",
        not problems,
        "OpenClaw knows how every tenant stands.",
        {"reported": reported, "queued": len(problems)},
    )
    return Reported(reported, superseded, len(problems), tuple(problems), (check,))


def _status(standing: str) -> str:
    """The word of OpenClaw's contract: who owes nothing is ``paid``."""
    return "paid" if standing == "current" else standing


def _newest_unreported(ledger: Ledger) -> Sequence[Row[*tuple[Any, ...]]]:
    unreported = (
        select(tenant_standing)
        .ext(distinct_on(tenant_standing.c.tenant_id))
        .where(tenant_standing.c.reported_at.is_(None))
        .order_by(tenant_standing.c.tenant_id, tenant_standing.c.id.desc())
    )
    with ledger.transaction() as connection:
        return connection.execute(unreported).all()


async def _put_all(openclaw: OpenClaw, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[str | None]:
    """What went wrong with each, or None."""
    turns = asyncio.Semaphore(openclaw.concurrency)

    async def put(session: OpenClawSession, row: Row[*tuple[Any, ...]]) -> str | None:
        async with turns:
            try:
                await session.put_status(row.tenant_id, _status(row.standing))
            except OpenClawError as error:
                return str(error)[:500]
            return None

    async with openclaw.session() as session:
        return await asyncio.gather(*(put(session, row) for row in rows))
