"""Shadow pricing: what metered history costs under two catalogues, and the difference. Writes nothing, calls nobody.

Usage comes as a query, prices as catalogues. Reading the ledger is ``history``'s, sums are ``movements``'.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from clawbill_pipeline.money import SCALE, total
from clawbill_pipeline.rating.engine import Share, price_for_share
from clawbill_pipeline.rating.movements import Comparison, Cost, Movement
from clawbill_pipeline.rating.vectorised import Priced, rated

_MOMENT = timedelta(microseconds=1)
_WINDOWS = pa.schema(
    [
        ("number", pa.int64()),
        ("tenant_id", pa.string()),
        ("service", pa.string()),
        ("dimensions", pa.string()),
        ("start", pa.timestamp("us", tz="UTC")),
        ("end", pa.timestamp("us", tz="UTC")),
        ("spans", pa.bool_()),
        ("booked_before", pa.bool_()),
        ("price", pa.string()),
    ]
)
_STREAMS = """
SELECT tenant_id, service, dimensions, min(window_start), max(window_start), sum(quantity)::DECIMAL(38, 12)
FROM ({usage}) WHERE window_start >= $start AND window_start < $end GROUP BY ALL ORDER BY ALL
"""
_LAST = """
SELECT w.number, max(u.window_start)
FROM ({usage}) AS u
JOIN shadow_windows AS w
  ON u.tenant_id = w.tenant_id AND u.service = w.service AND u.dimensions = w.dimensions
 AND u.window_start >= w.start AND u.window_start < w."end"
WHERE w.spans GROUP BY w.number
"""
# A period's usage is rated as one quantity where the service's tiers span the period, else each window by itself.
_UNITS = """
SELECT w.tenant_id, w.service, w.price, w.booked_before, sum(u.quantity)::DECIMAL(38, 12) AS quantity
FROM ({usage}) AS u
JOIN shadow_windows AS w
  ON u.tenant_id = w.tenant_id AND u.service = w.service AND u.dimensions = w.dimensions
 AND u.window_start >= w.start AND u.window_start < w."end"
GROUP BY w.tenant_id, w.service, w.dimensions, w.price, w.booked_before,
         CASE WHEN w.spans THEN w.start ELSE u.window_start END
"""
# Each amount has the places that the ledger keeps of an answer, rounded half away from zero as there.
_TOTALS = """
SELECT tenant_id, service, sum(round(CASE WHEN booked_before THEN -amount ELSE amount END, {places})), count(error),
       any_value(error)
