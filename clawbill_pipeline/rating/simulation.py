"""Shadow pricing: what metered history costs under two catalogues, and the difference. Writes nothing, calls nobody.

Usage comes as a query, prices as catalogues. Reading the ledger and showing the result is the caller's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import duckdb
import pyarrow as pa

from clawbill_pipeline.catalog import (
    Catalog,
    Tenant,
    UnknownService,
    UnknownTenant,
    openclaw_service,
    split_openclaw_service,
)
from clawbill_pipeline.rating.engine.arithmetic import exactly
from clawbill_pipeline.rating.vectorised import Priced, rated

_MOMENT = timedelta(microseconds=1)
_WINDOWS = pa.schema(
    [
        ("tenant_id", pa.string()),
        ("service", pa.string()),
        ("dimensions", pa.string()),
        ("start", pa.timestamp("us", tz="UTC")),
        ("end", pa.timestamp("us", tz="UTC")),
        ("spans", pa.bool_()),
        ("price", pa.string()),
    ]
)
_STREAMS = """
SELECT tenant_id, service, dimensions, min(window_start), max(window_start)
FROM ({usage}) GROUP BY ALL ORDER BY ALL
"""
# A period's usage is rated as one quantity where the service's tiers span the period, else each window by itself.
_UNITS = """
SELECT w.tenant_id, w.service, w.price, sum(u.quantity)::DECIMAL(38, 12) AS quantity
FROM ({usage}) AS u
JOIN shadow_windows AS w
  ON u.tenant_id = w.tenant_id AND u.service = w.service AND u.dimensions = w.dimensions
 AND u.window_start >= w.start AND u.window_start < w."end"
GROUP BY w.tenant_id, w.service, w.price, CASE WHEN w.spans THEN NULL ELSE u.window_start END
"""
_TOTALS = """
SELECT tenant_id, service, sum(quantity), sum(amount), count(error), any_value(error)
FROM {view} GROUP BY tenant_id, service ORDER BY tenant_id, service
"""


@dataclass(frozen=True)
class Cost:
    """What a tenant's use of a service costs under one catalogue: exact, in major units of ``currency``.

    ``fault`` says why something has no price in it; the amount is then without it.
    """

    quantity: Decimal
    amount: Decimal
    currency: str
    fault: str = ""


@dataclass(frozen=True)
class Movement:
    """The same usage under the current and the candidate catalogue; None where one of them knows no such tenant."""

    tenant_id: str
    service: str
    current: Cost | None
    candidate: Cost | None

    @property
    def change(self) -> Decimal | None:
        """Candidate less current; None where the two can't be compared."""
        if self.current is None or self.candidate is None or self.current.currency != self.candidate.currency:
            return None
        with exactly():
            return self.candidate.amount - self.current.amount

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps ``change`` from telling all, for people."""
        sides = (("current", self.current), ("candidate", self.candidate))
        said = [f"{name}: {cost.fault if cost else 'no such tenant'}" for name, cost in sides if not cost or cost.fault]
        if self.current and self.candidate and self.current.currency != self.candidate.currency:
            said.append(f"currency changes from {self.current.currency} to {self.candidate.currency}")
        return tuple(said)


def simulate(db: duckdb.DuckDBPyConnection, usage: str, current: Catalog, candidate: Catalog) -> list[Movement]:
    """The movements of all tenants and services in ``usage``, by tenant and service.

    ``usage`` is a query of this connection with ``tenant_id``, ``service``, ``dimensions``, ``window_start``
    (TIMESTAMPTZ) and ``quantity`` (DECIMAL(38,12)), one row a window. A window is rated with the version in force at
    its start; a period of ``period_to_date`` with the one in force at its end, as its close does.
    """
    sides = [_costs(db, usage, catalog) for catalog in (current, candidate)]
    keys = sorted({*sides[0], *sides[1]})
    return [
        Movement(tenant_id, service, *(side.get((tenant_id, service)) for side in sides)) for tenant_id, service in keys
    ]


def _costs(db: duckdb.DuckDBPyConnection, usage: str, catalog: Catalog) -> dict[tuple[str, str], Cost]:
    costs: dict[tuple[str, str], Cost] = {}
    windows: list[dict[str, object]] = []
    prices: dict[str, Priced] = {}
    for tenant_id, service, dimensions, first, last in db.sql(_STREAMS.format(usage=usage)).fetchall():
        try:
            tenant = catalog.tenant(tenant_id)
        except UnknownTenant:
            continue
        costs.setdefault((tenant_id, service), Cost(Decimal(0), Decimal(0), catalog.currency(tenant_id)))
        name = openclaw_service(service, dimensions)
        spans = service in catalog.services and catalog.services[service].basis == "period_to_date"
        for start, end, at in _periods(tenant, first, last) if spans else _versions(catalog, tenant, first, last):
            key = str(len(windows))
            windows.append(
                dict(zip(_WINDOWS.names, (tenant_id, service, dimensions, start, end, spans, key), strict=True))
            )
            try:
                prices[key] = Priced(
                    catalog.price_for(tenant_id, name, at).price, split_openclaw_service(name)[1] or None
                )
            except UnknownService:
                continue  # the row's error says so
    db.register("shadow_windows", pa.Table.from_pylist(windows, schema=_WINDOWS))
    try:
        with rated(db, _UNITS.format(usage=usage), prices) as view:
            totals = db.sql(_TOTALS.format(view=view)).fetchall()
    finally:
        db.unregister("shadow_windows")
    for tenant_id, service, quantity, amount, failed, error in totals:
        reason = "no price in force" if error and error.startswith("no price '") else error
        fault = f"{failed} not rated, such as: {reason}" if failed else ""
        costs[tenant_id, service] = Cost(quantity, amount or Decimal(0), catalog.currency(tenant_id), fault)
    return costs


Window = tuple[datetime, datetime, datetime]


def _periods(tenant: Tenant, first: datetime, last: datetime) -> Iterator[Window]:
    """``(start, end, when prices are looked up)`` of the billing periods from ``first`` to ``last``."""
    at = first
    while at <= last:
        period = tenant.period_at(at)
        yield period.start, period.end, period.end - _MOMENT
        at = period.end


def _versions(catalog: Catalog, tenant: Tenant, first: datetime, last: datetime) -> Iterator[Window]:
    """The same, cut where the tenant's rate card changes instead."""
    changes = (version.effective_from for version in catalog.rate_cards[tenant.rate_card].versions)
    cuts = [first, *(change for change in changes if first < change <= last), last + _MOMENT]
    for start, end in itertools.pairwise(cuts):
        yield start, end, start
