"""What a day's report says, as plain data: what each tenant used hour by hour, and the breaks of those hours.

Days are of UTC. What only a period knows (invoices, payments, totals) is in the period's report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from sqlalchemy import Connection, text

from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.witnesses import Witness, read_witnesses
from clawbill_pipeline.money import total
from clawbill_pipeline.reporting.report import Bar, Break, NothingToReport


@dataclass(frozen=True)
class Hour:
    """One tenant's service in one hour. ``held_units`` is None where Stripe's hours were not read: where the period's
    total agrees they need not be. ``witness_quantity`` is what a witness says of the hour, for information."""

    hour: datetime
    tenant_id: str
    service: str
    currency: str | None
    metered_quantity: Decimal | None
    rated_quantity: Decimal | None
    rated_amount: Decimal | None
    planned_units: Decimal | None
    sent_units: Decimal | None
    held_units: Decimal | None
    revisions: int
    witness_quantity: Decimal | None = None


@dataclass(frozen=True)
class DayReport:
    """All that a day's report shows, as of the newest reconciliation of its month or the one before."""

    day: date
    reconciliation_id: int
    as_of: datetime
    hours: tuple[Hour, ...]
    breaks: tuple[Break, ...]
    witnesses: tuple[Witness, ...] = ()

    @property
    def currencies(self) -> tuple[str, ...]:
        return tuple(sorted({hour.currency for hour in self.hours if hour.currency}))

    @property
    def open(self) -> tuple[Break, ...]:
        return tuple(found for found in self.breaks if found.closed_at is None)

    @property
    def faults(self) -> tuple[Break, ...]:
        return tuple(found for found in self.breaks if found.standing == "fault")

    def bars(self, currency: str) -> tuple[Bar, ...]:
        """The day's waterfall in a currency, from what is rated to what Stripe has; further only periods go."""
        rated = total(h.rated_amount for h in self.hours if h.currency == currency and h.rated_amount is not None)
        changes = [
            Bar(label, total(b.amount for b in self.open if (b.step, b.currency) == (step, currency)), False)
            for step, label in (("rated_sent", "Not sent"), ("sent_held", "Sent, but not what Stripe holds"))
        ]
        left = total([rated, *(bar.amount for bar in changes)])
        return (Bar("Rated", rated, True), *(bar for bar in changes if bar.amount), Bar("At Stripe", left, True))

    def rated_hours(self, currency: str) -> list[tuple[str, Decimal]]:
        """``(HH:MM, amount)`` for every hour of the day."""
        amounts: dict[int, list[Decimal]] = {number: [] for number in range(24)}
        for hour in self.hours:
            if hour.currency == currency and hour.rated_amount is not None:
                amounts[hour.hour.hour].append(hour.rated_amount)
        return [(f"{number:02}:00", total(of)) for number, of in amounts.items()]


def read_day(connection: Connection, day: date) -> DayReport:
    """The report of a UTC day. Raises NothingToReport, and ArchiveError for a day whose rows are in the lake alone."""
    # A billing period that holds the day starts in its month or in the one before.
    months = [f"{day:%Y-%m}", f"{day.replace(day=1) - timedelta(days=1):%Y-%m}"]
    newest = connection.execute(_NEWEST, {"periods": months}).first()
    if newest is None:
        raise NothingToReport(
            f"{day}: neither {months[0]} nor {months[1]} was reconciled: run the asset usage_reconciliation, then this"
        )
    start = datetime.combine(day, time(), UTC)
    given = {"start": start, "end": start + timedelta(days=1)}
    refuse_archived(connection, given["start"], given["end"])
    witnesses = read_witnesses(connection, given["start"], given["end"])
    said: dict[tuple[datetime, str, str], list[Decimal]] = {}
    for one in witnesses:
        if not one.is_day:
            said.setdefault((one.starts, one.tenant_id, one.service), []).append(one.said_quantity)
    hours = (Hour(**row._mapping) for row in connection.execute(_HOURS, given))
    keyed = ((hour, said.get((hour.hour, hour.tenant_id, hour.service))) for hour in hours)
    return DayReport(
        day,
        newest.id,
        newest.as_of,
        tuple(replace(hour, witness_quantity=total(told)) if told else hour for hour, told in keyed),
        tuple(Break(**row._mapping) for row in connection.execute(_BREAKS, given)),
        tuple(one for one in witnesses if one.is_day),
    )


