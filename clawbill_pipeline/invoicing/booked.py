"""Reads drafts from the ledger, and what it has booked for the windows that they bill. Only reads; judges nothing."""

# ruff: noqa: S608 -- queries are put together from constants of this file; every value is a parameter

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.invoicing.draft import Booked, Draft, DraftLine, Window, windows
from clawbill_pipeline.ledger.waterfall import unit_scale


def read_drafts(connection: Connection, invoice_id: str | None = None, tenant_id: str | None = None) -> list[Draft]:
    """The drafts of mapped tenants with their lines, oldest first; of one invoice or tenant where one is named."""
    query = """
        SELECT * FROM invoices WHERE status = 'draft' AND tenant_id IS NOT NULL
          AND (CAST(:invoice AS text) IS NULL OR invoice_id = :invoice)
          AND (CAST(:tenant AS text) IS NULL OR tenant_id = :tenant)
        ORDER BY created, invoice_id"""
    drafts = connection.execute(text(query), {"invoice": invoice_id, "tenant": tenant_id}).all()
    lines: dict[str, list[DraftLine]] = {}
    found = "SELECT * FROM invoice_lines WHERE invoice_id = ANY(:ids) ORDER BY line_id"
    for row in connection.execute(text(found), {"ids": [draft.invoice_id for draft in drafts]}):
        values = {name: getattr(row, name) for name in DraftLine.__dataclass_fields__}
        line = DraftLine(**values)
        lines.setdefault(row.invoice_id, []).append(line)
    return [_draft(row, tuple(lines.get(row.invoice_id, ()))) for row in drafts]


def _draft(row: Row[*tuple[Any, ...]], lines: tuple[DraftLine, ...]) -> Draft:
    at = row.object.get("automatically_finalizes_at")
    finalizes_at = datetime.fromtimestamp(at, UTC) if at and row.object.get("auto_advance") else None
    return Draft(
        row.invoice_id, row.tenant_id, row.currency, row.subtotal, row.total, finalizes_at, row.object, lines,
        row.subscription_id,
    )  # fmt: skip


def billed_windows(connection: Connection, catalog: Catalog, draft: Draft) -> list[Window]:
    """The windows that ``draft`` bills, and the period of each service that it should bill and doesn't."""
    wanted = [key for key in windows(draft) if key[0] in catalog.services]
    billed = {service for service, _, _ in wanted}
    missing = (key for key in _whole_period(connection, draft) if key[0] in catalog.services and key[0] not in billed)
    return [*wanted, *missing]


def read_booked(
    connection: Connection, catalog: Catalog, draft: Draft, held: Mapping[Window, Held] | None = None
) -> list[Booked]:
    """What is booked for each of the draft's ``billed_windows``; ``held`` is what Stripe's meters were read to say."""
    wanted = billed_windows(connection, catalog, draft)
    return [booked(connection, catalog, draft.tenant_id, *key, held=(held or {}).get(key)) for key in wanted]


def sharing(connection: Connection, tenant_id: str) -> list[str]:
    """The tenants whose usage is on ``tenant_id``'s invoice: itself, and those that share its Stripe customer."""
    query = """
        SELECT tenant_id FROM stripe_customers
        WHERE customer_id = (SELECT customer_id FROM stripe_customers WHERE tenant_id = :tenant) ORDER BY tenant_id"""
    return list(connection.scalars(text(query), {"tenant": tenant_id})) or [tenant_id]


def _whole_period(connection: Connection, draft: Draft) -> Iterator[tuple[str, datetime, datetime]]:
    """The period that a cycle's invoice is for, service by service; without what was used in a trial, which is free.

    Only the subscription that bills our usage must have it: a customer may have others.
    """
    followed = text("SELECT subscription_id FROM stripe_customers WHERE tenant_id = :tenant")
    ours = connection.scalar(followed, {"tenant": draft.tenant_id})
    if draft.object.get("billing_reason") != "subscription_cycle" or draft.subscription_id not in (None, ours):
        return
    start, end = (datetime.fromtimestamp(draft.object[name], UTC) for name in ("period_start", "period_end"))
    history = connection.execute(
        text("SELECT standing, since FROM tenant_standing WHERE tenant_id = :tenant ORDER BY id"),
        {"tenant": draft.tenant_id},
    ).all()
    start = max(start, trial_end(history, start, end))
    services = text("SELECT service FROM stripe_items WHERE tenant_id = :tenant ORDER BY service")
    for service in connection.scalars(services, {"tenant": draft.tenant_id}):
        if start < end:
            yield service, start, end


def trial_end(history: Sequence[Row[*tuple[Any, ...]]], start: datetime, end: datetime) -> datetime:
    """When the trial ended that the tenant was in at ``start``; ``start`` without one, ``end`` if it goes on."""
    trialing = False
    for row in history:
        if row.since > start and trialing and row.standing != "trialing":
            ended: datetime = row.since
            return min(end, ended)
        trialing = row.standing == "trialing" and (row.since <= start or trialing)
    return end if trialing else start


@dataclass(frozen=True)
class Held:
    """What Stripe's meter was read to hold of a window, in whole units; or why it could not be read."""

    units: Decimal | None
    read_at: datetime
    error: str | None = None