FROM {view} GROUP BY tenant_id, service ORDER BY tenant_id, service
"""


@dataclass(frozen=True)
class _Stream:
    """The usage of a tenant, a service and a dimension set, with its first and last window."""

    tenant_id: str
    service: str
    dimensions: str
    first: datetime
    last: datetime
    quantity: Decimal


@dataclass(frozen=True)
class _Window:
    """Windows ``[start, end)`` of a stream that are rated at one price.

    ``spans``: as one quantity. ``booked_before``: what had been booked when the history starts, to be taken off.
    """

    stream: _Stream
    start: datetime
    end: datetime
    spans: bool = False
    booked_before: bool = False


def simulate(
    db: duckdb.DuckDBPyConnection,
    usage: str,
    current: Catalog,
    candidate: Catalog,
    *,
    start: datetime,
    end: datetime,
    as_of: datetime | None = None,
) -> Comparison:
    """The movements of all tenants and services with usage in ``[start, end)``, by tenant and service.

    ``usage`` is a query of this connection with ``tenant_id``, ``service``, ``dimensions``, ``window_start``
    (TIMESTAMPTZ) and ``quantity`` (DECIMAL(38,12)), one row a window. For services on ``period_to_date`` it reaches
    back to the beginning of the period that ``start`` lies in (see ``history_start``): an amount is then what the
    windows add to their period, its minimum included whether or not it has closed. A window is rated with the version
    in force at its start, which for a period that is one quantity is the last window's. With ``as_of``, the candidate's
    prices are those of that moment throughout.
    """
    rows = db.execute(_STREAMS.format(usage=usage), {"start": start, "end": end}).fetchall()
    streams = [_Stream(*row) for row in rows]
    sides = [
        _costs(db, usage, streams, current, start, end, None),
        _costs(db, usage, streams, candidate, start, end, as_of),
    ]
    movements = tuple(
        Movement(*key, total(stream.quantity for stream in of), *(side.get(key) for side in sides))
        for key, of in itertools.groupby(streams, key=lambda stream: (stream.tenant_id, stream.service))
    )
    return Comparison(start, end, movements, as_of, () if as_of else _later(candidate, end))


def history_start(catalogs: Sequence[Catalog], start: datetime) -> datetime:
    """From when on usage is needed to rate what comes from ``start`` on, for every tenant and service."""
    spanning = [c for c in catalogs if any(service.basis == "period_to_date" for service in c.services.values())]
    return min((tenant.period_at(start).start for c in spanning for tenant in c.tenants.values()), default=start)


def _later(catalog: Catalog, end: datetime) -> tuple[tuple[str, datetime], ...]:
    return tuple(
        (name, version.effective_from)
        for name, card in catalog.rate_cards.items()
        for version in card.versions
        if version.effective_from >= end
    )


def _costs(
    db: duckdb.DuckDBPyConnection,
    usage: str,
    streams: Sequence[_Stream],
    catalog: Catalog,
    start: datetime,
    end: datetime,
    as_of: datetime | None,
) -> dict[tuple[str, str], Cost]:
    costs: dict[tuple[str, str], Cost] = {}
    windows: list[_Window] = []
    for stream in streams:
        try:
            tenant = catalog.tenant(stream.tenant_id)
        except UnknownTenant:
            continue
        costs[stream.tenant_id, stream.service] = Cost(Decimal(0), catalog.currency(stream.tenant_id))
        known = catalog.services.get(stream.service)
        spans = known is not None and known.basis == "period_to_date"
        windows += _periods(tenant, stream, start, end) if spans else _versions(catalog, tenant, stream)
    with _registered(db, windows, itertools.repeat("")):
        last = dict(db.sql(_LAST.format(usage=usage)).fetchall())
    keys, prices = _prices(catalog, windows, [as_of or last.get(n, w.start) for n, w in enumerate(windows)])
    with _registered(db, windows, keys), rated(db, _UNITS.format(usage=usage), prices) as view:
        totals = db.sql(_TOTALS.format(view=view, places=SCALE)).fetchall()
    for tenant_id, service, amount, failed, error in totals:
        reason = "no price in force" if error and error.startswith("no price '") else error
        fault = f"{failed} not rated, such as: {reason}" if failed else ""
        costs[tenant_id, service] = Cost(amount or Decimal(0), catalog.currency(tenant_id), fault)
    return costs


def _prices(
    catalog: Catalog, windows: Sequence[_Window], moments: Sequence[datetime]
) -> tuple[list[str], dict[str, Priced]]:
    """For each window the key of its price at its moment, and the prices by key: one a price, whoever has it."""
    keys: dict[tuple[int, str, tuple[int, int] | None], str] = {}
    prices: dict[str, Priced] = {}
    of_windows = []
    for window, at in zip(windows, moments, strict=True):
        name = openclaw_service(window.stream.service, window.stream.dimensions)
        _, part = split_openclaw_service(name)
        try:
            price = catalog.price_for(window.stream.tenant_id, name, at).price
        except UnknownService:
            of_windows.append("")  # of no price: the row's error says so
            continue
        tenant = catalog.tenant(window.stream.tenant_id)
        days = tenant.prorated(price, tenant.period_at(window.start))
        key = keys.setdefault((id(price), part, days), str(len(keys)))
        if key not in prices:
            share = price_for_share(price, Share(*map(Decimal, days))) if days else price
            prices[key] = Priced(share, part or None)
        of_windows.append(key)
    return of_windows, prices


@contextmanager
def _registered(db: duckdb.DuckDBPyConnection, windows: Sequence[_Window], prices: Iterable[str]) -> Iterator[None]:
    """``shadow_windows``, inside the block."""
    columns: dict[str, list[object]] = {name: [] for name in _WINDOWS.names}
    for number, (window, price) in enumerate(zip(windows, prices, strict=False)):
        of = window.stream
        row = (number, of.tenant_id, of.service, of.dimensions, window.start, window.end, window.spans,
               window.booked_before, price)  # fmt: skip
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    db.register("shadow_windows", pa.table(columns, schema=_WINDOWS))
    try:
        yield
    finally:
        db.unregister("shadow_windows")


def _periods(tenant: Tenant, stream: _Stream, start: datetime, end: datetime) -> Iterator[_Window]:
    """The billing periods of a stream, and what was booked before ``start`` in the one that it cuts."""
    at = stream.first
    while at <= stream.last:
        period = tenant.period_at(at)
        yield _Window(stream, period.start, min(period.end, end), spans=True)
        if period.start < start:
            yield _Window(stream, period.start, start, spans=True, booked_before=True)
        at = period.end


def _versions(catalog: Catalog, tenant: Tenant, stream: _Stream) -> Iterator[_Window]:
    """A stream's windows one by one, cut where the tenant's rate card changes."""
    changes = (version.effective_from for version in catalog.rate_cards[tenant.rate_card].versions)
    cuts = [stream.first, *(at for at in changes if stream.first < at <= stream.last), stream.last + _MOMENT]
    for start, end in itertools.pairwise(cuts):
        yield _Window(stream, start, end)
