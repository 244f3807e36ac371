"""Breaks of drafts that do not go out as they are: open from when one is held until it is right, or no draft any more.

The words are ``ledger.causes``'; all other breaks are reconciliation's, which leaves these alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.invoicing.draft import Comparison, Draft
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.causes import CLOSE_STEP
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.money import total


@dataclass(frozen=True, order=True)
class DraftBreak:
    """A cause for which a tenant's drafts of a period are held: the invoice less the ledger."""

    period: str
    tenant_id: str
    service: str
    cause: str
    currency: str
    quantity: Decimal
    amount: Decimal
    detail: str


def breaks_of(catalog: Catalog, held: Iterable[tuple[Draft, Comparison]]) -> list[DraftBreak]:
    """One break a period, tenant, service and cause; what several drafts differ in is added up."""
    found: dict[tuple[str, str, str, str], list[DraftBreak]] = {}
    for draft, comparison in held:
        start = min(
            (line.period_start for line in draft.lines if line.is_usage),
            default=datetime.fromtimestamp(draft.object.get("period_start", 0), UTC),
        )
        tenant = catalog.tenants.get(draft.tenant_id)
        period = tenant.period_at(start).key if tenant else f"{start:%Y-%m}"
        for each in comparison.differences:
            one = DraftBreak(
                period, draft.tenant_id, each.service, each.cause, draft.currency,
                # Stripe's whole units are told in the detail; a break's quantity is in the service's unit.
                Decimal(0), each.amount, f"draft {draft.invoice_id}: {each.detail}",
            )  # fmt: skip
            found.setdefault((period, draft.tenant_id, each.service, each.cause), []).append(one)
    return sorted(_one(same) for same in found.values())


def _one(same: list[DraftBreak]) -> DraftBreak:
    first = same[0]
    return DraftBreak(
        first.period, first.tenant_id, first.service, first.cause, first.currency, first.quantity,
        total(each.amount for each in same), "; ".join(each.detail for each in same),
    )  # fmt: skip


def write_draft_breaks(ledger: Ledger, breaks: list[DraftBreak], *, now: datetime) -> tuple[int, int]:
    """Makes ``breaks`` the open ones of all drafts; returns how many were opened and closed. One that stays as it was
    is not touched. Raises LedgerError."""
    with ledger.transaction() as connection:
        lock(connection, "draft breaks")
        kept, opened = set[int](), 0
        for each in breaks:
            given = {name: getattr(each, name) for name in DraftBreak.__dataclass_fields__}
            row = connection.execute(_FIND, given | {"step": CLOSE_STEP}).one_or_none()
            if row is None:
                opened += 1
                kept.add(connection.scalar(_OPEN, given | {"step": CLOSE_STEP, "now": now}) or 0)
                continue
            kept.add(row.id)
            if (row.amount, row.detail, row.currency) != (each.amount, each.detail, each.currency):
                connection.execute(_CHANGE, given | {"id": row.id, "now": now})
        return opened, _close_others(connection, kept, now)


def _close_others(connection: Connection, kept: set[int], now: datetime) -> int:
    return connection.execute(_CLOSE, {"step": CLOSE_STEP, "kept": sorted(kept), "now": now}).rowcount


_FIND = text("""
SELECT id, amount, detail, currency FROM breaks
WHERE closed_at IS NULL AND step = :step AND period = :period AND tenant_id = :tenant_id AND service = :service
  AND cause = :cause
""")
_OPEN = text("""
INSERT INTO breaks (period, tenant_id, service, hour, step, cause, currency, quantity, amount, detail, first_seen,
                    last_seen)
VALUES (:period, :tenant_id, :service, NULL, :step, :cause, :currency, :quantity, :amount, :detail, :now, :now)
RETURNING id
""")
_CHANGE = text("""
UPDATE breaks SET currency = :currency, amount = :amount, detail = :detail, last_seen = :now WHERE id = :id
""")
_CLOSE = text("""
UPDATE breaks SET closed_at = :now WHERE closed_at IS NULL AND step = :step AND NOT id = ANY(:kept)
""")
