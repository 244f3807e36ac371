"""Writes what reconciliation found: breaks that open, change and close, and the period's newest standing."""

# ruff: noqa: S608 -- queries are put together from constants of this file; every value is a parameter

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog.costs import UnitCost
from clawbill_pipeline.ledger.causes import CLOSE_STEP, NO_FAULT
from clawbill_pipeline.ledger.database import copy_rows
from clawbill_pipeline.ledger.waterfall import Step
from clawbill_pipeline.money import EXACT, plain
from clawbill_pipeline.reconciliation.totals import Break


@dataclass(frozen=True)
class Changes:
    """How many breaks were opened, changed in quantity, amount or detail, and closed."""

    opened: int
    changed: int
    closed: int


def merged(breaks: Iterable[Break]) -> list[Break]:
    """One break a place, step and cause, in order; equal ones are added up, and those that come to nothing dropped."""
    places: dict[tuple[str, ...], Break] = {}
    for found in breaks:
        hour = found.hour.isoformat() if found.hour else ""
        key = (found.tenant_id, found.service, hour, found.step, found.cause)
        before = places.get(key)
        if before is None:
            places[key] = found
            continue
        details = dict.fromkeys([*before.detail.split("; "), *found.detail.split("; ")])
        with localcontext(EXACT):
            places[key] = Break(
                found.tenant_id, found.service, found.hour, found.step, found.cause, found.currency or before.currency,
                before.quantity + found.quantity, before.amount + found.amount, "; ".join(details),
            )  # fmt: skip
    return [places[key] for key in sorted(places)]


_COLUMNS = ("tenant_id", "service", "hour", "step", "cause", "currency", "quantity", "amount", "detail")
_SAME_PLACE = (
    "b.period = :period AND b.closed_at IS NULL AND b.tenant_id = f.tenant_id AND b.service = f.service"
    " AND b.step = f.step AND b.cause = f.cause AND b.hour IS NOT DISTINCT FROM f.hour"
)


def write_breaks(connection: Connection, period: str, breaks: Sequence[Break], now: datetime) -> Changes:
    """Makes ``breaks`` the open ones of ``period``, beside drafts'. A break that stays as it was is not touched.

    ``last_seen`` is when its quantity, amount or detail last changed.
    """
    connection.execute(
        text(
            "CREATE TEMP TABLE found (tenant_id text, service text, hour timestamptz, step text, cause text,"
            " currency text, quantity numeric, amount numeric, detail text) ON COMMIT DROP"
        )
    )
    copy_rows(connection, "found", _COLUMNS, ([getattr(found, name) for name in _COLUMNS] for found in breaks))
    given = {"period": period, "now": now}
    closed = connection.execute(
        text(
            "UPDATE breaks b SET closed_at = :now WHERE b.period = :period AND b.closed_at IS NULL"
            f" AND b.step <> '{CLOSE_STEP}'"
            f" AND NOT EXISTS (SELECT 1 FROM found f WHERE {_SAME_PLACE})"
        ),
        given,
    )
    changed = connection.execute(
        text(
            "UPDATE breaks b SET last_seen = :now, currency = f.currency, quantity = f.quantity, amount = f.amount,"
            f" detail = f.detail FROM found f WHERE {_SAME_PLACE} AND (b.currency, b.quantity, b.amount, b.detail)"
            " IS DISTINCT FROM (f.currency, CAST(f.quantity AS numeric(38, 12)), CAST(f.amount AS numeric(38, 12)),"
            " f.detail)"
        ),
        given,
    )
    opened = connection.execute(
        text(
            "INSERT INTO breaks (period, tenant_id, service, hour, step, cause, currency, quantity, amount, detail,"
            " first_seen, last_seen) SELECT :period, f.tenant_id, f.service, f.hour, f.step, f.cause, f.currency,"
            " f.quantity, f.amount, f.detail, :now, :now FROM found f"
            f" WHERE NOT EXISTS (SELECT 1 FROM breaks b WHERE {_SAME_PLACE})"
            " ORDER BY f.tenant_id, f.service, f.hour, f.step, f.cause"
        ),
        given,
    )
    return Changes(opened.rowcount, changed.rowcount, closed.rowcount)


def write_standing(
    connection: Connection,
    period: str,
    steps: Sequence[Step],
    breaks: Sequence[Break],
    costs: Sequence[UnitCost],
    now: datetime,
    run_id: str,
) -> tuple[int, bool]:
    """``(id, appended)`` of the period's newest reconciliation; appended only where it differs from the one before."""
    document = [step.as_json() for step in steps]
    known = [cost.as_json() for cost in costs]
    digest = _digest([document, known] if known else [document], breaks)
    newest = connection.execute(
        text("SELECT id, sha256 FROM reconciliations WHERE period = :period ORDER BY id DESC LIMIT 1"),
        {"period": period},
    ).first()
    if newest is not None and newest.sha256 == digest:
        return newest.id, False
    appended = connection.execute(
        text(
            "INSERT INTO reconciliations (period, sha256, waterfall, costs, open_breaks, as_of, run_id)"
            " VALUES (:period, :sha256, CAST(:waterfall AS jsonb), CAST(:costs AS jsonb), :open_breaks, :now, :run_id)"
            " RETURNING id"
        ),
        {
            "period": period,
            "sha256": digest,
            "waterfall": json.dumps(document),
            "costs": json.dumps(known) if known else None,
            "open_breaks": sum(found.cause not in NO_FAULT for found in breaks),
            "now": now,
            "run_id": run_id,
        },
    ).scalar_one()
    return appended, True


def _digest(documents: Sequence[object], breaks: Sequence[Break]) -> str:
    def shown(value: object) -> object:
        if isinstance(value, Decimal):
            return plain(value)
        return value.isoformat() if isinstance(value, datetime) else value

    rows = [[shown(getattr(found, name)) for name in _COLUMNS] for found in breaks]
    canonical = json.dumps([*documents, rows], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
