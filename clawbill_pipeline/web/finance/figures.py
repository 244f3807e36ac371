"""What the finance pages read from the ledger, as plain data: one function a part of a page. Changes nothing.

Sums over many tenants, filters and paging are done by the database. ``seen`` limits every answer to the tenants that
the viewer may see; None means all. Where a sum or a list would lack the rows of an archived month, there is none, and
``archived`` names the months.
"""

# ruff: noqa: S608 -- queries are put together from constants of this file; every value is a parameter

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import urlencode

import psycopg
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import OperationalError

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.invoicing.booked import booked
from clawbill_pipeline.invoicing.draft import Booked, Draft, DraftLine, windows
from clawbill_pipeline.ledger.adjustment_log import Standing, read_standings
from clawbill_pipeline.ledger.archive import archived_of
from clawbill_pipeline.ledger.causes import CAUSES, NO_FAULT, STEPS
from clawbill_pipeline.ledger.waterfall import Scope, Step, scope_of
from clawbill_pipeline.money import EXACT, invoice_amount, total
from clawbill_pipeline.reporting.report import Bar, Break, Day, Report

ZERO = Decimal(0)
Rows = Sequence[Row[*tuple[Any, ...]]]
Seen = tuple[str, ...] | None
T = TypeVar("T")

#: Rows of a page of a long list.
PAGE = 50


def _seen(column: str = "tenant_id") -> str:
    return f"(CAST(:seen AS text[]) IS NULL OR {column} = ANY(CAST(:seen AS text[])))"


def _like(words: str) -> str:
    """``words`` as a pattern that finds them anywhere, literally."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", words) + "%"


# --- a billing period ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reconciled:
    """The newest reconciliation of a period."""

    id: int
    period: str
    as_of: datetime
    sha256: str


@dataclass(frozen=True)
class Total:
    """What the waterfall of a currency comes to. ``unbilled`` is the part of ``rated`` that is on no invoice."""

    currency: str
    rated: Decimal
    unbilled: Decimal | None
    invoiced: Decimal
    paid: Decimal
    rounding: Decimal
    breaks: int
    waiting: int


def periods(connection: Connection) -> list[str]:
    """The reconciled periods, newest first."""
    return list(connection.scalars(text("SELECT DISTINCT period FROM reconciliations ORDER BY 1 DESC")))


def newest(connection: Connection, period: str, before: datetime | None = None) -> Reconciled | None:
    """The newest reconciliation of ``period``, or the newest one up to an instant."""
    row = connection.execute(
        text(
            "SELECT id, period, as_of, sha256 FROM reconciliations WHERE period = :period"
            " AND (CAST(:before AS timestamptz) IS NULL OR as_of <= :before) ORDER BY id DESC LIMIT 1"
        ),
        {"period": period, "before": before},
    ).first()
    return _reconciled(row) if row else None


def _reconciled(row: Row[*tuple[Any, ...]]) -> Reconciled:
    return Reconciled(row.id, row.period, row.as_of, row.sha256)


_STEPS = f"""
steps AS (
  SELECT s.* FROM reconciliations r, jsonb_to_recordset(r.waterfall) AS s (
    tenant_id text, service text, currency text, bill_by text, metered_quantity numeric, rated_amount numeric,
    sent numeric, held_by_stripe numeric, invoiced_amount numeric, paid_amount numeric, rounding numeric,
    breaks int, waiting int)
  WHERE r.id = :reconciliation AND {_seen("s.tenant_id")})"""
_TOTALS = f"""
WITH {_STEPS}
SELECT coalesce(currency, '') AS currency, coalesce(sum(rated_amount), 0) AS rated,
  sum(rated_amount) FILTER (WHERE invoiced_amount IS NULL) AS unbilled,
  coalesce(sum(invoiced_amount), 0) AS invoiced, coalesce(sum(paid_amount), 0) AS paid,
  coalesce(sum(rounding), 0) AS rounding, sum(breaks) AS breaks, sum(waiting) AS waiting