def booked(
    connection: Connection,
    catalog: Catalog,
    tenant_id: str,
    service: str,
    start: datetime,
    end: datetime,
    *,
    held: Held | None = None,
) -> Booked:
    """What the ledger has of one service in ``[start, end)``, for the tenant and those that share its customer.

    ``held`` is what Stripe was just asked for; without it the newest summary of a whole period counts.
    """
    scale = unit_scale(catalog, service)
    given = {
        "tenant": tenant_id,
        "tenants": sharing(connection, tenant_id),
        "service": service,
        "start": start,
        "end": end,
        "first_hour": utc_hour(start),
        "counted_from": max(utc_hour(start), catalog.start),
        "last_hour": utc_hour(end - timedelta(microseconds=1)),
    }
    row = connection.execute(text(_BOOKED), given).one()
    known = catalog.services[service]
    whole = tenant_id in catalog.tenants and catalog.tenants[tenant_id].period_at(start).end == end
    causes = ("not_metered", "not_rated", "pending", "parked", "rejected")
    units, read_at = (held.units, held.read_at) if held else (row.held if whole else None, row.read_at or start)
    settled = row.last_settled is None or read_at >= row.last_settled + catalog.calendar.settle_lag
    return Booked(
        service=service,
        start=start,
        end=end,
        scale=scale,
        planned=row.planned,
        delivered=row.delivered,
        held=units,
        held_settled=settled,
        rated_quantity=row.rated_quantity,
        rated_amount=row.rated_amount,
        by_amount=known.bill_by == "amount",
        unread=held.error if held else None,
        open_causes={cause: int(getattr(row, cause)) for cause in causes if getattr(row, cause)},
    )


def hours_metered(connection: Connection, start: datetime, end: datetime) -> int:
    """How many hours of ``[start, end)`` were metered."""
    query = "SELECT count(DISTINCT hour) FROM metered_hours WHERE hour >= :start AND hour < :end"
    return int(connection.scalar(text(query), {"start": utc_hour(start), "end": end}) or 0)


_THEIRS = "tenant_id = ANY(CAST(:tenants AS text[]))"
_OF = f"{_THEIRS} AND service = :service AND window_start >= :start AND window_start < :end"
_IN = f"hour >= :first_hour AND hour < :end AND {_OF}"
_RECORD = "hour, customer_id, meter, window_start"
_WINDOW = "hour, tenant_id, service, dimensions, window_start"
# Metered quantities are by hour first: the tenant's are looked up hour by hour, never sought in everybody's month.
_BOOKED = f"""
WITH records AS (
  SELECT DISTINCT ON ({_RECORD}) units, state, parked FROM usage_records WHERE {_IN}
  ORDER BY {_RECORD}, revision DESC),
delivered AS (
  SELECT DISTINCT ON ({_RECORD}) units, settled_at FROM usage_records WHERE {_IN} AND state = 'delivered'
  ORDER BY {_RECORD}, revision DESC),
rated AS (
  SELECT DISTINCT ON ({_WINDOW}) {_WINDOW}, metered_revision, quantity, amount FROM rated_usage WHERE {_IN}
  ORDER BY {_WINDOW}, revision DESC),
metered AS (
  SELECT DISTINCT ON ({_WINDOW}) {_WINDOW}, revision
  FROM generate_series(CAST(:first_hour AS timestamptz), CAST(:last_hour AS timestamptz), interval '1 hour') AS h (at)
  CROSS JOIN unnest(CAST(:tenants AS text[])) AS t (name)
  CROSS JOIN LATERAL (
    SELECT * FROM metered_usage m
    WHERE m.hour = h.at AND m.tenant_id = t.name AND m.service = :service
      AND m.window_start >= :start AND m.window_start < :end OFFSET 0) AS m
  ORDER BY {_WINDOW}, revision DESC),
summary AS (
  SELECT units, read_at FROM usage_summaries
  WHERE tenant_id = :tenant AND service = :service AND period_start = :start AND hour IS NULL
  ORDER BY id DESC LIMIT 1)
SELECT
  (SELECT coalesce(sum(units), 0) FROM records) AS planned,
  (SELECT coalesce(sum(units), 0) FROM delivered) AS delivered,
  (SELECT max(settled_at) FROM delivered) AS last_settled,
  (SELECT coalesce(sum(quantity), 0) FROM rated) AS rated_quantity,
  (SELECT coalesce(sum(amount), 0) FROM rated) AS rated_amount,
  (SELECT units FROM summary) AS held,
  (SELECT read_at FROM summary) AS read_at,
  (SELECT count(*) FROM records WHERE state IN ('planned', 'sending', 'unknown') AND parked IS NULL) AS pending,
  (SELECT count(*) FROM records WHERE state <> 'delivered' AND parked IS NOT NULL) AS parked,
  (SELECT count(*) FROM records WHERE state = 'rejected' AND parked IS NULL) AS rejected,
  (SELECT count(*) FROM metered m LEFT JOIN rated r USING ({_WINDOW})
    WHERE r.metered_revision IS NULL OR r.metered_revision < m.revision) AS not_rated,
  (SELECT count(*) FROM generate_series(CAST(:counted_from AS timestamptz), CAST(:last_hour AS timestamptz),
      interval '1 hour') AS h (hour)
    WHERE NOT EXISTS (SELECT 1 FROM metered_hours x WHERE x.hour = h.hour)
      AND EXISTS (
        SELECT FROM unnest(CAST(:tenants AS text[])) AS t (tenant_id)
        WHERE NOT EXISTS (SELECT FROM metered_ahead a WHERE a.hour = h.hour AND a.tenant_id = t.tenant_id))
  ) AS not_metered
"""
