"""Meters the last hours of some tenants ahead of everybody else's turn: their invoice is about to go out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock_all
from clawbill_pipeline.metering.hours import LANDED, count_landed, write_quantities


def meter_ahead(
    ledger: Ledger,
    lake: Lake,
    catalog: Catalog,
    *,
    tenants: Collection[str],
    start: datetime,
    until: datetime,
    now: datetime,
    run_id: str,
) -> list[datetime]:
    """Meters what ``tenants`` used in ``[start, until)`` and nobody has counted yet, ahead of everybody else's turn.

    For an invoice that is about to go out: the hours stay due for all, and their own run finds these quantities as they
    are. Returns the hours that were counted. Run again, it changes nothing.
    """
    names = sorted(tenants)
    last = utc_hour(until - timedelta(microseconds=1))
    given = {"first": utc_hour(start), "last": last, "tenants": names}
    with ledger.transaction() as connection:
        hours = list(connection.scalars(_AHEAD, given))
    ledger.ensure_partitions(hours)
    for hour in hours:
        end = hour + HOUR
        with ledger.transaction() as connection:
            lock_all(connection, [("metering", hour.isoformat())])
            landed = connection.execute(LANDED, {"start": hour, "end": end}).all()
            changed = Counter[str]()
            if landed:
                counted = count_landed(connection, lake, catalog, landed, hour, end)
                quantities = counted.quantities
                wanted = pc.is_in(quantities["tenant_id"], pa.array(names, pa.string()))
                wanted = pc.and_(
                    wanted, pc.less(quantities["window_start"], pa.scalar(until, pa.timestamp("us", "UTC")))
                )
                theirs = replace(counted, quantities=quantities.filter(wanted))
                revised = write_quantities(connection, theirs, hour, end, now, run_id, names, until)
                changed = Counter(tenant_id for _, tenant_id, _ in revised)
            connection.execute(
                _WRITE_AHEAD,
                [
                    {"hour": hour, "tenant": tenant_id, "landings": len(landed), "changed": changed[tenant_id],
                     "now": now, "run_id": run_id}
                    for tenant_id in names
                ],
            )  # fmt: skip
    return hours


# Hours that were not metered since something landed for them last, for everybody or for each of the tenants.
_AHEAD = text("""
    WITH due AS (
        SELECT h.hour, coalesce(l.landings, 0) AS landings
        FROM generate_series(CAST(:first AS timestamptz), CAST(:last AS timestamptz), interval '1 hour') AS h (hour)
        LEFT JOIN (SELECT hour, count(*) AS landings FROM landed_hours WHERE hour >= :first AND hour <= :last
                   GROUP BY hour) l USING (hour)
        LEFT JOIN (SELECT hour, max(landings) AS landings FROM metered_hours WHERE hour >= :first AND hour <= :last
                   GROUP BY hour) m USING (hour)
        WHERE coalesce(m.landings, -1) < coalesce(l.landings, 0))
    SELECT hour FROM due
    WHERE EXISTS (
        SELECT FROM unnest(CAST(:tenants AS text[])) AS wanted (tenant_id)
        WHERE NOT EXISTS (SELECT FROM metered_ahead a
                          WHERE a.hour = due.hour AND a.tenant_id = wanted.tenant_id AND a.landings >= due.landings))
    ORDER BY hour
""")
_WRITE_AHEAD = text("""
    INSERT INTO metered_ahead (hour, tenant_id, landings, changed, metered_at, run_id)
    VALUES (:hour, :tenant, :landings, :changed, :now, :run_id) ON CONFLICT DO NOTHING
""")
