"""Usage that came after its invoice was final: proposed as an adjustment that carries its original period.

Stripe bills such usage on no invoice. A proposal is a row of the audit trail (``adjustment.proposed``) that a person
accepts, as an invoice item or a credit note, or lets go; a newer one for the same line replaces it. What was accepted
is not proposed again (``adjustment_log``), nor is what was rejected, as long as it stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, insert, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.invoicing.booked import booked
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.adjustment_log import PROPOSED, SETTLED, Standing, read_standings
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail
from clawbill_pipeline.money import invoice_amount, plain, total
from clawbill_pipeline.results import Check

#: How far back usage can still change what a final invoice should have said.
REACH = timedelta(days=400)


@dataclass(frozen=True)
class Adjustment:
    """What a final invoice bills too little (or too much, negative) for a service in its original half-open period.

    ``units`` in Stripe's whole units; ``amount`` in major units, rounded like an invoice line. Less what adjustments
    that were accepted before have billed.
    """

    invoice_id: str
    tenant_id: str
    service: str
    period_start: datetime
    period_end: datetime
    currency: str
    units: Decimal
    amount: Decimal


@dataclass(frozen=True)
class Proposed:
    """All adjustments that stand open, and how many of them are new or changed."""

    adjustments: tuple[Adjustment, ...]
    written: int
    checks: tuple[Check, ...]


def propose_adjustments(ledger: Ledger, catalog: Catalog, *, now: datetime, run_id: str) -> Proposed:
    """Compares final invoices with the usage records that were planned after them. Called again, it changes nothing."""
    with ledger.transaction() as connection:
        lock(connection, "adjustments")
        candidates = connection.execute(text(_LATE), {"oldest": now - REACH}).all()
        late, written = [], 0
        for row in candidates:
            if row.service not in catalog.services:
                continue
            earlier = read_standings(connection, subject=_subject(row))
            found = _of(connection, catalog, row, [each for each in earlier if each.state in SETTLED])
            said, last = _said(found), earlier[-1] if earlier else None
            is_let_go = last is not None and last.state == "rejected" and _says(last, said)
            if found.units and not is_let_go:
                late.append(found)
            if _is_news(said, last):
                _write(connection, found, _subject(row), said | {"run_id": run_id}, now)
                written += 1
    check = Check(
        "no_usage_after_its_invoice",
        not late,
        "No usage came after the invoice that should have billed it.",
        {"adjustments": len(late), "first": f"{late[0].tenant_id} {late[0].service}" if late else None},
    )
    return Proposed(tuple(late), written, (check,))


# What came after the invoice; and what Stripe was too late for before it, as in a period longer than its 35 days.
_LATE = """
SELECT l.invoice_id, l.tenant_id, l.service, l.period_start, l.period_end, l.currency,
  sum(l.quantity) AS billed, sum(l.amount) AS amount
FROM invoice_lines l JOIN invoices i USING (invoice_id)
WHERE i.finalized_at IS NOT NULL AND i.status IN ('open', 'paid', 'uncollectible') AND l.period_start >= :oldest
  AND EXISTS (
    SELECT 1 FROM usage_records u
    WHERE u.tenant_id = l.tenant_id AND u.service = l.service
      AND (u.planned_at > i.finalized_at OR (u.parked = 'too_old' AND u.state <> 'delivered'))
      AND u.hour >= l.period_start - interval '1 hour' AND u.hour < l.period_end
      AND u.window_start >= l.period_start AND u.window_start < l.period_end)
GROUP BY l.invoice_id, l.tenant_id, l.service, l.period_start, l.period_end, l.currency
ORDER BY l.tenant_id, l.service, l.period_start, l.invoice_id
"""


def _of(
    connection: Connection, catalog: Catalog, row: Row[*tuple[Any, ...]], settled: Sequence[Standing]
) -> Adjustment:
    """The adjustment of one billed window; of nothing where what came late came to nothing, or is ``settled``."""
    entry = booked(connection, catalog, row.tenant_id, row.service, row.period_start, row.period_end)
    units = total([entry.planned, -row.billed, *(-each.units for each in settled)])
    billed = [-row.amount, *(-each.amount for each in settled)]
    amount = total([invoice_amount(entry.rated_amount, row.currency), *billed]) if units else Decimal(0)
    where = (row.invoice_id, row.tenant_id, row.service, row.period_start, row.period_end)
    return Adjustment(*where, row.currency, units, amount)


def _subject(row: Row[*tuple[Any, ...]]) -> str:
    return f"{row.invoice_id}/{row.service}/{row.period_start:%Y-%m-%dT%H:%M:%SZ}"


def _said(adjustment: Adjustment) -> dict[str, str]:
    return {
        "invoice_id": adjustment.invoice_id,
        "service": adjustment.service,
        "period_start": adjustment.period_start.isoformat(),
        "period_end": adjustment.period_end.isoformat(),
        "currency": adjustment.currency,
        "units": plain(adjustment.units),
        "amount": plain(adjustment.amount),
    }


def _says(last: Standing, said: Mapping[str, str]) -> bool:
    return {name: value for name, value in last.said.items() if name != "run_id"} == said


def _is_news(said: Mapping[str, str], last: Standing | None) -> bool:
    """Whether a proposal says something that the last one for the same window did not."""
    if last is not None and last.state in ("open", "nothing"):
        return not _says(last, said)
    if last is not None and last.state == "rejected" and _says(last, said):
        return False
    # That nothing is to be adjusted is news only while a proposal stands open.
    return said["units"] != "0"


def _write(
    connection: Connection, adjustment: Adjustment, subject: str, detail: Mapping[str, str], now: datetime
) -> None:
    row = {"at": now, "kind": PROPOSED, "tenant_id": adjustment.tenant_id, "subject": subject, "detail": dict(detail)}
    connection.execute(insert(audit_trail).values(row))
