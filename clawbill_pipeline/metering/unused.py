"""The close of a billing period: a quantity of zero on its last hour, where nothing was used in it, to be rated.

Only the whole period knows that a flat fee is owed for no usage at all, or what usage misses of a minimum. As a
metered quantity it goes the way of all others, and usage that comes late after all is the next revision of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, Tenant
from clawbill_pipeline.catalog.periods import Period, utc_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.sharding import Shard, share_of


def meter_unused(
    ledger: Ledger,
    catalog: Catalog,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    run_id: str,
    shard: Shard | None = None,
) -> list[datetime]:
    """Writes the zeros of every billing period that closes within the hours ``[start, end)``, once it has.

    For services with ``basis: period_to_date``: each dimension set that was used in the period, and without any usage
    those that no dimension prices, where the tenant's subscription has them and runs in the period. With ``shard``, of
    its tenants alone. Returns the hours that got one, which are among the given ones, to be rated. Run again, it writes
    nothing.
    """
    services = {name: s for name, s in catalog.services.items() if s.basis == "period_to_date"}
    if not services:
        return []
    plain = [name for name, service in services.items() if not service.dimensions]
    closing: list[dict[str, Any]] = []
    with ledger.transaction() as connection:
        share = share_of(connection, shard)
    for tenant_id, tenant in catalog.tenants.items():
        if not share.holds(tenant_id):
            continue
        for period in _closing(tenant, start, end):
            close = tenant.close(period)
            if close > now:
                continue
            last = utc_hour(close - timedelta(microseconds=1))
            closing.append(
                {"tenant_id": tenant_id, "starts": period.start, "ends": period.end, "hour": last,
                 # An hour that the period's start cuts as well belongs to it from there on only.
                 "window_start": max(last, period.start),
                 "due": period.start >= catalog.start and tenant.days(period)[0] > 0}
            )  # fmt: skip
    if not closing:
        return []
    ledger.ensure_partitions({row["hour"] for row in closing})
    given: dict[str, Any] = {name: [row[name] for row in closing] for name in closing[0]}
    given |= {"services": list(services), "plain": plain, "now": now, "run_id": run_id,
              "first": min(given["starts"]), "last": max(given["ends"])}  # fmt: skip
    with ledger.transaction() as connection:
        return sorted(set(connection.scalars(_UNUSED, given)))


def _closing(tenant: Tenant, start: datetime, end: datetime) -> Iterator[Period]:
    """The tenant's periods that close after ``start`` and up to ``end``."""
    at = start
    while at < end:
        period = tenant.period_at(at)
        if start < tenant.close(period) <= end:
            yield period
        at = period.end


# One pass over the period's hours for all tenants: the table is by hour.
_UNUSED = text("""
    WITH closing AS (
        SELECT * FROM unnest(CAST(:tenant_id AS text[]), CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]),
                             CAST(:hour AS timestamptz[]), CAST(:window_start AS timestamptz[]),
                             CAST(:due AS boolean[]))
            AS closing (tenant_id, starts, ends, hour, window_start, due)),
    used AS (
        SELECT closing.*, service, dimensions, bool_or(m.window_start = closing.window_start) AS has_last
        FROM closing JOIN metered_usage m USING (tenant_id)
        WHERE m.hour > CAST(:first AS timestamptz) - interval '1 hour' AND m.hour < CAST(:last AS timestamptz)
          AND m.window_start >= closing.starts AND m.window_start < closing.ends AND m.service = ANY(:services)
        GROUP BY closing.tenant_id, starts, ends, closing.hour, closing.window_start, due, service, dimensions)
    INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity, events, reason,
                               metered_at, run_id)
    SELECT hour, tenant_id, service, dimensions, window_start, 1, 0, 0, 'first', :now, :run_id
    FROM (SELECT hour, tenant_id, service, dimensions, window_start FROM used WHERE NOT has_last
          UNION ALL
          SELECT hour, tenant_id, service, '', window_start FROM closing JOIN stripe_items USING (tenant_id)
          WHERE due AND service = ANY(:plain)
            AND NOT EXISTS (SELECT FROM used WHERE used.tenant_id = closing.tenant_id AND used.starts = closing.starts
                                               AND used.service = stripe_items.service)) AS zero
    ON CONFLICT DO NOTHING RETURNING hour
""")