FROM steps GROUP BY 1 ORDER BY 1"""


# By content: a reconciliation never changes, and a month's trend needs thirty of them.
_kept: dict[tuple[str, Seen], tuple[Total, ...]] = {}


def totals(connection: Connection, reconciled: Reconciled, seen: Seen) -> tuple[Total, ...]:
    """Per currency, what the waterfall of a reconciliation comes to; the currency is empty where none is known."""
    key = (reconciled.sha256, seen)
    if key not in _kept:
        given = {"reconciliation": reconciled.id, "seen": _array(seen)}
        found = tuple(Total(**row._mapping) for row in connection.execute(text(_TOTALS), given))
        if len(_kept) > 2000:
            _kept.clear()
        _kept[key] = found
        return found
    return _kept[key]


def _array(seen: Seen) -> list[str] | None:
    return None if seen is None else list(seen)


def waterfalls(connection: Connection, reconciled: Reconciled, seen: Seen) -> dict[str, tuple[Bar, ...]]:
    """Per currency the bars of the waterfall, as in the reports.

    The report's own arithmetic on sums: all that is on an invoice counts as one tenant, all that is not as another.
    """
    found = totals(connection, reconciled, seen)
    steps = [
        step
        for t in found
        if t.currency
        for step in (
            Step("billed", "", t.currency, None, ZERO, EXACT.subtract(t.rated, t.unbilled or ZERO), None, None,
                 t.invoiced, t.paid, t.rounding),
            Step("unbilled", "", t.currency, None, ZERO, t.unbilled),
        )
    ]  # fmt: skip
    query = f"""
        WITH {_STEPS}
        SELECT b.step, b.currency, s.tenant_id IS NOT NULL AS unbilled, sum(b.amount) AS amount
        FROM breaks b LEFT JOIN steps s ON s.tenant_id = b.tenant_id AND s.service = b.service
          AND s.currency = b.currency AND s.invoiced_amount IS NULL AND s.rated_amount IS NOT NULL
        WHERE b.period = :period AND b.closed_at IS NULL AND {_seen("b.tenant_id")} GROUP BY 1, 2, 3"""
    given = {"reconciliation": reconciled.id, "period": reconciled.period, "seen": _array(seen)}
    at = reconciled.as_of
    breaks = tuple(
        Break("unbilled" if row.unbilled else "billed", "", None, row.step, "unexplained", row.currency, ZERO,
              row.amount, "", at, at, None)
        for row in connection.execute(text(query), given)
    )  # fmt: skip
    report = Report(reconciled.period, reconciled.id, at, tuple(steps), breaks, (), (), ())
    return {currency: report.bars(currency) for currency in report.currencies}


@dataclass(frozen=True)
class Trend:
    """How a period grew: per currency what was rated by the end of each day, and the open breaks then."""

    rated: Mapping[str, tuple[Day, ...]]
    breaks: tuple[Day, ...]


def trend(connection: Connection, period: str, seen: Seen) -> Trend:
    """Day by day, by the last reconciliation of each day; at most the newest 62 of them."""
    query = """
        SELECT * FROM (
          SELECT DISTINCT ON (CAST(as_of AT TIME ZONE 'UTC' AS date)) CAST(as_of AT TIME ZONE 'UTC' AS date) AS day, id,
            period, as_of, sha256
          FROM reconciliations WHERE period = :period
          ORDER BY CAST(as_of AT TIME ZONE 'UTC' AS date) DESC, id DESC LIMIT 62) d ORDER BY day"""
    rated: dict[str, list[Day]] = {}
    breaks = []
    for row in connection.execute(text(query), {"period": period}):
        of_day = totals(connection, _reconciled(row), seen)
        breaks.append(Day(row.day, "", Decimal(sum(t.breaks for t in of_day))))
        for t in of_day:
            if t.currency:
                rated.setdefault(t.currency, []).append(Day(row.day, t.currency, t.rated))
    return Trend({currency: tuple(days) for currency, days in sorted(rated.items())}, tuple(breaks))


_kept_days: dict[tuple[str, Seen], dict[str, tuple[Day, ...]]] = {}
#: Milliseconds that the days of a period may take: the one sum that reads every hour. Beyond, a page does without.
PATIENCE = 2000


@dataclass(frozen=True)
class RatedDays:
    """Per currency, what was rated for the usage of each UTC day; empty where there is too much to sum up in time."""

    days: Mapping[str, tuple[Day, ...]]
    archived: tuple[str, ...] = ()


def rated_days(connection: Connection, catalog: Catalog, reconciled: Reconciled, seen: Seen) -> RatedDays:
    """The days of a period, of all tenants together."""
    key, scope = (reconciled.sha256, seen), scope_of(catalog, reconciled.period)
    if archived := archived_of(connection, *scope.hours):
        return RatedDays({}, archived)  # and not kept: the month may be back tomorrow
    if key not in _kept_days:
        days: dict[str, list[Day]] = {}
        try:
            with connection.begin_nested():
                connection.execute(text(f"SET LOCAL statement_timeout = {PATIENCE}"))
                query = text(f"WITH {scope.PERIODS} {_DAYS_SEEN}")
                for row in connection.execute(query, {**scope.parameters, "seen": _array(seen)}):
                    days.setdefault(row.currency, []).append(Day(row.day, row.currency, row.amount))
                connection.execute(text("SET LOCAL statement_timeout TO DEFAULT"))  # for what the page reads next
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.QueryCanceled):
                raise
        if len(_kept_days) > 200:
            _kept_days.clear()
        _kept_days[key] = {currency: tuple(of) for currency, of in days.items()}
    return RatedDays(_kept_days[key])


@dataclass(frozen=True)
class OfMonth:
    """One billing period in the row of periods."""

    period: str
    as_of: datetime
    totals: tuple[Total, ...]


def months(connection: Connection, seen: Seen, most: int = 12) -> list[OfMonth]:
    """The newest periods, newest first, each by its newest reconciliation."""
    query = """
        SELECT DISTINCT ON (period) period, id, as_of, sha256 FROM reconciliations
        ORDER BY period DESC, id DESC LIMIT :most"""
    rows = connection.execute(text(query), {"most": most}).all()
    return [OfMonth(row.period, row.as_of, totals(connection, _reconciled(row), seen)) for row in rows]


def tenants(
    connection: Connection, reconciliation: int, seen: Seen, words: str = "", page: int = 1
) -> tuple[Rows, int]:
    """A page of tenants with their sums, those with most breaks first; and how many there are."""
    grouped = f"""
        WITH {_STEPS}
        SELECT tenant_id, currency, count(*) FILTER (WHERE service <> '-') AS services, sum(rated_amount) AS rated,
          sum(invoiced_amount) AS invoiced, sum(paid_amount) AS paid, sum(rounding) AS rounding,
          sum(breaks) AS breaks, sum(waiting) AS waiting
        FROM steps WHERE :words = '' OR tenant_id ILIKE :pattern GROUP BY tenant_id, currency"""
    given = {
        "reconciliation": reconciliation, "seen": _array(seen), "words": words, "pattern": _like(words),
        "most": PAGE, "skip": (page - 1) * PAGE,
    }  # fmt: skip
    query = f"SELECT *, count(*) OVER () AS every FROM ({grouped}) t ORDER BY breaks DESC, rated DESC NULLS LAST,"
    rows = connection.execute(text(f"{query} tenant_id, currency LIMIT :most OFFSET :skip"), given).all()
    return rows, rows[0].every if rows else 0


def causes(connection: Connection, period: str, seen: Seen) -> Rows:
    """The open differences by cause and currency, faults first, largest first."""
    query = f"""
        SELECT cause, currency, count(*) AS count, sum(amount) AS amount, cause <> ALL(:no_fault) AS fault
        FROM breaks WHERE period = :period AND closed_at IS NULL AND {_seen()}
        GROUP BY cause, currency ORDER BY fault DESC, abs(sum(amount)) DESC, cause, currency"""
    given = {"period": period, "seen": _array(seen), "no_fault": list(NO_FAULT)}
    return connection.execute(text(query), given).all()


def report_files(connection: Connection, period: str) -> Rows:
    """The newest of each report file of a period."""
    query = "SELECT DISTINCT ON (name) name, bytes, sha256, made_at FROM reports WHERE period = :period"
    return connection.execute(text(f"{query} ORDER BY name, id DESC"), {"period": period}).all()


# --- breaks ----------------------------------------------------------------------------------------------------------

STANDINGS = {
    "faults": "Open faults",
    "open": "All open",
    "waiting": "Waiting",
    "explained": "Explained",
    "gone": "Gone",
}
ORDERS = {"amount": "Largest amount", "age": "Oldest", "tenant": "Tenant and hour"}
_ORDER_BY = {
    "amount": "abs(amount) DESC, id",
    "age": "first_seen, id",
    "tenant": "tenant_id, service, hour NULLS FIRST, id",
}


@dataclass(frozen=True)
class Filters:
    """What of the breaks is asked for. Words that mean nothing here are left out, not refused."""

    standing: str = "faults"
    cause: str = ""
    step: str = ""
    tenant: str = ""
    service: str = ""
    words: str = ""
    order: str = "amount"
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        def one_of(name: str, known: Mapping[str, object], default: str = "") -> str:
            value = query.get(name, default)
            return value if value in known else default

        return cls(
            standing=one_of("standing", STANDINGS, "faults"),
            cause=one_of("cause", CAUSES),
            step=one_of("step", STEPS),
            tenant=query.get("tenant", "").strip(),
            service=query.get("service", "").strip(),
            words=query.get("words", "").strip()[:200],
            order=one_of("order", ORDERS, "amount"),
            page=page_number(query),
        )

    def query(self, **changes: object) -> str:
        """The query string that leads to these filters, with changes."""
        wanted = {**self.__dict__, **changes}
        default = Filters().__dict__
        return urlencode({name: value for name, value in wanted.items() if value != default[name]})

    def on_page(self, number: int) -> Filters:
        return replace(self, page=number)


def page_number(query: Mapping[str, str]) -> int:
    """The page that is asked for, from 1."""
    text_of = query.get("page", "1")
    return max(int(text_of), 1) if text_of.isascii() and text_of.isdigit() and len(text_of) < 8 else 1


_BREAK = """id, tenant_id, service, hour, step, cause, currency, quantity, amount, detail, first_seen, last_seen,
  closed_at"""


def breaks(connection: Connection, period: str, filters: Filters, seen: Seen) -> tuple[list[Break], int]:
    """A page of breaks, and how many match."""
    conditions = ["period = :period", _seen()]
    conditions.append("closed_at IS NOT NULL" if filters.standing == "gone" else "closed_at IS NULL")
    kind = {"faults": "fault", "waiting": "waiting", "explained": "explained"}.get(filters.standing)
    if kind:
        conditions.append("cause = ANY(:causes)")
    for column in ("cause", "step", "tenant", "service"):
        if getattr(filters, column):
            conditions.append(f"{'tenant_id' if column == 'tenant' else column} = :{column}")
    if filters.words:
        conditions.append("(detail ILIKE :pattern OR tenant_id ILIKE :pattern OR service ILIKE :pattern)")
    where = " AND ".join(conditions)
    given = {
        **filters.__dict__,
        "period": period,
        "seen": _array(seen),
        "causes": [cause for cause, (of_kind, _) in CAUSES.items() if of_kind == kind],
        "pattern": _like(filters.words),
        "most": PAGE,
        "skip": (filters.page - 1) * PAGE,
    }
    count = connection.scalar(text(f"SELECT count(*) FROM breaks WHERE {where}"), given) or 0
    query = f"SELECT {_BREAK} FROM breaks WHERE {where} ORDER BY {_ORDER_BY[filters.order]} LIMIT :most OFFSET :skip"
    return [_break(row) for row in connection.execute(text(query), given)], int(count)


def _break(row: Row[*tuple[Any, ...]]) -> Break:
    return Break(**{name: value for name, value in row._mapping.items() if name != "id"})


# --- one tenant's month ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TenantMonth:
    """All that a tenant's page shows."""

    start: datetime
    end: datetime
    steps: tuple[Step, ...]
    days: Mapping[str, tuple[Day, ...]]
    invoices: Rows
    late: Rows
    quarantined: Rows
    standing: Row[*tuple[Any, ...]] | None
    archived: tuple[str, ...]


