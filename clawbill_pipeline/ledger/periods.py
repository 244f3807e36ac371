"""Which billing periods the ledger has usage of. One query; what a period is, the catalogue says."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import period_at


def periods_with_usage(connection: Connection, catalog: Catalog) -> list[str]:
    """Months (``YYYY-MM``), oldest first, from the first to the last in which a billing period with usage starts.

    A tenant that the catalogue doesn't know counts by calendar months in UTC.
    """
    spans = connection.execute(
        text("SELECT tenant_id, min(window_start) AS first, max(window_start) AS last FROM metered_usage GROUP BY 1")
    )
    months: set[str] = set()
    for tenant_id, first, last in spans:
        tenant = catalog.tenants.get(tenant_id)
        zone, anchor = (tenant.zone, tenant.anchor_day) if tenant else (ZoneInfo("UTC"), 1)
        period = period_at(first, anchor, zone)
        while period.start <= last:
            months.add(period.key)
            period = period_at(period.end, anchor, zone)
    return sorted(months)
