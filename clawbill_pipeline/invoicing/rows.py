"""Reads and writes the rows of invoices, lines and standings, in a transaction of the caller's. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from clawbill_pipeline.invoicing.events import Invoice, Line
from clawbill_pipeline.invoicing.states import Signal, Standing, owed, step
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import (
    invoice_lines,
    invoices,
    stripe_customers,
    stripe_events,
    stripe_events_handled,
    stripe_items,
    tenant_standing,
)


def lock_inbox(connection: Connection) -> None:
    """One at a time for all that changes invoices and standings, until the transaction ends."""
    lock(connection, "stripe inbox")


def known_invoice(connection: Connection, invoice_id: str) -> Row[*tuple[Any, ...]] | None:
    """``status``, ``as_of`` and ``object`` of an invoice that is there."""
    query = select(invoices.c.status, invoices.c.as_of, invoices.c.object).where(invoices.c.invoice_id == invoice_id)
    return connection.execute(query).one_or_none()


def write_invoice(connection: Connection, invoice: Invoice, tenant_id: str | None, as_of: datetime) -> None:
    """The invoice's row is this. The tenant it was once given to stays, whoever the customer is mapped to later."""
    fields = [name for name in Invoice.__dataclass_fields__ if name not in ("lines", "has_more")]
    values: dict[str, Any] = {name: getattr(invoice, name) for name in fields}
    values["as_of"] = as_of
    written = upsert(invoices).values(values | {"tenant_id": tenant_id})
    kept = {"tenant_id": func.coalesce(invoices.c.tenant_id, written.excluded.tenant_id)}
    connection.execute(written.on_conflict_do_update(index_elements=["invoice_id"], set_={**values, **kept}))


def write_lines(connection: Connection, invoice: Invoice, tenant_id: str | None) -> int:
    """The invoice's lines are these and no others; returns how many."""
    items = [line.subscription_item_id for line in invoice.lines if line.subscription_item_id]
    query = select(stripe_items).where(stripe_items.c.subscription_item_id.in_(items))
    found = connection.execute(query).all() if items else []
    # Tenants that share a customer share its items: the line is the payer's.
    mapped = {row.subscription_item_id: row for row in sorted(found, key=lambda row: row.tenant_id == tenant_id)}
    connection.execute(
        delete(invoice_lines).where(
            invoice_lines.c.invoice_id == invoice.invoice_id,
            invoice_lines.c.line_id.not_in([line.line_id for line in invoice.lines]),
        )
    )
    rows = []
    for line in invoice.lines:
        item = mapped.get(line.subscription_item_id)
        owner = {"tenant_id": item.tenant_id if item else tenant_id, "service": item.service if item else None}
        values = {name: getattr(line, name) for name in Line.__dataclass_fields__}
        rows.append({"invoice_id": invoice.invoice_id, **owner, **values})
    if rows:
        written = upsert(invoice_lines)
        changed = {name: written.excluded[name] for name in rows[0] if name not in ("invoice_id", "line_id")}
        connection.execute(written.on_conflict_do_update(index_elements=["invoice_id", "line_id"], set_=changed), rows)
    return len(rows)


def map_late(connection: Connection) -> None:
    """Gives invoices and lines that came before their customer or item was mapped to their tenant and service."""
    customers, items = stripe_customers.c, stripe_items.c
    connection.execute(
        update(invoices)
        .where(invoices.c.tenant_id.is_(None), invoices.c.customer_id == customers.customer_id)
        .where(customers.payer_id.is_(None))
        .values(tenant_id=customers.tenant_id)
    )
    connection.execute(
        update(invoice_lines)
        .where(invoice_lines.c.tenant_id.is_(None), invoice_lines.c.invoice_id == invoices.c.invoice_id)
        .where(invoices.c.tenant_id.is_not(None))
        .values(tenant_id=invoices.c.tenant_id)
    )
    connection.execute(
        update(invoice_lines)
        .where(invoice_lines.c.service.is_(None), invoice_lines.c.tenant_id == items.tenant_id)
        .where(invoice_lines.c.subscription_item_id == items.subscription_item_id)
        .values(service=items.service)
    )


def paid_for(connection: Connection, tenant_id: str) -> list[str]:
    """The tenants whose usage is on the bill of ``tenant_id``, beside its own."""
    of_payer = stripe_customers.c.payer_id == tenant_id
    query = select(stripe_customers.c.tenant_id).where(of_payer).order_by(stripe_customers.c.tenant_id)
    return list(connection.scalars(query))


def debts(connection: Connection, tenant_id: str, at: datetime, *, but: str = "") -> list[Signal]:
    """How the tenant's invoices (other than ``but``) that have failed, are overdue or were given up are owed."""
    query = select(invoices.c.status, invoices.c.object).where(
        invoices.c.tenant_id == tenant_id,
        invoices.c.status.in_(("open", "uncollectible")),
        invoices.c.invoice_id != but,
    )
    found = (owed(row.status, row.object, at) for row in connection.execute(query))
    return [debt for debt in found if debt]


def newest_applied(connection: Connection, subscription_id: str) -> Row[*tuple[Any, ...]] | None:
    """``created`` and ``type`` of the newest event of the subscription that was applied; ``ended``: it was deleted."""
    ended = stripe_events.c.type.like("%.deleted")
    query = (
        select(stripe_events.c.created, stripe_events.c.type, ended.label("ended"))
        .join(stripe_events_handled, stripe_events_handled.c.inbox_id == stripe_events.c.id)
        .where(stripe_events.c.object_id == subscription_id, stripe_events_handled.c.outcome == "applied")
        .where(stripe_events.c.type.like("%customer.subscription.%"))
        .order_by(ended.desc(), stripe_events.c.created.desc())
    )
    return connection.execute(query.limit(1)).one_or_none()


def last_standing(connection: Connection, tenant_id: str) -> Row[*tuple[Any, ...]] | None:
    """The tenant's newest row of ``tenant_standing``."""
    query = select(tenant_standing).where(tenant_standing.c.tenant_id == tenant_id)
    return connection.execute(query.order_by(tenant_standing.c.id.desc()).limit(1)).one_or_none()


def move_standing(
    connection: Connection, tenant_id: str, signals: Sequence[Signal], at: datetime, cause: str, now: datetime
) -> tuple[Standing | None, Standing] | None:
    """Appends where ``signals`` lead the tenant; answers from where to where, or None if it stays."""
    last = last_standing(connection, tenant_id)
    before: Standing | None = last.standing if last else None
    after = step(before, signals)
    if after is None or after == before:
        return None
    since = at if last is None else max(at, last.since)
    row = {"tenant_id": tenant_id, "standing": after, "since": since, "cause": cause, "recorded_at": now}
    connection.execute(insert(tenant_standing).values(row))
    return before, after