def tenant_month(connection: Connection, catalog: Catalog, reconciled: Reconciled, tenant_id: str) -> TenantMonth:
    """The month of one tenant; empty where it had none."""
    scope = scope_of(catalog, reconciled.period, tenant_id)

    def rows(query: str) -> Rows:
        return connection.execute(text(f"WITH {scope.PERIODS} {query}"), scope.parameters).all()

    steps = connection.execute(
        text(f"WITH {_STEPS} SELECT * FROM steps ORDER BY service"),
        {"reconciliation": reconciled.id, "seen": [tenant_id]},
    )
    archived = archived_of(connection, *scope.hours)
    days: dict[str, list[Day]] = {}
    for row in () if archived else rows(_DAYS):
        days.setdefault(row.currency, []).append(Day(row.day, row.currency, row.amount))
    standing = connection.execute(
        text("SELECT standing, since FROM tenant_standing WHERE tenant_id = :tenant ORDER BY id DESC LIMIT 1"),
        {"tenant": tenant_id},
    ).first()
    known = catalog.tenants.get(tenant_id)
    bounds = known.period(reconciled.period) if known else None
    return TenantMonth(
        bounds.start if bounds else scope.parameters["month_start"],
        bounds.end if bounds else scope.parameters["month_end"],
        tuple(Step(**row._mapping) for row in steps),
        {currency: tuple(of) for currency, of in days.items()},
        rows(_INVOICES),
        () if archived else rows(_LATE),
        rows(_QUARANTINED),
        standing,
        archived,
    )


