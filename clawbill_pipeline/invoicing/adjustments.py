"""Usage that came after its invoice was final: proposed as an adjustment that carries its original period.

Stripe bills such usage on no invoice. A proposal is a row of the audit trail (``adjustment.proposed``) that a person
accepts, as an invoice item or a credit note, or lets go; a newer one for the same line replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, insert, select, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.invoicing.booked import booked
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail
from clawbill_pipeline.money import invoice_amount, plain
from clawbill_pipeline.results import Check

#: How far back usage can still change what a final invoice should have said.
REACH = timedelta(days=400)


@dataclass(frozen=True)
class Adjustment:
    """What a final invoice bills too little (or too much, negative) for a service in its original half-open period.

    ``units`` in Stripe's whole units; ``amount`` in major units, rounded like an invoice line.
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
        found = [_of(connection, catalog, row) for row in candidates if row.service in catalog.services]
        written = sum(_write(connection, each, now, run_id) for each in found)
    late = [each for each in found if each.units]
    check = Check(
        "no_usage_after_its_invoice",
        not late,
        "No usage came after the invoice that should have billed it.",
        {"adjustments": len(late), "first": f"{late[0].tenant_id} {late[0].service}" if late else None},
    )
    return Proposed(tuple(late), written, (check,))


_LATE = """
SELECT l.invoice_id, l.tenant_id, l.service, l.period_start, l.period_end, l.currency,
  sum(l.quantity) AS billed, sum(l.amount) AS amount
FROM invoice_lines l JOIN invoices i USING (invoice_id)
WHERE i.finalized_at IS NOT NULL AND i.status IN ('open', 'paid', 'uncollectible') AND l.period_start >= :oldest
  AND EXISTS (
    SELECT 1 FROM usage_records u
    WHERE u.tenant_id = l.tenant_id AND u.service = l.service AND u.planned_at > i.finalized_at
      AND u.hour >= l.period_start - interval '1 hour' AND u.hour < l.period_end
      AND u.window_start >= l.period_start AND u.window_start < l.period_end)
GROUP BY l.invoice_id, l.tenant_id, l.service, l.period_start, l.period_end, l.currency
ORDER BY l.tenant_id, l.service, l.period_start, l.invoice_id
"""


def _of(connection: Connection, catalog: Catalog, row: Row[*tuple[Any, ...]]) -> Adjustment:
    """The adjustment of one billed window; of nothing where what came late came to nothing."""
    entry = booked(connection, catalog, row.tenant_id, row.service, row.period_start, row.period_end)
    units = entry.planned - row.billed
    amount = invoice_amount(entry.rated_amount, row.currency) - row.amount if units else Decimal(0)
    where = (row.invoice_id, row.tenant_id, row.service, row.period_start, row.period_end)
    return Adjustment(*where, row.currency, units, amount)


def _write(connection: Connection, adjustment: Adjustment, now: datetime, run_id: str) -> bool:
    """Whether the proposal says something that the last one for the same window did not."""
    subject = f"{adjustment.invoice_id}/{adjustment.service}/{adjustment.period_start:%Y-%m-%dT%H:%M:%SZ}"
    said = {
        "invoice_id": adjustment.invoice_id,
        "service": adjustment.service,
        "period_start": adjustment.period_start.isoformat(),
        "period_end": adjustment.period_end.isoformat(),
        "currency": adjustment.currency,
        "units": plain(adjustment.units),
        "amount": plain(adjustment.amount),
    }
    before = select(audit_trail.c.detail).where(
        audit_trail.c.kind == "adjustment.proposed", audit_trail.c.subject == subject
    )
    last = connection.scalar(before.order_by(audit_trail.c.id.desc()).limit(1))
    # That nothing is to be adjusted is news only after something was.
    if not adjustment.units if last is None else {**last, "run_id": None} == {**said, "run_id": None}:
        return False
    row = {"at": now, "kind": "adjustment.proposed", "tenant_id": adjustment.tenant_id, "subject": subject}
    connection.execute(insert(audit_trail).values(row | {"detail": said | {"run_id": run_id}}))
    return True
