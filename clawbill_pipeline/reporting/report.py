"""What a report says, as plain data read from the ledger. How it looks is in ``workbook``, ``tables`` and ``page``."""

# ruff: noqa: S608 -- queries are put together from constants; every value is a parameter

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal, localcontext
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.costs import UnitCost
from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.causes import BILLING_STEPS, CAUSES
from clawbill_pipeline.ledger.waterfall import Scope, Step, scope_of
from clawbill_pipeline.ledger.witnesses import Witness, of_periods
from clawbill_pipeline.money import EXACT, total
from clawbill_pipeline.reporting.margin import Margin, read_margins

ZERO = Decimal(0)


class NothingToReport(LookupError):
    """The period was never reconciled. The message says what to run."""


@dataclass(frozen=True)
class Break:
    """A break as it stands in the ledger."""

    tenant_id: str
    service: str
    hour: datetime | None
    step: str
    cause: str
    currency: str | None
    quantity: Decimal
    amount: Decimal
    detail: str
    first_seen: datetime
    last_seen: datetime
    closed_at: datetime | None

    @property
    def standing(self) -> str:
        """fault, waiting or explained; closed for one that is gone."""
        return "closed" if self.closed_at else CAUSES[self.cause][0]


@dataclass(frozen=True)
class Adjustment:
    """A revision of a rated window after its first: ``change`` is what it added to the window's amount."""

    tenant_id: str
    service: str
    dimensions: str
    window_start: datetime
    revision: int
    reason: str
    quantity: Decimal
    amount: Decimal
    change: Decimal
    currency: str
    rated_at: datetime


@dataclass(frozen=True)
class Quarantined:
    """A line that could not be used."""

    tenant_id: str | None
    source: str
    uri: str
    place: str
    reason: str
    field: str
    detail: str
    quarantined_at: datetime


@dataclass(frozen=True)
class Bar:
    """One step of a currency's waterfall: a level (what is there) or a change (what came or went)."""

    label: str
    amount: Decimal
    is_level: bool


@dataclass(frozen=True)
class Day:
    """What was rated for the usage of one UTC day."""

    day: date
    currency: str
    amount: Decimal


@dataclass(frozen=True)
class Report:
    """Everything that a period's reports show."""

    period: str
    reconciliation_id: int
    as_of: datetime
    steps: tuple[Step, ...]
    breaks: tuple[Break, ...]
    adjustments: tuple[Adjustment, ...]
    quarantined: tuple[Quarantined, ...]
    days: tuple[Day, ...]
    costs: tuple[UnitCost, ...] = ()
    margins: tuple[Margin, ...] = ()
    witnesses: tuple[Witness, ...] = ()

    @cached_property
    def open(self) -> tuple[Break, ...]:
        return tuple(b for b in self.breaks if b.closed_at is None)

    @cached_property
    def faults(self) -> tuple[Break, ...]:
        return tuple(b for b in self.open if b.standing == "fault")

    @property
    def currencies(self) -> tuple[str, ...]:
        return tuple(sorted({step.currency for step in self.steps if step.currency}))

    def total(self, name: str, currency: str) -> Decimal:
        """The sum of one money column over the steps of a currency."""
        values = (getattr(step, name) for step in self.steps if step.currency == currency)
        return total(value for value in values if value is not None)

    def moved(self, step: str, currency: str) -> Decimal:
        """What the open breaks of one step come to in a currency."""
        return total(b.amount for b in self.open if b.step == step and b.currency == currency)

    def bars(self, currency: str) -> tuple[Bar, ...]:
        """The waterfall of a currency, from rated to paid; changes add up from each level to the next.

        Services that have no invoice line yet are a change of their own.
        """
        rated, invoiced = self.total("rated_amount", currency), self.total("invoiced_amount", currency)
        paid = self.total("paid_amount", currency)
        unbilled = {
            (step.tenant_id, step.service): step.rated_amount
            for step in self.steps
            if step.currency == currency and step.invoiced_amount is None and step.rated_amount is not None
        }
        moved = (
            b.amount
            for b in self.open
            if b.step in BILLING_STEPS and b.currency == currency and (b.tenant_id, b.service) in unbilled
        )
        waiting = total([*unbilled.values(), *moved]).copy_negate()
        rounding = self.total("rounding", currency)
        changes = [
            Bar("Not sent", self.moved("rated_sent", currency), False),
            Bar("Sent, but not what Stripe holds", self.moved("sent_held", currency), False),
            Bar("Held, but not what is invoiced", self.moved("held_invoiced", currency), False),
            Bar("Not on an invoice yet", waiting, False),
            Bar("Rounding of invoice lines", rounding, False),
        ]
        with localcontext(EXACT):
            unpaid = paid - invoiced
        return (
            Bar("Rated", rated, True),
            *(bar for bar in changes if bar.amount or bar.label.startswith("Rounding")),
            Bar("Invoiced", invoiced, True),
            *([Bar("Not paid", unpaid, False)] if unpaid else []),
            Bar("Paid", paid, True),
        )