_WINDOW = "hour, tenant_id, service, dimensions, window_start"
_CURRENT = f"""
, current AS (
  SELECT DISTINCT ON ({_WINDOW}) window_start, currency, amount {Scope.rows("rated_usage")} %s
  ORDER BY {_WINDOW}, revision DESC)
SELECT CAST(window_start AT TIME ZONE 'UTC' AS date) AS day, currency, sum(amount) AS amount
FROM current GROUP BY 1, 2 ORDER BY 1, 2"""
_DAYS, _DAYS_SEEN = _CURRENT % "", _CURRENT % f"AND {_seen('x.tenant_id')}"
_INVOICES = f"""
, wanted AS (SELECT DISTINCT x.invoice_id {Scope.rows("invoice_lines", "period_start", hourly=False)})
SELECT i.* FROM invoices i JOIN wanted USING (invoice_id) ORDER BY created, invoice_id"""
_LATE = f"""
, revisions AS (
  SELECT x.*, x.amount - lag(x.amount, 1, 0) OVER (
    PARTITION BY x.hour, x.tenant_id, x.service, x.dimensions, x.window_start ORDER BY x.revision) AS change
  {Scope.rows("rated_usage")})
SELECT service, dimensions, window_start, revision, reason, quantity, amount, change, currency, rated_at
FROM revisions WHERE reason <> 'first' ORDER BY rated_at DESC, service, window_start LIMIT 50"""
_QUARANTINED = f"""
SELECT uri, place, reason, field, detail, quarantined_at
{Scope.rows("quarantine", "quarantined_at", hourly=False)} ORDER BY quarantined_at DESC, id LIMIT 50"""


