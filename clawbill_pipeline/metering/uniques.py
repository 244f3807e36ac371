"""Values that count once a billing period, in the hour in which they were used first, whenever that is learnt.

The ledger keeps each value's first window of a period, so that an hour looks up its own values alone, however long the
period is. Usage that comes late may move a value into an earlier hour: the later hour is then due to be metered again,
as if usage had landed for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger.database import copy_arrow, lock
from clawbill_pipeline.metering.counting import Count


def over_period(catalog: Catalog) -> list[str]:
    """The services that count a value once a period."""
    return [name for name, service in catalog.services.items() if service.unique_over == "period"]


def once_a_period(connection: Connection, catalog: Catalog, counted: Count, start: datetime, end: datetime) -> pa.Table:
    """The quantities of the hours ``[start, end)``, where those services count what was used there first.

    Workers that meter such services wait here for one another, until their transactions end.
    """
    services = over_period(catalog)
    if not services:
        return counted.quantities
    lock(connection, "metering", "unique values")
    connection.execute(_USED)
    copy_arrow(connection, "used", _with_periods(catalog, counted.used))
    connection.execute(_RECOUNT, {"start": start, "end": end})
    connection.execute(_REMEMBER)
    firsts = {tuple(row[:5]): row.firsts for row in connection.execute(_FIRSTS)}
    wanted = pc.is_in(counted.quantities["service"], pa.array(services, pa.string()))
    rows = counted.quantities.filter(wanted)
    keys = zip(*(rows[name].to_pylist() for name in _WINDOW), strict=True)
    numbers = pa.array([Decimal(firsts[key]) for key in keys], rows["quantity"].type)
    position = rows.schema.get_field_index("quantity")
    rows = rows.set_column(position, rows.field(position), numbers)
    return pa.concat_tables([counted.quantities.filter(pc.invert(wanted)), rows])


_WINDOW = ("hour", "tenant_id", "service", "dimensions", "window_start")


def _with_periods(catalog: Catalog, used: pa.Table) -> pa.Table:
    """``used`` with the start of each window's billing period; tenants that nobody knows have UTC months."""
    known: dict[tuple[str, datetime], datetime] = {}
    starts = []
    for tenant_id, at in zip(used["tenant_id"].to_pylist(), used["window_start"].to_pylist(), strict=True):
        if (tenant_id, at) not in known:
            tenant = catalog.tenants.get(tenant_id)
            month = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            known[tenant_id, at] = tenant.period_at(at).start if tenant else month
        starts.append(known[tenant_id, at])
    return used.append_column("period_start", pa.array(starts, pa.timestamp("us", tz="UTC")))


_USED = text("""
    CREATE TEMP TABLE used (hour timestamptz, tenant_id text, service text, dimensions text, window_start timestamptz,
                            value text, period_start timestamptz) ON COMMIT DROP
""")
_RECOUNT = text("""
    INSERT INTO hour_recounts (hour, asked, done)
    SELECT DISTINCT v.hour, 1, 0 FROM used u
    JOIN unique_values v USING (service, tenant_id, dimensions, period_start, value)
    WHERE u.window_start < v.window_start AND NOT (v.hour >= :start AND v.hour < :end)
    ON CONFLICT (hour) DO UPDATE SET asked = hour_recounts.asked + 1
""")
_REMEMBER = text("""
    INSERT INTO unique_values (service, tenant_id, dimensions, period_start, value, hour, window_start)
    SELECT DISTINCT ON (service, tenant_id, dimensions, period_start, value)
           service, tenant_id, dimensions, period_start, value, hour, window_start
    FROM used ORDER BY service, tenant_id, dimensions, period_start, value, window_start
    ON CONFLICT (service, tenant_id, dimensions, period_start, value)
    DO UPDATE SET hour = excluded.hour, window_start = excluded.window_start
    WHERE excluded.window_start < unique_values.window_start
""")
_FIRSTS = text("""
    SELECT u.hour, u.tenant_id, u.service, u.dimensions, u.window_start, count(v.value) AS firsts
    FROM used u LEFT JOIN unique_values v
      ON v.service = u.service AND v.tenant_id = u.tenant_id AND v.dimensions = u.dimensions
     AND v.period_start = u.period_start AND v.value = u.value AND v.window_start = u.window_start
    GROUP BY u.hour, u.tenant_id, u.service, u.dimensions, u.window_start
""")