def read_report(connection: Connection, catalog: Catalog, period: str) -> Report:
    """The report of ``period`` (``YYYY-MM``) as of its newest reconciliation.

    Raises NothingToReport, and ArchiveError where rows of the period are in the lake alone.
    """
    newest = connection.execute(
        text("SELECT id, as_of, waterfall, costs FROM reconciliations WHERE period = :period ORDER BY id DESC LIMIT 1"),
        {"period": period},
    ).first()
    if newest is None:
        raise NothingToReport(
            f"period {period} was never reconciled: run the asset usage_reconciliation, then make the report again"
        )
    scope = scope_of(catalog, period)
    refuse_archived(connection, *scope.hours)
    costs = tuple(UnitCost.from_json(cost) for cost in newest.costs or ())

    def rows(query: str) -> Iterable[dict[str, Any]]:
        return (
            dict(row._mapping) for row in connection.execute(text(f"WITH {scope.PERIODS} {query}"), scope.parameters)
        )

    witnesses = of_periods(connection, scope)
    said: dict[tuple[str, str], Decimal] = {}
    for one in witnesses:
        key = one.tenant_id, one.service
        said[key] = EXACT.add(said.get(key, ZERO), one.said_quantity)
    steps = (Step.from_json(step) for step in newest.waterfall)
    return Report(
        period=period,
        reconciliation_id=newest.id,
        as_of=newest.as_of,
        steps=tuple(replace(step, witness_quantity=said.get((step.tenant_id, step.service))) for step in steps),
        breaks=tuple(Break(**row) for row in rows(_BREAKS)),
        adjustments=tuple(Adjustment(**row) for row in rows(_ADJUSTMENTS)),
        quarantined=tuple(Quarantined(**row) for row in rows(_QUARANTINED)),
        days=tuple(Day(**row) for row in rows(_DAYS)),
        costs=costs,
        margins=read_margins(connection, catalog, scope, costs),
        witnesses=witnesses,
    )


_BREAKS = """
SELECT tenant_id, service, hour, step, cause, currency, quantity, amount, detail, first_seen, last_seen, closed_at
FROM breaks WHERE period = :period
ORDER BY closed_at IS NOT NULL, tenant_id, service, hour NULLS FIRST, step, cause, id"""
_ADJUSTMENTS = f"""
, revisions AS (
  SELECT x.*, x.amount - lag(x.amount, 1, 0) OVER (
    PARTITION BY x.hour, x.tenant_id, x.service, x.dimensions, x.window_start ORDER BY x.revision) AS change
  {Scope.rows("rated_usage")})
SELECT tenant_id, service, dimensions, window_start, revision, reason, quantity, amount, change, currency, rated_at
FROM revisions WHERE reason <> 'first'
ORDER BY tenant_id, service, dimensions, window_start, revision"""
# Lines whose tenant nobody knows are of this period where their landing, or their setting aside, falls into its month.
_QUARANTINED = """
, q AS (
  SELECT q.*, coalesce((SELECT max(hour) FROM landed_hours h WHERE h.landing_id = q.landing_id), quarantined_at) AS at
  FROM quarantine q)
SELECT tenant_id, source, uri, place, reason, field, detail, quarantined_at
FROM q LEFT JOIN billing_periods p USING (tenant_id)
WHERE at >= coalesce(p.starts, :month_start) AND at < coalesce(p.ends, :month_end)
ORDER BY tenant_id NULLS LAST, source, uri, id"""
_DAYS = f"""
, current AS (
  SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) window_start, currency, amount
  {Scope.rows("rated_usage")}
  ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC)
SELECT CAST(window_start AS date) AS day, currency, sum(amount) AS amount
FROM current GROUP BY 1, 2 ORDER BY 1, 2"""