# --- an invoice beside its recomputation -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """What an invoice bills for one service and window, beside what the ledger says it should."""

    service: str
    start: datetime
    end: datetime
    lines: tuple[DraftLine, ...]
    ledger: Booked | None
    currency: str
    archived: tuple[str, ...]

    @property
    def units(self) -> Decimal:
        return total(line.quantity or ZERO for line in self.lines)

    @property
    def amount(self) -> Decimal:
        return total(line.amount for line in self.lines)

    @property
    def recomputed(self) -> Decimal | None:
        """What OpenClaw's amounts come to, rounded once like a line."""
        return None if self.ledger is None else invoice_amount(self.ledger.rated_amount, self.currency)

    @property
    def difference(self) -> Decimal | None:
        return None if self.recomputed is None else EXACT.subtract(self.amount, self.recomputed)

    @property
    def unit_difference(self) -> Decimal | None:
        return None if self.ledger is None else EXACT.subtract(self.units, self.ledger.planned)

    @property
    def agrees(self) -> bool:
        return not self.difference and not self.unit_difference and self.ledger is not None


@dataclass(frozen=True)
class Invoice:
    """An invoice's row, its usage beside the ledger, its other lines, and what was decided about it."""

    row: Row[*tuple[Any, ...]]
    sides: tuple[Side, ...]
    others: tuple[DraftLine, ...]
    history: Rows

    @property
    def archived(self) -> tuple[str, ...]:
        return tuple(sorted({month for side in self.sides for month in side.archived}))


