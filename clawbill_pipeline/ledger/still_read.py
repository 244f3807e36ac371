"""Which of the ledger's months is still read by what runs by itself, and so may not leave the database yet.

The calendar's and the invoices' side of ``archive``, which knows neither: there a month is only rows.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger.archive import ArchiveError
from clawbill_pipeline.ledger.database import month_bounds
from clawbill_pipeline.ledger.waterfall import scope_of


def refuse_still_read(connection: Connection, catalog: Catalog, month: date, now: datetime) -> None:
    """Raises ArchiveError for a UTC month with hours of a billing period that is open, drafted or reconciled every day.

    A quarter's or a year's tiers, its draft and its reconciliation are sums over all of its months; and what is
    reconciled every day begins, in other time zones and on other anchor days, in the month before.
    """
    first, after = month_bounds(month.year, month.month)

    def touched_by(period: str) -> bool:
        start, end = scope_of(catalog, period).hours
        return start < after and first < end

    for period in sorted(reconciled_daily(catalog, now)):
        if touched_by(period):
            raise ArchiveError(
                f"{month:%Y-%m} is still read every day: it has hours of the billing periods of {period}, which are "
                "reconciled until the ones after them have ended; archive it then"
            )
    row = connection.execute(text(_DRAFTS), {"first": first, "after": after}).one_or_none()
    if row is not None:
        raise ArchiveError(
            f"{month:%Y-%m} is still compared with a draft, {row.invoice_id} of {row.tenant_id}; decide on it first "
            "(clawbill close status)"
        )
    for (period,) in connection.execute(text(_BREAKS)):
        if touched_by(period):
            raise ArchiveError(
                f"{month:%Y-%m} has hours of billing periods of {period}, which has open breaks; settle them first "
                "(clawbill waterfall, clawbill correct)"
            )


def reconciled_daily(catalog: Catalog, now: datetime) -> set[str]:
    """The months (``YYYY-MM``) whose periods the schedule ``daily`` reconciles at ``now``."""
    before = now.replace(day=1) - timedelta(days=1)
    return {f"{now:%Y-%m}", f"{before:%Y-%m}"} | catalog.open_months(now)


_DRAFTS = """
SELECT i.invoice_id, i.tenant_id FROM invoices i JOIN invoice_lines l USING (invoice_id)
WHERE i.status = 'draft' AND l.period_start < :after AND l.period_end > :first ORDER BY i.created LIMIT 1"""
# Those of an hour are archive's to find. A line in quarantine has no hour that could be known, and may stay there.
_BREAKS = """
SELECT DISTINCT period FROM breaks WHERE closed_at IS NULL AND hour IS NULL AND cause <> 'quarantined' ORDER BY 1"""
