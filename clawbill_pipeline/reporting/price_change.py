"""A change of prices as files: CSV by tenant and service, a workbook, a page with charts. No number is made here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from html import escape
from typing import Any, Protocol

import xlsxwriter

from clawbill_pipeline.money import total
from clawbill_pipeline.reporting.chart import waterfall_svg
from clawbill_pipeline.reporting.harmless import harmless
from clawbill_pipeline.reporting.page import MOST_ROWS, amount_cell, document, instant, number, table
from clawbill_pipeline.reporting.report import Bar
from clawbill_pipeline.reporting.tables import table as csv_table
from clawbill_pipeline.reporting.workbook import MOST_ROWS as SHEET_ROWS
from clawbill_pipeline.reporting.workbook import Column

#: Tenants that a chart shows one by one.
MOST_BARS = 12

COLUMNS = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("currency", "Currency", 10),
    Column("quantity", "Quantity", 18, "number"),
    Column("current_amount", "Current", 18, "number"),
    Column("candidate_amount", "Candidate", 18, "number"),
    Column("change", "Change", 18, "number"),
    Column("percent", "Change in %", 13, "number"),
    Column("note", "Note", 70),
)
TENANTS = (
    Column("tenant_id", "Tenant", 22),
    Column("currency", "Currency", 10),
    Column("current", "Current", 18, "number"),
    Column("candidate", "Candidate", 18, "number"),
    Column("change", "Change", 18, "number"),
    Column("percent", "Change in %", 13, "number"),
)
REVENUE = (
    Column("currency", "Currency", 24),
    Column("current", "Current", 18, "number"),
    Column("candidate", "Candidate", 18, "number"),
    Column("change", "Change", 18, "number"),
    Column("percent", "Change in %", 13, "number"),
    Column("up", "Up", 18, "number"),
    Column("down", "Down", 18, "number"),
    Column("tenants", "Tenants", 10, "count"),
    Column("tenants_up", "Paying more", 12, "count"),
    Column("tenants_down", "Paying less", 12, "count"),
)


class Movement(Protocol):
    """A tenant's use of a service at both prices, in major units; None where there is no such amount."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def currency(self) -> str | None: ...
    @property
    def quantity(self) -> Decimal: ...
    @property
    def current_amount(self) -> Decimal | None: ...
    @property
    def candidate_amount(self) -> Decimal | None: ...
    @property
    def change(self) -> Decimal | None: ...
    @property
    def percent(self) -> Decimal | None: ...
    @property
    def note(self) -> str: ...