def invoice(connection: Connection, catalog: Catalog, invoice_id: str, seen: Seen) -> Invoice | None:
    """The invoice; None where there is none that the viewer may see."""
    given = {"id": invoice_id, "seen": _array(seen)}
    row = connection.execute(text(f"SELECT * FROM invoices WHERE invoice_id = :id AND {_seen()}"), given).first()
    if row is None:
        return None
    found = connection.execute(text("SELECT * FROM invoice_lines WHERE invoice_id = :id ORDER BY line_id"), given)
    lines = tuple(DraftLine(**{name: getattr(each, name) for name in DraftLine.__dataclass_fields__}) for each in found)
    draft = Draft(row.invoice_id, row.tenant_id or "", row.currency, row.subtotal, row.total, None, row.object, lines)

    def side(service: str, start: datetime, end: datetime, of_window: Sequence[DraftLine]) -> Side:
        archived = archived_of(connection, utc_hour(start), end)
        known = row.tenant_id and service in catalog.services and not archived
        ledger = booked(connection, catalog, row.tenant_id, service, start, end) if known else None
        return Side(service, start, end, tuple(of_window), ledger, row.currency, archived)

    sides = tuple(
        side(*window, of_window) for window, of_window in sorted(windows(draft).items(), key=lambda item: item[0])
    )
    usage = {line.line_id for side in sides for line in side.lines}
    history = connection.execute(
        text(
            "SELECT at, kind, subject, detail FROM audit_trail WHERE (subject = :id AND kind IN"
            " ('close.compared', 'close.hold', 'close.release', 'close.done')) OR (kind IN"
            " ('adjustment.proposed', 'adjustment.accepted', 'adjustment.rejected', 'adjustment.sending',"
            " 'adjustment.done', 'adjustment.refused', 'adjustment.undone')"
            " AND detail ->> 'invoice_id' = :id) ORDER BY id DESC LIMIT 50"
        ),
        given,
    ).all()
    return Invoice(row, sides, tuple(line for line in lines if line.line_id not in usage), history)


def tenant_of_line(connection: Connection, line_id: str) -> tuple[str, str | None] | None:
    """``(invoice_id, tenant_id)`` of an invoice line; None where there is none."""
    query = "SELECT invoice_id, tenant_id FROM invoice_lines WHERE line_id = :id"
    row = connection.execute(text(query), {"id": line_id}).first()
    return (row.invoice_id, row.tenant_id) if row else None


# --- what changed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    """What is different since an instant. Lists are cut; the counts are not."""

    before: tuple[Total, ...] | None
    now: tuple[Total, ...]
    new: tuple[Break, ...]
    new_count: int
    gone: tuple[Break, ...]
    gone_count: int
    late: Rows
    decisions: Rows
    archived: tuple[str, ...]


def changes(
    connection: Connection, catalog: Catalog, reconciled: Reconciled, since: datetime, seen: Seen, most: int = PAGE
) -> Changes:
    """What changed in the period of ``reconciled`` since ``since``."""
    scope = scope_of(catalog, reconciled.period)
    given: dict[str, Any] = {
        **scope.parameters, "since": since, "seen": _array(seen), "most": most, "no_fault": list(NO_FAULT)
    }  # fmt: skip

    def listed(where: str, order: str) -> tuple[tuple[Break, ...], int]:
        full = f"FROM breaks WHERE period = :period AND {_seen()} AND cause <> ALL(:no_fault) AND {where}"
        rows = connection.execute(text(f"SELECT {_BREAK} {full} ORDER BY {order} LIMIT :most"), given)
        return tuple(map(_break, rows)), int(connection.scalar(text(f"SELECT count(*) {full}"), given) or 0)

    earlier = newest(connection, reconciled.period, since)
    new, new_count = listed("first_seen >= :since AND closed_at IS NULL", "abs(amount) DESC, id")
    gone, gone_count = listed("closed_at >= :since", "abs(amount) DESC, id")
    archived = archived_of(connection, *scope.hours)
    late = () if archived else connection.execute(text(f"WITH {scope.PERIODS} {_LATE_SINCE}"), given).all()
    decisions = connection.execute(text(_DECISIONS), given).all()
    before = totals(connection, earlier, seen) if earlier else None
    now = totals(connection, reconciled, seen)
    return Changes(before, now, new, new_count, gone, gone_count, late, decisions, archived)


