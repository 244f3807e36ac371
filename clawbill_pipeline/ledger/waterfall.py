"""The waterfall: how far the usage of a billing period has come, per tenant and service. Only reads the ledger.

Every number is read where its own station wrote it, and nothing is corrected here: why two steps differ is found by
reconciliation, which leaves its answer in ``breaks``.
"""

# ruff: noqa: S608 -- queries are put together from constants of this file; every value is a parameter

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import period_of_month, utc_hour
from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.causes import BILLING_STEPS, NO_FAULT
from clawbill_pipeline.ledger.sharing import read_sharing
from clawbill_pipeline.money import EXACT, MICRO, SCALE, exponent, from_stripe, invoice_amount, plain

ZERO = Decimal(0)
#: Stands for the service of a break that is about none in particular, such as a line that could not be read.
NO_SERVICE = "-"


@dataclass(frozen=True)
class Step:
    """One tenant's use of one service in one billing period, at each step; None where a step has not happened yet.
    For a tenant of the catalogue nothing sent is 0, and nothing used is rated 0.

    ``metered_quantity`` is in the service's unit; ``rated_amount`` exact, ``invoiced_amount`` and ``paid_amount`` as
    on the invoice, in major units of ``currency``; ``sent`` and ``held_by_stripe`` in the currency where the service
    is billed by amount, in the service's unit where it is billed by quantity. ``rounding`` is the part of
    ``invoiced_amount - rated_amount`` that is the rounding of the invoice lines; the rest of it are the breaks.
    ``breaks`` are open faults, ``waiting`` differences that have not settled yet. ``witness_quantity`` is what a
    witness says of the usage (see ``ledger.witnesses``): informative, filled in by reports, and no part of the JSON.
    """

    tenant_id: str
    service: str
    currency: str | None = None
    bill_by: str | None = None
    metered_quantity: Decimal = ZERO
    rated_amount: Decimal | None = None
    sent: Decimal | None = None
    held_by_stripe: Decimal | None = None
    invoiced_amount: Decimal | None = None
    paid_amount: Decimal | None = None
    rounding: Decimal | None = None
    breaks: int = 0
    waiting: int = 0
    witness_quantity: Decimal | None = None

    def as_json(self) -> dict[str, str | int | None]:
        """A JSON object with decimals as strings and null for steps that have not happened."""

        def number(value: Decimal | None) -> str | None:
            return None if value is None else plain(value)

        return {
            "tenant_id": self.tenant_id,
            "service": self.service,
            "currency": self.currency,
            "metered_quantity": number(self.metered_quantity),
            "rated_amount": number(self.rated_amount),
            "sent": number(self.sent),
            "held_by_stripe": number(self.held_by_stripe),
            "invoiced_amount": number(self.invoiced_amount),
            "paid_amount": number(self.paid_amount),
            "breaks": self.breaks,
            "waiting": self.waiting,
            "rounding": number(self.rounding),
            "bill_by": self.bill_by,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Step:
        """The step that ``as_json`` wrote."""
        numbers: dict[str, Any] = {name: None if row[name] is None else Decimal(row[name]) for name in _NUMBERS}
        return cls(**{**row, **numbers})


_NUMBERS = (
    "metered_quantity", "rated_amount", "sent", "held_by_stripe", "invoiced_amount", "paid_amount", "rounding",
)  # fmt: skip


def unit_scale(catalog: Catalog, service: str) -> Decimal:
    """How many whole units at Stripe make one of what ``sent`` is counted in (see ``usage_records.units``)."""
    found = catalog.services.get(service)
    if found is None or found.bill_by == "amount":
        return MICRO
    return Decimal(10) ** found.quantity_decimals


# --- which rows belong to a period ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """The billing periods that start in one month, tenant by tenant, as parameters for SQL.

    Tenants that the catalogue doesn't know are counted by the UTC month.
    """

    parameters: Mapping[str, Any]

    @property
    def hours(self) -> tuple[datetime, datetime]:
        """The half-open hours of all of the periods."""
        return self.parameters["first_hour"], self.parameters["last"]

    #: Common table expression to begin a query with: WITH {PERIODS} …
    PERIODS = (
        "billing_periods AS (SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:starts AS timestamptz[]),"
        " CAST(:ends AS timestamptz[])) AS p (tenant_id, starts, ends))"
    )

    @staticmethod
    def rows(table: str, at: str = "window_start", *, hourly: bool = True) -> str:
        """``FROM … WHERE`` for the rows ``x`` of ``table`` whose instant ``at`` lies in their tenant's period."""
        bounded = "x.hour >= :first_hour AND x.hour < :last AND " if hourly else ""
        return (
            f"FROM {table} x LEFT JOIN billing_periods p USING (tenant_id) WHERE {bounded}"
            f"x.{at} >= COALESCE(p.starts, :month_start) AND x.{at} < COALESCE(p.ends, :month_end)"
            " AND (CAST(:tenant AS text) IS NULL OR x.tenant_id = :tenant)"
        )


def scope_of(catalog: Catalog, period: str, tenant: str | None = None) -> Scope:
    """The scope of ``period`` (``YYYY-MM``), of all tenants or of one, which need not be in the catalogue."""
    ids = [t for t in catalog.tenants if tenant in (None, t)]
    periods = [catalog.tenants[t].period(period) for t in ids]
    month = period_of_month(period, 1, ZoneInfo("UTC"))
    bounds = periods if tenant in catalog.tenants else [*periods, month]
    return Scope(
        {
            "ids": ids,
            "starts": [p.start for p in periods],
            "ends": [p.end for p in periods],
            "month_start": month.start,
            "month_end": month.end,
            "first": min(p.start for p in bounds),
            "first_hour": utc_hour(min(p.start for p in bounds)),
            "last": max(p.end for p in bounds),
            "tenant": tenant,
            "period": period,
        }
    )


# --- the steps -----------------------------------------------------------------------------------------------------


def waterfall(connection: Connection, catalog: Catalog, period: str, tenant: str | None = None) -> list[Step]:
    """The steps of every tenant and service that has any in ``period`` (``YYYY-MM``), ordered by tenant and service.

    Of tenants that share a Stripe customer each has its part (see ``sharing``) of what Stripe holds and bills. Tenants
    that are metered but not in the catalogue are included, with ``currency`` None. Raises ArchiveError where rows of
    the period are in the lake alone.
    """
    sharing = read_sharing(connection)
    alone = tenant is None or not (tenant in sharing.payers or sharing.others(tenant))
    scope = scope_of(catalog, period, tenant if alone else None)
    refuse_archived(connection, *scope.hours)
    steps: dict[tuple[str, str], Step] = {}

    def put(tenant_id: str, service: str, **values: Any) -> None:
        key = (tenant_id, service)
        steps[key] = replace(steps.get(key) or _blank(catalog, tenant_id, service), **values)

    for row in _rows(connection, scope, _METERED):
        put(row.tenant_id, row.service, metered_quantity=row.quantity)
    for row in _rows(connection, scope, _RATED):
        step = steps.get((row.tenant_id, row.service)) or _blank(catalog, row.tenant_id, row.service)
        if step.currency in (None, row.currency):
            put(row.tenant_id, row.service, rated_amount=row.amount, currency=row.currency)
    for row in _rows(connection, scope, _SENT_IN_PARTS if sharing.payers else _SENT):
        put(row.tenant_id, row.service, sent=_scaled(row.units, unit_scale(catalog, row.service)))
    for row in _rows(connection, scope, _HELD):
        put(row.tenant_id, row.service, held_by_stripe=_scaled(row.units, unit_scale(catalog, row.service)))
    breaks = _rows(connection, scope, _BREAKS)
    explained = {(row.tenant_id, row.service): row.amount for row in breaks}
    for (tenant_id, service, currency), billed in sorted(billed_services(connection, scope).items()):
        step = steps.get((tenant_id, service)) or _blank(catalog, tenant_id, service)
        if step.currency in (None, currency):
            who = [tenant_id, *(other for other in sharing.others(tenant_id) if (other, service) in steps)]
            rated = [steps[each, service].rated_amount or ZERO if (each, service) in steps else ZERO for each in who]
            expected = [amount + explained.get((each, service), ZERO) for each, amount in zip(who, rated, strict=True)]
            for each, part in zip(who, _in_parts(billed, expected), strict=True):
                put(each, service, currency=currency, **part)
    for row in breaks:
        put(row.tenant_id, row.service, breaks=row.faults, waiting=row.waiting)
    for (tenant_id, service), step in steps.items():
        if (payer := steps.get((sharing.payers.get(tenant_id, ""), service))) and payer.held_by_stripe is not None:
            held = step.sent or ZERO
            put(tenant_id, service, held_by_stripe=held)
            put(payer.tenant_id, service, held_by_stripe=EXACT.subtract(payer.held_by_stripe, held))
    return [_nothing_is_zero(steps[key]) for key in sorted(steps) if alone or key[0] == tenant]


def _in_parts(billed: Billed, expected: Sequence[Decimal]) -> list[dict[str, Any]]:
    """What is invoiced and paid in parts: as expected, but for the first one's, which has the rest and the rounding."""
    with localcontext(EXACT):
        rest, rounding = billed.amount - sum(expected[1:], ZERO), billed.rounding(sum(expected, ZERO))
        amounts = [rest, *expected[1:]]
        paid: Sequence[Decimal | None] = [None] * len(amounts)
        if billed.paid is not None:
            paid = amounts if billed.paid == billed.amount else shared_out(billed.paid, amounts, SCALE)
        return [
            {"invoiced_amount": amount, "paid_amount": share, "rounding": ZERO if number else rounding}
            for number, (amount, share) in enumerate(zip(amounts, paid, strict=True))
        ]


def _nothing_is_zero(step: Step) -> Step:
    unused = step.currency is not None and not step.metered_quantity and step.rated_amount is None
    return replace(step, rated_amount=ZERO) if unused else step


def _blank(catalog: Catalog, tenant_id: str, service: str) -> Step:
    known = catalog.services.get(service)
    currency = catalog.currency(tenant_id) if tenant_id in catalog.tenants else None
    return Step(tenant_id, service, currency, known.bill_by if known else None, sent=ZERO if currency else None)


def _rows(connection: Connection, scope: Scope, query: str) -> Sequence[Any]:
    return connection.execute(text(f"WITH {scope.PERIODS} {query}"), scope.parameters).all()


def _scaled(units: Decimal, scale: Decimal) -> Decimal:
    with localcontext(EXACT):
        return units / scale


_KEY = "hour, tenant_id, service, dimensions, window_start"
_METERED = f"""
SELECT tenant_id, service, sum(quantity) AS quantity FROM (
  SELECT DISTINCT ON ({_KEY}) tenant_id, service, quantity {Scope.rows("metered_usage")}
  ORDER BY {_KEY}, revision DESC) current
GROUP BY tenant_id, service"""
_RATED = f"""
SELECT tenant_id, service, currency, sum(amount) AS amount FROM (
  SELECT DISTINCT ON ({_KEY}) tenant_id, service, amount, currency {Scope.rows("rated_usage")}
  ORDER BY {_KEY}, revision DESC) current
GROUP BY tenant_id, service, currency ORDER BY currency"""
_SENT = f"""
SELECT tenant_id, service, sum(units) AS units FROM (
  SELECT DISTINCT ON (hour, customer_id, meter, window_start) tenant_id, service, units {Scope.rows("usage_records")}
    AND state = 'delivered' ORDER BY hour, customer_id, meter, window_start, revision DESC) current
GROUP BY tenant_id, service"""
_SENT_IN_PARTS = f"""
SELECT tenant_id, service, sum(units) AS units FROM (
  SELECT DISTINCT ON (hour, customer_id, meter, window_start, tenant_id) tenant_id, service, units
  {Scope.rows("usage_record_parts")} AND state = 'delivered'
  ORDER BY hour, customer_id, meter, window_start, tenant_id, revision DESC) current
GROUP BY tenant_id, service"""
_HELD = f"""
SELECT DISTINCT ON (tenant_id, service) tenant_id, service, units
{Scope.rows("usage_summaries", "period_start", hourly=False)} AND hour IS NULL
ORDER BY tenant_id, service, id DESC"""
_BREAKS = f"""
SELECT tenant_id, service, count(*) FILTER (WHERE cause NOT IN {NO_FAULT!r}) AS faults,
  count(*) FILTER (WHERE cause = 'pending') AS waiting,
  coalesce(sum(amount) FILTER (WHERE step IN {BILLING_STEPS!r}), 0) AS amount
FROM breaks WHERE period = :period AND closed_at IS NULL
  AND (CAST(:tenant AS text) IS NULL OR tenant_id = :tenant)
GROUP BY tenant_id, service"""


# --- what is on invoices -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """An invoice line with what belongs to its amount, all in major units. ``paid`` is None until finalised."""

    invoice_id: str
    line_id: str
    number: str | None
    status: str
    tenant_id: str | None
    service: str | None
    quantity: Decimal | None
    amount: Decimal
    currency: str
    discount: Decimal
    credit: Decimal
    tax: Decimal
    paid: Decimal | None
    finalized_at: datetime | None


@dataclass(frozen=True)
class Billed:
    """What the invoice lines of one tenant, service and currency come to in one billing period."""

    lines: tuple[Line, ...]

    @property
    def currency(self) -> str:
        return self.lines[0].currency

    @property
    def amount(self) -> Decimal:
        return _sum(line.amount for line in self.lines)

    @property
    def paid(self) -> Decimal | None:
        """None while any line is on a draft."""
        paid = [line.paid for line in self.lines if line.paid is not None]
        return _sum(paid) if len(paid) == len(self.lines) else None

    @property
    def reach(self) -> Decimal:
        """How far rounding can go: half a minor unit a line, and half the millionth that a meter's whole units cost."""
        with localcontext(EXACT):
            return len(self.lines) * Decimal(1).scaleb(-exponent(self.currency)) / 2 + 1 / MICRO / 2

    def rounding(self, expected: Decimal) -> Decimal:
        """The part of ``amount - expected`` that is rounding; where more is at work, the rounding of ``expected``."""
        with localcontext(EXACT):
            whole = self.amount - expected
            return whole if abs(whole) <= self.reach else invoice_amount(expected, self.currency) - expected


def billed_services(connection: Connection, scope: Scope) -> dict[tuple[str, str, str], Billed]:
    """The invoice lines of ``scope`` by tenant, service and currency. Void and deleted invoices bill nothing."""
    lines: dict[tuple[str, str, str], list[Line]] = {}
    for line in billed_lines(connection, scope):
        if line.tenant_id is not None and line.service is not None:
            lines.setdefault((line.tenant_id, line.service, line.currency), []).append(line)
    return {key: Billed(tuple(of_key)) for key, of_key in lines.items()}


def billed_lines(connection: Connection, scope: Scope) -> list[Line]:
    """Every invoice line that bills ``scope``, with its share of what was paid on its invoice."""
    rows = _rows(connection, scope, _LINES)
    wanted = {(row.invoice_id, row.line_id) for row in rows if row.wanted}
    invoices: dict[str, list[Any]] = {}
    for row in rows:
        invoices.setdefault(row.invoice_id, []).append(row)
    lines = [line for on_invoice in invoices.values() for line in _with_payment(on_invoice)]
    return [line for line in lines if (line.invoice_id, line.line_id) in wanted]


_LINES = f"""
, wanted AS (SELECT x.invoice_id, x.line_id {Scope.rows("invoice_lines", "period_start", hourly=False)})
SELECT l.*, i.status, i.number, i.amount_paid, i.total, i.finalized_at, w.line_id IS NOT NULL AS wanted,
  l.object -> 'discount_amounts' AS discounts, l.object -> 'pretax_credit_amounts' AS credits,
  l.object -> 'taxes' AS taxes
FROM invoice_lines l JOIN invoices i USING (invoice_id) LEFT JOIN wanted w USING (invoice_id, line_id)
WHERE i.status IN ('draft', 'open', 'paid', 'uncollectible')
  AND l.invoice_id IN (SELECT invoice_id FROM wanted)
ORDER BY l.invoice_id, l.line_id"""


def _with_payment(rows: list[Any]) -> list[Line]:
    """The lines of one invoice. A part payment is shared out in proportion to what each line asks for."""
    first = rows[0]
    parts = [_parts(row) for row in rows]
    # Tax that comes on top is paid too, but belongs to no line: it takes its share first to last as one more line.
    asked = [row.amount - discount - credit for row, (discount, credit, _) in zip(rows, parts, strict=True)]
    asked.append(_sum(tax for *_, tax in parts))
    shares: Sequence[Decimal | None] = [None] * len(rows)
    if first.finalized_at is not None:
        shares = shared_out(first.amount_paid, asked, exponent(first.currency))[: len(rows)]
    return [
        Line(
            row.invoice_id, row.line_id, row.number, row.status, row.tenant_id, row.service, row.quantity, row.amount,
            row.currency, *part, paid, row.finalized_at,
        )
        for row, part, paid in zip(rows, parts, shares, strict=True)
    ]  # fmt: skip


def _parts(row: Any) -> tuple[Decimal, Decimal, Decimal]:
    """``(discount, credit, tax on top)`` of a line, from Stripe's own object.

    Stripe lists discounts among the pre-tax credits as well; tax that is included in the amount is not on top of it.
    """

    def total(entries: Iterable[Mapping[str, Any]] | None) -> Decimal:
        return _sum(from_stripe(Decimal(entry["amount"]), row.currency) for entry in entries or ())

    credits = [entry for entry in row.credits or () if entry.get("type") != "discount"]
    taxes = [entry for entry in row.taxes or () if entry.get("tax_behavior") != "inclusive"]
    return total(row.discounts), total(credits), total(taxes)


def shared_out(total: Decimal, weights: Sequence[Decimal], digits: int) -> list[Decimal]:
    """``total`` shared out in proportion to ``weights``, in steps of ``digits`` decimal places, none lost.

    Largest remainder: shares are cut off, and what is left goes to those that were cut most, the first on a tie.
    ``total`` must itself have no more than ``digits`` decimal places. Weights that sum to zero get nothing.
    """
    with localcontext(EXACT):
        whole = sum(weights, ZERO)
        if not whole:
            return [ZERO for _ in weights]
        unit = Decimal(1).scaleb(-digits)
        exact_shares = [total * weight / whole for weight in weights]
        shares = [(share // unit) * unit for share in exact_shares]
        left = total - sum(shares, ZERO)
        step = unit.copy_sign(left)
        most_cut = sorted(range(len(shares)), key=lambda i: (exact_shares[i] - shares[i]) * step, reverse=True)
        for i in most_cut[: int(abs(left) / unit)]:
            shares[i] += step
        return shares


def _sum(values: Iterable[Decimal]) -> Decimal:
    with localcontext(EXACT):
        return sum(values, ZERO)
