"""Which billing periods the ledger has usage of. One query; what a period is, the catalogue says."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import Period, period_at


def periods_with_usage(connection: Connection, catalog: Catalog) -> list[str]:
    """Keys of billing periods, oldest first, from the first to the last with usage, tenant by tenant.

    A key is a month (``YYYY-MM``), of tenants that are billed by days or weeks a day (``YYYY-MM-DD``). A tenant that
    the catalogue doesn't know counts by calendar months in UTC.
    """
    spans = connection.execute(
        text("SELECT tenant_id, min(window_start) AS first, max(window_start) AS last FROM metered_usage GROUP BY 1")
    )
    keys: set[str] = set()
    for tenant_id, first, last in spans:
        tenant = catalog.tenants.get(tenant_id)
        period_of = tenant.period_at if tenant else _utc_month
        period = period_of(first)
        while period.start <= last:
            keys.add(period.key)
            period = period_of(period.end)
    return sorted(keys)


def _utc_month(instant: datetime) -> Period:
    return period_at(instant, 1, ZoneInfo("UTC"))