_NEWEST = text("SELECT id, as_of FROM reconciliations WHERE period = ANY(:periods) ORDER BY id DESC LIMIT 1")
_HOURS = text("""
WITH m AS (
  SELECT hour, tenant_id, service, sum(quantity) AS metered_quantity, max(revision) AS revisions
  FROM (SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) *
    FROM metered_usage WHERE hour >= :start AND hour < :end
    ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) newest
  GROUP BY hour, tenant_id, service),
r AS (
  SELECT hour, tenant_id, service, sum(quantity) AS rated_quantity, sum(amount) AS rated_amount,
    min(currency) AS currency
  FROM (SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) *
    FROM rated_usage WHERE hour >= :start AND hour < :end
    ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) newest
  GROUP BY hour, tenant_id, service),
newest_planned AS (
  SELECT DISTINCT ON (hour, customer_id, meter, window_start, tenant_id) hour, tenant_id, service, units
  FROM usage_record_parts WHERE hour >= :start AND hour < :end
  ORDER BY hour, customer_id, meter, window_start, tenant_id, revision DESC),
newest_sent AS (
  SELECT DISTINCT ON (hour, customer_id, meter, window_start, tenant_id) hour, tenant_id, service, units
  FROM usage_record_parts WHERE hour >= :start AND hour < :end AND state = 'delivered'
  ORDER BY hour, customer_id, meter, window_start, tenant_id, revision DESC),
p AS (SELECT hour, tenant_id, service, sum(units) AS planned_units FROM newest_planned GROUP BY 1, 2, 3),
s AS (SELECT hour, tenant_id, service, sum(units) AS sent_units FROM newest_sent GROUP BY 1, 2, 3),
read AS (
  SELECT DISTINCT ON (hour, tenant_id, service) hour, tenant_id, service, units
  FROM usage_summaries WHERE hour >= :start AND hour < :end ORDER BY hour, tenant_id, service, id DESC),
-- Of tenants that share a customer Stripe holds the sum: what is sent of the others is theirs, the rest the payer's.
others AS (
  SELECT s.hour, c.payer_id AS tenant_id, s.service, sum(s.sent_units) AS sent_units
  FROM s JOIN stripe_customers c USING (tenant_id) WHERE c.payer_id IS NOT NULL GROUP BY 1, 2, 3),
h AS (
  SELECT hour, tenant_id, service, read.units - coalesce(others.sent_units, 0) AS held_units
  FROM read LEFT JOIN others USING (hour, tenant_id, service)
  UNION ALL
  SELECT s.hour, s.tenant_id, s.service, s.sent_units
  FROM s JOIN stripe_customers c USING (tenant_id)
  JOIN read ON read.hour = s.hour AND read.service = s.service AND read.tenant_id = c.payer_id)
SELECT hour, tenant_id, service, currency, metered_quantity, rated_quantity, rated_amount, planned_units, sent_units,
  held_units, coalesce(revisions, 0) AS revisions
FROM m FULL JOIN r USING (hour, tenant_id, service) FULL JOIN p USING (hour, tenant_id, service)
FULL JOIN s USING (hour, tenant_id, service) FULL JOIN h USING (hour, tenant_id, service)
ORDER BY hour, tenant_id, service
""")
_BREAKS = text("""
SELECT tenant_id, service, hour, step, cause, currency, quantity, amount, detail, first_seen, last_seen, closed_at
FROM breaks WHERE hour >= :start AND hour < :end
ORDER BY closed_at IS NOT NULL, tenant_id, service, hour, step, cause, id
""")
