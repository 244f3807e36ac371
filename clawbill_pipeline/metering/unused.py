"""Services that a subscription bills and nobody used: a quantity of zero on the period's last hour, to be rated.

Only the whole period knows that a flat fee or a minimum is owed for no usage at all. As a metered quantity it goes the
way of all others, and usage that comes late after all is the next revision of it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.ledger import Ledger


def meter_unused_of(
    ledger: Ledger, catalog: Catalog, *, start: datetime, end: datetime, now: datetime, run_id: str
) -> int:
    """As ``meter_unused``, for the billing periods that end within the hours ``[start, end)``; returns how many hours
    got a zero. Those hours are among the given ones, so that the run that metered them rates them too."""
    ended = (tenant.period_at(end - timedelta(microseconds=1)) for tenant in catalog.tenants.values())
    over = (tenant.period_at(start) for tenant in catalog.tenants.values())
    months = {period.key for period in (*ended, *over) if start < period.end <= end}
    found = {hour for month in months for hour in meter_unused(ledger, catalog, period=month, now=now, run_id=run_id)}
    return len(found)


def meter_unused(ledger: Ledger, catalog: Catalog, *, period: str, now: datetime, run_id: str) -> list[datetime]:
    """Writes the zeros of every billing period that starts in month ``period`` (``YYYY-MM``) and has ended.

    Of services with ``basis: period_to_date`` that no dimension prices, for tenants whose subscription has them.
    Returns the hours that got one, to be rated. Run again, it writes nothing.
    """
    services = [name for name, s in catalog.services.items() if s.basis == "period_to_date" and not s.dimensions]
    ended: list[dict[str, Any]] = []
    for tenant_id, tenant in catalog.tenants.items():
        span = tenant.period(period)
        if span.end <= now and span.start >= catalog.start:
            last = utc_hour(span.end - timedelta(microseconds=1))
            ended += [
                {"tenant_id": tenant_id, "service": service, "start": span.start, "end": span.end, "hour": last,
                 # An hour that the period's start cuts as well belongs to it from there on only.
                 "window_start": max(last, span.start), "now": now, "run_id": run_id}
                for service in services
            ]  # fmt: skip
    ledger.ensure_partitions({row["hour"] for row in ended})
    hours: set[datetime] = set()
    with ledger.transaction() as connection:
        for row in ended:
            if connection.execute(_UNUSED, row).rowcount:
                hours.add(row["hour"])
    return sorted(hours)


_UNUSED = text("""
    INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity, events, reason,
                               metered_at, run_id)
    SELECT :hour, :tenant_id, :service, '', :window_start, 1, 0, 0, 'first', :now, :run_id
    WHERE EXISTS (SELECT FROM stripe_items WHERE tenant_id = :tenant_id AND service = :service)
      AND NOT EXISTS (SELECT FROM metered_usage
                      WHERE tenant_id = :tenant_id AND service = :service
                        AND hour > CAST(:start AS timestamptz) - interval '1 hour' AND hour < :end
                        AND window_start >= :start AND window_start < :end)
    ON CONFLICT DO NOTHING
""")