_LATE_SINCE = f"""
, late AS (
  SELECT x.hour, x.tenant_id, x.service, x.dimensions, x.window_start, x.revision, x.currency, x.amount, x.reason
  {Scope.rows("rated_usage")} AND x.rated_at >= :since AND x.reason <> 'first' AND {_seen("x.tenant_id")})
SELECT l.tenant_id, l.service, l.currency, count(*) AS windows, sum(l.amount - coalesce(b.amount, 0)) AS change
FROM late l LEFT JOIN rated_usage b ON b.hour = l.hour AND b.tenant_id = l.tenant_id AND b.service = l.service
  AND b.dimensions = l.dimensions AND b.window_start = l.window_start AND b.revision = l.revision - 1
GROUP BY 1, 2, 3 ORDER BY abs(sum(l.amount - coalesce(b.amount, 0))) DESC, 1, 2, 3 LIMIT :most"""
_DECISIONS = f"""
SELECT at, kind, tenant_id, subject, detail FROM audit_trail
WHERE at >= :since AND {_seen()}
  AND kind IN ('close.hold', 'close.release', 'adjustment.proposed', 'adjustment.accepted', 'adjustment.rejected',
    'adjustment.done', 'adjustment.refused', 'adjustment.undone', 'correction.approved')
ORDER BY id DESC LIMIT :most"""


# --- what waits for a person -----------------------------------------------------------------------------------------


def drafts(connection: Connection, seen: Seen, page: int = 1) -> tuple[Rows, int]:
    """A page of draft invoices, held ones first, with their last comparison and decision; and how many there are."""
    query = f"""
        SELECT i.invoice_id, i.number, i.tenant_id, i.currency, i.total, i.created, c.detail AS compared, d.kind,
          d.detail AS decided, d.at, count(*) OVER () AS every
        FROM invoices i
        LEFT JOIN LATERAL (SELECT detail FROM audit_trail WHERE kind = 'close.compared' AND subject = i.invoice_id
                           ORDER BY id DESC LIMIT 1) c ON true
        LEFT JOIN LATERAL (SELECT kind, detail, at FROM audit_trail WHERE kind IN ('close.hold', 'close.release')
                           AND subject = i.invoice_id ORDER BY id DESC LIMIT 1) d ON true
        WHERE i.status = 'draft' AND i.tenant_id IS NOT NULL AND {_seen("i.tenant_id")}
        ORDER BY (d.kind = 'close.hold') DESC NULLS LAST, i.created, i.invoice_id LIMIT :most OFFSET :skip"""
    given = {"seen": _array(seen), "most": PAGE, "skip": (page - 1) * PAGE}
    rows = connection.execute(text(query), given).all()
    return rows, rows[0].every if rows else 0


@dataclass(frozen=True)
class Adjustments:
    """A page of the adjustments that wait for a person or for Stripe, how many there are, and the newest others."""

    waiting: tuple[Standing, ...]
    count: int
    decided: tuple[Standing, ...]


def adjustments(connection: Connection, seen: Seen, page: int = 1) -> Adjustments:
    """The adjustments, those that wait by how much they come to, the largest first."""
    known = [each for each in read_standings(connection) if seen is None or each.tenant_id in seen]
    waiting = [each for each in known if each.state in ("open", "refused", "accepted", "sending", "undoing")]
    waiting.sort(key=lambda each: (-each.amount.copy_abs(), each.proposal))
    decided = sorted(
        (each for each in known if each.state in ("done", "undone", "rejected")), key=lambda each: -each.steps[-1].id
    )
    return Adjustments(tuple(of_page(waiting, page)), len(waiting), tuple(decided[:PAGE]))


def of_page(rows: Sequence[T], page: int) -> Sequence[T]:
    """The rows of a page of a list that is all here."""
    return rows[(page - 1) * PAGE : page * PAGE]


#: What of the audit trail is about people.
ACTIVITY = (
    "web.signed_in", "report.downloaded", "close.hold", "close.release", "adjustment.accepted", "adjustment.rejected",
    "adjustment.undone", "correction.approved",
)  # fmt: skip


def activity(connection: Connection, seen: Seen, page: int = 1) -> Rows:
    """A page of what people did, newest first; one row more than a page where there are more."""
    query = f"""
        SELECT at, kind, tenant_id, subject, detail FROM audit_trail
        WHERE kind = ANY(:kinds) AND {_seen()} ORDER BY id DESC LIMIT :most OFFSET :skip"""
    given = {"kinds": list(ACTIVITY), "seen": _array(seen), "most": PAGE + 1, "skip": (page - 1) * PAGE}
    return connection.execute(text(query), given).all()