class Bill(Protocol):
    """A tenant's sum over services in one currency."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def currency(self) -> str: ...
    @property
    def current(self) -> Decimal: ...
    @property
    def candidate(self) -> Decimal: ...
    @property
    def change(self) -> Decimal: ...
    @property
    def percent(self) -> Decimal | None: ...


class Revenue(Protocol):
    """All bills of one currency."""

    @property
    def currency(self) -> str: ...
    @property
    def current(self) -> Decimal: ...
    @property
    def candidate(self) -> Decimal: ...
    @property
    def change(self) -> Decimal: ...
    @property
    def percent(self) -> Decimal | None: ...
    @property
    def up(self) -> Decimal: ...
    @property
    def down(self) -> Decimal: ...
    @property
    def tenants(self) -> int: ...
    @property
    def tenants_up(self) -> int: ...
    @property
    def tenants_down(self) -> int: ...


class PriceChange(Protocol):
    """What is shown: ``bills`` with the largest change first."""

    @property
    def start(self) -> datetime: ...
    @property
    def end(self) -> datetime: ...
    @property
    def as_of(self) -> datetime | None: ...
    @property
    def movements(self) -> Sequence[Movement]: ...
    @property
    def bills(self) -> Sequence[Bill]: ...
    @property
    def revenue(self) -> Sequence[Revenue]: ...


def as_csv(change: PriceChange) -> bytes:
    """One row a tenant and service, numbers exact."""
    return csv_table([column.name for column in COLUMNS], change.movements)


# --- the page ------------------------------------------------------------------------------------------------------


def as_page(change: PriceChange) -> bytes:
    """A self-contained HTML page; the same numbers give the same bytes."""
    return document(
        "Change of prices",
        [
            _head(change),
            *(_chart(change, revenue) for revenue in change.revenue),
            _rows("Tenants", TENANTS, change.bills, "Largest change first."),
            _rows("Tenants and services", COLUMNS, change.movements, ""),
        ],
    )


def _head(change: PriceChange) -> str:
    cards = [
        ("Tenants", len({bill.tenant_id for bill in change.bills})),
        ("Paying more", sum(revenue.tenants_up for revenue in change.revenue)),
        ("Paying less", sum(revenue.tenants_down for revenue in change.revenue)),
        ("Not comparable in full", sum(bool(movement.note) for movement in change.movements)),
    ]
    shown = "".join(f'<div class="card"><b>{count:,}</b><span>{label}</span></div>' for label, count in cards)
    as_of = f", the candidate's prices as of {instant(change.as_of)} UTC" if change.as_of else ""
    return (
        f'<header><h1>Change of prices</h1><p class="quiet">Usage from {instant(change.start)} to '
        f'{instant(change.end)} UTC at the current and at the candidate prices{as_of}</p><div class="cards">{shown}'
        "</div></header>"
    )


def _chart(change: PriceChange, revenue: Revenue) -> str:
    def shown(value: Decimal) -> str:
        return f"{number(value)} {revenue.currency}"

    bills = [bill for bill in change.bills if bill.currency == revenue.currency and bill.change]
    others = bills[MOST_BARS:]
    bars = [Bar(bill.tenant_id, bill.change, False) for bill in bills[:MOST_BARS]]
    if others:
        bars.append(Bar(f"{len(others):,} other tenants", total(bill.change for bill in others), False))
    bars.append(Bar("Change of revenue", revenue.change, True))
    percent = "" if revenue.percent is None else f" ({number(revenue.percent)} %)"
    return (
        f"<section><h2>{revenue.currency}</h2><p>Revenue changes from {shown(revenue.current)} to "
        f"{shown(revenue.candidate)}, by {shown(revenue.change)}{percent}: up {shown(revenue.up)}, down "
        f"{shown(revenue.down)}.</p><h3>Largest movers</h3>"
        f"{waterfall_svg(bars, shown, f'From current to candidate prices in {revenue.currency}')}</section>"
    )


def _rows(title: str, columns: Sequence[Column], rows: Sequence[object], note: str) -> str:
    lines = ["<tr>" + "".join(_cell(column, row) for column in columns) + "</tr>" for row in rows[:MOST_ROWS]]
    numeric = [column.heading for column in columns if column.kind != "text"]
    return table(title, [column.heading for column in columns], lines, len(rows), note, numeric=numeric)


def _cell(column: Column, row: object) -> str:
    value = getattr(row, column.name)
    if column.kind == "text":
        tag = "th" if column.name == "tenant_id" else "td"
        scope = ' scope="row"' if tag == "th" else ""
        return f"<{tag}{scope}>{escape('–' if value is None else value)}</{tag}>"
    return amount_cell(value)


# --- the workbook --------------------------------------------------------------------------------------------------


def as_workbook(change: PriceChange) -> bytes:
    """An XLSX workbook: revenue (formulas over the tenants), tenants, and tenants by service; the same bytes again."""
    out = io.BytesIO()
    book = xlsxwriter.Workbook(
        out, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    )
    book.set_properties({"title": "Change of prices", "created": change.end.replace(tzinfo=None)})
    looks = {
        "text": book.add_format(),
        "count": book.add_format({"num_format": "#,##0"}),
        "number": book.add_format({"num_format": "#,##0.00##########;[Red]-#,##0.00##########"}),
    }
    head = book.add_format({"bold": True, "bg_color": "#1F3A5F", "font_color": "#FFFFFF"})
    for name, columns, rows in (
        ("Revenue", REVENUE, change.revenue),
        ("Tenants", TENANTS, change.bills),
        ("Tenants and services", COLUMNS, change.movements),
    ):
        sheet = book.add_worksheet(name)
        sheet.freeze_panes(1, 1)
        for at, column in enumerate(columns):
            sheet.set_column(at, at, column.width)
            sheet.write_string(0, at, column.heading, head)
            for line, row in enumerate(rows[:SHEET_ROWS], 1):
                _write(sheet, line, at, getattr(row, column.name), looks[column.kind])
                if formula := _SUMS.get(column.name) if name == "Revenue" else None:
                    sheet.write_formula(line, at, formula.format(line + 1), looks["number"], getattr(row, column.name))
        sheet.autofilter(0, 0, max(len(rows), 1), len(columns) - 1)
    book.close()
    return out.getvalue()


# Columns of the sheet Tenants: B currency, C current, D candidate, E change. {} is the row of the sheet Revenue.
_SUMS = {
    "current": "=SUMIFS(Tenants!C:C,Tenants!B:B,A{0})",
    "candidate": "=SUMIFS(Tenants!D:D,Tenants!B:B,A{0})",
    "change": "=SUMIFS(Tenants!E:E,Tenants!B:B,A{0})",
    "up": '=SUMIFS(Tenants!E:E,Tenants!B:B,A{0},Tenants!E:E,">0")',
    "down": '=SUMIFS(Tenants!E:E,Tenants!B:B,A{0},Tenants!E:E,"<0")',
}


def _write(sheet: Any, line: int, at: int, value: object, look: Any) -> None:
    if isinstance(value, Decimal | int):
        sheet.write_number(line, at, float(value), look)
    elif value is not None:
        sheet.write_string(line, at, harmless(str(value)), look)
