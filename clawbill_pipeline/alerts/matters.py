"""What there is to tell, read from the ledger: breaks, stale sources, unusual volumes, parked tenants, held invoices.

Sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger.causes import NO_FAULT

#: Asset by name → its owners, such as team:finance.
Owners = Mapping[str, frozenset[str]]

#: The asset in which the later of two steps is made: its owners mend what went wrong there.
ASSET_OF_STEP = {
    "source_landed": "usage_events",
    "landed_metered": "metered_usage",
    "metered_rated": "rated_usage",
    "rated_sent": "stripe_usage_records",
    "sent_held": "stripe_usage_records",
    "ledger_drafted": "invoice_drafts",
    "held_invoiced": "stripe_invoices",
    "invoiced_asked": "stripe_invoices",
    "invoiced_paid": "stripe_invoices",
}
#: Kind → the assets whose owners are told; a break's asset comes on top.
ASSETS_OF_KIND = {
    "break": ("usage_reconciliation",),
    "source": ("usage_events",),
    "volume": ("metered_usage",),
    "parked": ("stripe_usage_records",),
    "held": ("invoice_drafts",),
}


@dataclass(frozen=True, slots=True)
class Matter:
    """Something that somebody should know. ``kind`` and ``key`` make it one; ``topic`` is what is told together.

    ``amount`` in ``currency``'s major unit, signed as in the ledger; both None where money says nothing of it.
    """

    kind: str
    key: str
    topic: str
    assets: tuple[str, ...]
    summary: str
    amount: Decimal | None = None
    currency: str | None = None

    def owners(self, owners: Owners) -> frozenset[str]:
        return frozenset[str]().union(*(owners.get(asset, frozenset()) for asset in self.assets))


@dataclass(frozen=True, slots=True)
class Told:
    """What a route was told and has not been told the end of."""

    id: int
    kind: str
    key: str
    topic: str
    summary: str


def read_matters(connection: Connection, catalog: Catalog, route: str, now: datetime) -> list[Matter]:
    """What is open and ``route`` does not know of yet, largest amounts first."""
    rows = connection.execute(text(f"{_MATTERS} {_UNTOLD}"), _given(catalog, now) | {"route": route})
    return [
        Matter(
            row.kind, row.key, row.topic, (*ASSETS_OF_KIND[row.kind], *filter(None, [ASSET_OF_STEP.get(row.step)])),
            row.summary, row.amount, row.currency,
        )
        for row in rows
    ]  # fmt: skip


def read_over(connection: Connection, catalog: Catalog, route: str, now: datetime) -> list[Told]:
    """What ``route`` was told and is over now. A run that failed is over once it was told."""
    rows = connection.execute(text(f"{_MATTERS} {_OVER}"), _given(catalog, now) | {"route": route})
    return [Told(*row) for row in rows]


def _given(catalog: Catalog, now: datetime) -> dict[str, Any]:
    names = [source.name for source in catalog.sources]
    return {
        "now": now,
        "start": catalog.start,
        "no_fault": list(NO_FAULT),
        "sources": names,
        "stale_after": [catalog.alerts.stale_after(name) for name in names],
        "by_amount": [name for name, service in catalog.services.items() if service.bill_by == "amount"],
    }


# A break that is only waiting, or is as it should be, is nothing to wake anybody for.
_MATTERS = """
WITH matters AS (
  SELECT 'break' AS kind, CAST(b.id AS text) AS key, 'Breaks of ' || b.period AS topic, b.step, b.amount, b.currency,
    concat_ws(' ', 'break', b.id || ':', b.cause || ',', b.tenant_id, b.service,
      to_char(b.hour, '"at" YYYY-MM-DD"T"HH24:MI"Z"'), '(' || b.detail || ')') AS summary
  FROM breaks b WHERE b.closed_at IS NULL AND b.cause <> ALL(CAST(:no_fault AS text[]))
  UNION ALL
  SELECT 'source', s.name, 'Stale sources', NULL, NULL, NULL,
    'source ' || s.name || ': ' || coalesce('nothing landed since ' || to_char(l.newest, 'YYYY-MM-DD"T"HH24:MI"Z"'),
      'nothing ever landed')
  FROM unnest(CAST(:sources AS text[]), CAST(:stale_after AS interval[])) AS s (name, stale_after)
  LEFT JOIN LATERAL (
    SELECT landed_at AS newest FROM landings WHERE source = s.name ORDER BY id DESC LIMIT 1) l ON true
  WHERE coalesce(l.newest, :start) + s.stale_after < :now
  UNION ALL
  SELECT 'volume', v.tenant_id || ' ' || v.service, 'Unusual volumes', NULL, NULL, NULL,
    'tenant ' || v.tenant_id || ' used ' || trim_scale(v.quantity) || ' of ' || v.service || ' in the hour of '
      || to_char(v.hour, 'YYYY-MM-DD"T"HH24:MI"Z"') || ', usually ' || trim_scale(round(v.usual, 3))
  FROM unusual_volumes v WHERE v.hour = (SELECT max(hour) FROM metered_hours)
  UNION ALL
  SELECT 'parked', p.tenant_id || ' ' || p.parked, 'Parked usage records', NULL, p.amount, c.currency,
    'tenant ' || p.tenant_id || ': ' || p.records || ' usage records are parked (' || p.parked || '), the oldest of '
      || to_char(p.oldest, 'YYYY-MM-DD"T"HH24:MI"Z"')
  FROM (
    SELECT tenant_id, parked, count(*) AS records, min(window_start) AS oldest,
      sum(value) FILTER (WHERE service = ANY(CAST(:by_amount AS text[]))) / 1000000 AS amount
    FROM usage_records WHERE parked IS NOT NULL AND state <> 'delivered' AND parked <> 'replan'
    GROUP BY tenant_id, parked) p
  LEFT JOIN stripe_customers c USING (tenant_id)
  UNION ALL
  SELECT 'held', i.invoice_id, 'Held invoices', NULL, i.subtotal, i.currency,
    'invoice ' || i.invoice_id || ' of tenant ' || i.tenant_id || ' is held: ' || (d.detail->>'why')
  FROM invoices i
  JOIN LATERAL (
    SELECT kind, detail FROM audit_trail
    WHERE subject = i.invoice_id AND kind IN ('close.hold', 'close.release') ORDER BY id DESC LIMIT 1) d ON true
  WHERE i.status = 'draft' AND d.kind = 'close.hold')
"""
_UNTOLD = """
SELECT kind, key, topic, step, amount, currency, summary FROM matters m
WHERE NOT EXISTS (
  SELECT FROM alerts a WHERE a.route = :route AND a.kind = m.kind AND a.key = m.key AND a.resolved_at IS NULL)
ORDER BY topic, abs(amount) DESC NULLS LAST, length(key), key
"""
_OVER = """
SELECT a.id, a.kind, a.key, a.topic, a.summary FROM alerts a
WHERE a.route = :route AND a.resolved_at IS NULL AND a.kind <> 'run'
  AND NOT EXISTS (SELECT FROM matters m WHERE m.kind = a.kind AND m.key = a.key)
ORDER BY a.topic, a.id
"""
