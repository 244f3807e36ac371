"""The report as an XLSX workbook that a controller can check: numbers are numbers, totals are formulas."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
from typing import Any

import xlsxwriter
from xlsxwriter.format import Format
from xlsxwriter.utility import xl_col_to_name
from xlsxwriter.worksheet import Worksheet

from clawbill_pipeline.ledger.causes import BILLING_STEPS, CAUSES, STEPS
from clawbill_pipeline.money import exponent, total
from clawbill_pipeline.reporting.bulk_sheet import BulkSheet, number_cell, row_xml
from clawbill_pipeline.reporting.harmless import harmless
from clawbill_pipeline.reporting.margin import totals
from clawbill_pipeline.reporting.report import ZERO, Report

#: Rows that a worksheet holds, less the header.
MOST_ROWS = 1_048_575


@dataclass(frozen=True)
class Column:
    """A column of a sheet: the attribute it shows, its heading, its width, and how its cells look.

    ``kind`` is text, wrapped, at (an instant), count, quantity or number (both exact), or money (as on an invoice).
    """

    name: str
    heading: str
    width: int
    kind: str = "text"


WATERFALL = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("bill_by", "Billed by", 10),
    Column("currency", "Currency", 10),
    Column("metered_quantity", "Metered quantity", 18, "quantity"),
    Column("rated_amount", "Rated amount", 18, "number"),
    Column("sent", "Sent", 18, "number"),
    Column("held_by_stripe", "Held by Stripe", 18, "number"),
    Column("invoiced_amount", "Invoiced", 16, "money"),
    Column("paid_amount", "Paid", 16, "money"),
    Column("rounding", "Rounding", 16, "number"),
    Column("breaks", "Open breaks", 12, "count"),
    Column("waiting", "Waiting", 10, "count"),
    Column("witness_quantity", "Witness (informative)", 18, "quantity"),
)
BREAKS = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("hour", "Hour (UTC)", 17, "at"),
    Column("step", "Step", 16),
    Column("cause", "Cause", 26),
    Column("standing", "Standing", 11),
    Column("currency", "Currency", 10),
    Column("quantity", "Quantity", 18, "quantity"),
    Column("amount", "Amount", 18, "number"),
    Column("detail", "Detail", 70, "wrapped"),
    Column("first_seen", "First seen (UTC)", 17, "at"),
    Column("last_seen", "Last changed (UTC)", 18, "at"),
    Column("closed_at", "Closed (UTC)", 17, "at"),
)
ADJUSTMENTS = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("dimensions", "Dimensions", 24),
    Column("window_start", "Hour (UTC)", 17, "at"),
    Column("revision", "Revision", 9, "count"),
    Column("reason", "Reason", 12),
    Column("quantity", "New quantity", 18, "quantity"),
    Column("amount", "New amount", 18, "number"),
    Column("change", "Change", 18, "number"),
    Column("currency", "Currency", 10),
    Column("rated_at", "Rated (UTC)", 17, "at"),
)
QUARANTINE = (
    Column("tenant_id", "Tenant", 22),
    Column("source", "Source", 18),
    Column("uri", "File", 50),
    Column("place", "Place", 24),
    Column("reason", "Reason", 18),
    Column("field", "Field", 14),
    Column("detail", "What is wrong, and how to mend it", 70, "wrapped"),
    Column("quarantined_at", "Set aside (UTC)", 17, "at"),
)
ROUNDING = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("currency", "Currency", 10),
    Column("rated_amount", "Rated amount (exact)", 20, "number"),
    Column("invoiced_amount", "Invoiced", 16, "money"),
    Column("rounding", "Rounding", 18, "number"),
)
WITNESSES = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("source", "Source", 18),
    Column("starts", "From (UTC)", 17, "at"),
    Column("ends", "To (UTC)", 17, "at"),
    Column("said_quantity", "Witness says", 18, "quantity"),
    Column("counted_quantity", "Metered of this source", 18, "quantity"),
    Column("difference", "Difference", 16, "quantity"),
    Column("why", "Why", 70, "wrapped"),
    Column("said_cost", "Witness's cost, USD", 18, "number"),
    Column("counted_cost", "Cost of what was metered, USD", 18, "number"),
    Column("said_at", "Said (UTC)", 17, "at"),
)
MARGIN = (
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("currency", "Currency", 10),
    Column("quantity", "Quantity with known cost", 18, "quantity"),
    Column("unknown_quantity", "Quantity without", 18, "quantity"),
    Column("revenue", "Revenue (exact)", 20, "number"),
    Column("cost", "Provider's cost", 20, "number"),
    Column("cost_currency", "Cost in", 10),
    Column("margin", "Margin", 20, "number"),
    Column("percent", "Margin, % of revenue", 14, "number"),
)

_NUMERIC = ("count", "quantity", "number", "money")

METHOD = (
    ("What is compared", "Per tenant, service and hour: usage events in the lake, metered, rated and sent. Per billing "
     "period: what Stripe's meters hold, the invoice lines, and what was paid on them."),
    ("Sign", "A difference is the later step less the earlier one: what is missing or lost is negative."),
    ("Tolerance", "None. A difference of a millionth is shown. Differences never cancel across tenants or hours."),
    ("Rounding", "Amounts are exact until the invoice line, which is rounded once, half away from zero, to the "
     "currency's minor unit. Rounding is shown on a line of its own and is no break."),
    ("Adding up", "Rated + breaks of the steps rated_sent, sent_held and held_invoiced + rounding = invoiced."),
    ("Worth", "By amount a unit at Stripe is a millionth of the currency's major unit, so its worth is exact. "
     "Where usage has no amount yet, its worth is estimated at the period's average price of that tenant's service."),
    ("Periods", "Billing periods that start in the month named, in each tenant's own time zone. Hours are UTC."),
    ("Margin", "What was rated for usage whose provider's cost is known, less that cost: metered quantity at the unit "
     "cost of its hour. Nothing is shown where the cost is unknown."),
    ("Witness", "What a gateway's own totals say of the usage, where a source has them: informative. They count copies "
     "that forks and archives make of usage lines; nobody is billed by them, and no break comes of them."),
    ("Sent and held", "In the currency for services billed by amount, in the service's unit for those by quantity."),
)  # fmt: skip


def workbook(report: Report) -> bytes:
    """The workbook's bytes; the same report gives the same bytes."""
    out = io.BytesIO()
    book = xlsxwriter.Workbook(
        out,
        {
            "in_memory": True,
            "strings_to_formulas": False,
            "strings_to_urls": False,
            "strings_to_numbers": False,
            "remove_timezone": True,
        },
    )
    book.set_properties(
        {
            "title": f"Billing differences {report.period}",
            "author": "clawbill",
            "created": report.as_of.replace(tzinfo=None, microsecond=0),
        }
    )
    _Book(book, report).write()
    book.close()
    return out.getvalue()


class _Book:
    """Writes the sheets of one workbook. Sheet names and positions that formulas refer to are kept here."""

    def __init__(self, book: Any, report: Report) -> None:
        self.book = book
        self.report = report
        base = {"font_name": "Calibri", "font_size": 11, "valign": "top"}

        def add(**more: object) -> Format:
            return book.add_format(base | more)

        self.plain: Format = add()
        self.title: Format = add(bold=True, font_size=16)
        self.quiet: Format = add(font_color="#5B6470")
        self.head: Format = add(bold=True, bg_color="#1F3A5F", font_color="#FFFFFF", text_wrap=True, valign="vcenter")
        self.head_right: Format = add(
            bold=True, bg_color="#1F3A5F", font_color="#FFFFFF", text_wrap=True, valign="vcenter", align="right"
        )
        self.good: Format = add(bold=True, font_color="#12662B")
        self.bad: Format = add(bold=True, font_color="#A3140C")
        self.kinds: dict[str, Format] = {
            "text": add(),
            "wrapped": add(text_wrap=True),
            "at": add(num_format="yyyy-mm-dd hh:mm", align="left"),
            "quantity": add(num_format="#,##0.0###########;[Red]-#,##0.0###########"),
            "whole": add(num_format="#,##0;[Red]-#,##0"),
            "count": add(num_format="#,##0"),
            "number": add(num_format="#,##0.00##########;[Red]-#,##0.00##########"),
        }
        self.money = {n: add(num_format=_money_format(n)) for n in (0, 2, 3)}
        self.total_text: Format = add(bold=True, top=1)
        self.total_number: Format = add(bold=True, top=1, num_format="#,##0.00##########;[Red]-#,##0.00##########")
        self.total_count: Format = add(bold=True, top=1, num_format="#,##0")
        self.total_money = {n: add(bold=True, top=1, num_format=_money_format(n)) for n in (0, 2, 3)}

    def write(self) -> None:
        report = self.report
        summary = self.book.add_worksheet("Summary")
        waterfall = self._sheet("Waterfall", WATERFALL, report.steps)
        self._waterfall_totals(waterfall)
        self._sheet("Breaks", BREAKS, report.breaks)
        self._sheet("Late and adjusted", ADJUSTMENTS, report.adjustments, "Nothing was late or adjusted.")
        self._sheet("Quarantine", QUARANTINE, report.quarantined, "No line is in quarantine.")
        self._rounding()
        if report.witnesses:
            self._sheet("Witnesses", WITNESSES, report.witnesses)
        if report.margins:
            self._margin()
        self._method()
        self._summary(summary)

    # --- tables ----------------------------------------------------------------------------------------------------

    def _sheet(self, name: str, columns: Sequence[Column], rows: Sequence[Any], nothing: str = "None.") -> BulkSheet:
        sheet: BulkSheet = self.book.add_worksheet(name, BulkSheet)
        self._print_setup(sheet)
        sheet.freeze_panes(1, 2)
        sheet.set_row(0, 30)
        shown = rows[:MOST_ROWS]
        for number, column in enumerate(columns):
            sheet.set_column(number, number, column.width)
            sheet.write_string(0, number, column.heading, self.head_right if column.kind in _NUMERIC else self.head)
        if shown:
            sheet.add_rows(1, self._rows(sheet, columns, shown), len(columns))
            sheet.autofilter(0, 0, len(shown), len(columns) - 1)
        else:
            sheet.write_string(1, 0, nothing, self.quiet)
        return sheet

    def _rows(self, sheet: BulkSheet, columns: Sequence[Column], rows: Sequence[Any]) -> list[str]:
        """The cells of a sheet, row by row."""
        shown = [
            (xl_col_to_name(at), attrgetter(column.name), self._cell(sheet, column.kind))
            for at, column in enumerate(columns)
        ]
        wrapped = [(attrgetter(column.name), column.width) for column in columns if column.kind == "wrapped"]
        made = []
        for number, row in enumerate(rows, 2):
            cells = []
            for letter, get, cell in shown:
                value = get(row)
                if value is not None:
                    cells.append((letter, cell(value, row)))
            lines = max([-(-len(get(row)) // width) for get, width in wrapped], default=1)
            made.append(row_xml(number, cells, _height(lines) if lines > 1 else None))
        return made

    def _cell(self, sheet: BulkSheet, kind: str) -> Callable[[Any, Any], str]:
        """What makes a cell of a value and its row."""
        if kind in ("text", "wrapped"):
            look = self.kinds[kind]
            text = sheet.inline(look, harmless) if kind == "wrapped" else sheet.shared(look, harmless)
            return lambda value, row: text(value)
        if kind == "at":
            at = sheet.instant(self.kinds[kind])
            return lambda value, row: at(value)
        if kind == "money":
            by_digits = {digits: number_cell(look) for digits, look in self.money.items()}
            unknown = number_cell(self.kinds["number"])
            return lambda value, row: (by_digits[exponent(row.currency)] if row.currency else unknown)(value)
        plain, whole = number_cell(self.kinds[kind]), number_cell(self.kinds["whole"])
        if kind == "quantity":
            return lambda value, row: (whole if value == value // 1 else plain)(value)
        return lambda value, row: plain(value)

    def _print_setup(self, sheet: Worksheet) -> None:
        sheet.set_landscape()
        sheet.set_paper(9)
        sheet.fit_to_pages(1, 0)
        sheet.repeat_rows(0)
        sheet.set_footer(f"&L{self.report.period}&C&A&R&P / &N")

    # --- totals ----------------------------------------------------------------------------------------------------

    def _range(self, sheet: str, columns: Sequence[Column], name: str, rows: int) -> str:
        letter = xl_col_to_name([column.name for column in columns].index(name))
        return f"'{sheet}'!${letter}$2:${letter}${max(rows, 1) + 1}"

    def _steps_sum(self, name: str, currency: str) -> tuple[str, Decimal]:
        """Formula and value of a money column's total over one currency."""
        rows = len(self.report.steps)
        values = self._range("Waterfall", WATERFALL, name, rows)
        keys = self._range("Waterfall", WATERFALL, "currency", rows)
        return f'=ROUND(SUMIFS({values},{keys},"{currency}"),12)', self.report.total(name, currency)

    def _waterfall_totals(self, sheet: Worksheet) -> None:
        at = len(self.report.steps) + 2
        names = [column.name for column in WATERFALL]
        for currency in self.report.currencies:
            sheet.write_string(at, 0, f"Total {currency}", self.total_text)
            for number in range(1, len(names)):
                sheet.write_blank(at, number, None, self.total_text)
            sheet.write_string(at, names.index("currency"), currency, self.total_text)
            for name in ("rated_amount", "invoiced_amount", "paid_amount", "rounding"):
                look = self.total_money[exponent(currency)] if name.endswith("d_amount") else self.total_number
                look = self.total_number if name == "rated_amount" else look
                formula, value = self._steps_sum(name, currency)
                sheet.write_formula(at, names.index(name), formula, look, float(value))
            at += 1

    def _rounding(self) -> None:
        rows = [step for step in self.report.steps if step.rounding is not None]
        sheet = self._sheet("Rounding", ROUNDING, rows, "Nothing is invoiced yet.")
        at = len(rows) + 2
        for currency in self.report.currencies:
            of = [step for step in rows if step.currency == currency]
            if not of:
                continue
            sheet.write_string(at, 0, f"Total {currency}", self.total_text)
            sheet.write_blank(at, 1, None, self.total_text)
            sheet.write_string(at, 2, currency, self.total_text)
            for number, name in enumerate(("rated_amount", "invoiced_amount", "rounding"), 3):
                values = self._range("Rounding", ROUNDING, name, len(rows))
                keys = self._range("Rounding", ROUNDING, "currency", len(rows))
                value = total(getattr(step, name) or ZERO for step in of)
                look = self.total_money[exponent(currency)] if name == "invoiced_amount" else self.total_number
                formula = f'=ROUND(SUMIFS({values},{keys},"{currency}"),12)'
                sheet.write_formula(at, number, formula, look, float(value))
            at += 1

    def _margin(self) -> None:
        rows = self.report.margins
        sheet = self._sheet("Margin", MARGIN, rows)
        names = [column.name for column in MARGIN]
        currencies, cost_currencies = (
            self._range("Margin", MARGIN, name, len(rows)) for name in ("currency", "cost_currency")
        )
        for at, (currency, values) in enumerate(totals(rows).items(), len(rows) + 2):
            for number in range(len(names)):
                sheet.write_blank(at, number, None, self.total_text)
            sheet.write_string(at, 0, f"Total {currency}", self.total_text)
            sheet.write_string(at, names.index("currency"), currency, self.total_text)
            for name, value in zip(("revenue", "cost", "margin"), values, strict=True):
                summed = self._range("Margin", MARGIN, name, len(rows))
                formula = f'=ROUND(SUMIFS({summed},{currencies},"{currency}",{cost_currencies},"{currency}"),12)'
                sheet.write_formula(at, names.index(name), formula, self.total_number, float(value))

    def _method(self) -> None:
        sheet = self.book.add_worksheet("Method")
        self._print_setup(sheet)
        sheet.set_column(0, 0, 30)
        sheet.set_column(1, 1, 14)
        sheet.set_column(2, 2, 100)
        sheet.freeze_panes(1, 0)
        for number, heading in enumerate(("Term", "Standing", "Meaning")):
            sheet.write_string(0, number, heading, self.head)
        rows = [(term, "", meaning) for term, meaning in METHOD]
        rows += [(f"step {step}", "", meaning) for step, meaning in STEPS.items()]
        rows += [(f"cause {cause}", kind, meaning) for cause, (kind, meaning) in CAUSES.items()]
        for at, row in enumerate(rows, 1):
            for number, value in enumerate(row):
                sheet.write_string(at, number, value, self.kinds["wrapped"])
            _fit(sheet, at, [(row[2], 100)])

    # --- summary ---------------------------------------------------------------------------------------------------

    def _summary(self, sheet: Worksheet) -> None:
        report = self.report
        self._print_setup(sheet)
        sheet.hide_gridlines(2)
        sheet.set_column(0, 0, 58)
        sheet.set_column(1, 1 + max(len(report.currencies), 3), 20)
        sheet.set_row(0, 24)
        sheet.write_string(0, 0, f"Billing differences {report.period}", self.title)
        sheet.write_string(1, 0, f"Reconciled as of {report.as_of:%Y-%m-%d %H:%M} UTC", self.quiet)
        verdict = (
            f"{len(report.faults)} open break{'s' * (len(report.faults) != 1)}" if report.faults else "No open break"
        )
        sheet.write_string(2, 0, verdict, self.bad if report.faults else self.good)
        sheet.freeze_panes(4, 1)
        at = self._summary_money(sheet, 4)
        at = self._summary_causes(sheet, at + 1)
        self._summary_counts(sheet, at + 1)

    def _summary_money(self, sheet: Worksheet, at: int) -> int:
        report = self.report
        sheet.write_string(at, 0, "From rated to paid", self.head)
        for number, currency in enumerate(report.currencies, 1):
            sheet.write_string(at, number, currency, self.head_right)
        rows = len(report.breaks)
        amounts = self._range("Breaks", BREAKS, "amount", rows)
        keys = [self._range("Breaks", BREAKS, name, rows) for name in ("currency", "step", "standing")]
        lines: list[tuple[str, str | None, str]] = [("Rated (exact)", "rated_amount", "steps")]
        lines += [(STEPS[step], step, "breaks") for step in BILLING_STEPS]
        lines += [
            ("Rounding of invoice lines", "rounding", "steps"),
            ("Not on an invoice yet", None, "rest"),
            ("Invoiced", "invoiced_amount", "steps"),
            ("Paid", "paid_amount", "steps"),
        ]
        first = at + 1
        for line, (label, name, source) in enumerate(lines, first):
            is_level = label in ("Rated (exact)", "Invoiced", "Paid")
            sheet.write_string(line, 0, label, self.total_text if is_level else self.plain)
            for number, currency in enumerate(report.currencies, 1):
                letter = xl_col_to_name(number)
                if source == "steps" and name is not None:
                    formula, value = self._steps_sum(name, currency)
                elif source == "breaks" and name is not None:
                    formula = (
                        f'=ROUND(SUMIFS({amounts},{keys[0]},"{currency}",{keys[1]},"{name}",{keys[2]},"<>closed"),12)'
                    )
                    value = report.moved(name, currency)
                else:
                    changes = f"{letter}{first + 2}:{letter}{first + len(BILLING_STEPS) + 2}"
                    formula = f"=ROUND({letter}{line + 2}-{letter}{first + 1}-SUM({changes}),12)"
                    taken = [report.total("rated_amount", currency), report.total("rounding", currency)]
                    taken += [report.moved(step, currency) for step in BILLING_STEPS]
                    value = total([report.total("invoiced_amount", currency), total(taken).copy_negate()])
                look = self.total_number if is_level else self.kinds["number"]
                if label in ("Invoiced", "Paid"):
                    look = self.total_money[exponent(currency)]
                sheet.write_formula(line, number, formula, look, float(value))
        return first + len(lines)

    def _summary_causes(self, sheet: Worksheet, at: int) -> int:
        report = self.report
        for number, heading in enumerate(("Open differences by cause", "Standing", "Count", *report.currencies)):
            sheet.write_string(at, number, heading, self.head if number < 2 else self.head_right)
        rows = len(report.breaks)
        amounts, causes, standings, currencies = (
            self._range("Breaks", BREAKS, name, rows) for name in ("amount", "cause", "standing", "currency")
        )
        found = [cause for cause in CAUSES if any(b.cause == cause for b in report.open)]
        for cause in found:
            at += 1
            of = [b for b in report.open if b.cause == cause]
            sheet.write_string(at, 0, cause, self.plain)
            sheet.write_string(at, 1, CAUSES[cause][0], self.plain)
            formula = f'=COUNTIFS({causes},"{cause}",{standings},"<>closed")'
            sheet.write_formula(at, 2, formula, self.kinds["count"], len(of))
            for number, currency in enumerate(report.currencies, 3):
                formula = (
                    f'=ROUND(SUMIFS({amounts},{causes},"{cause}",{standings},"<>closed",{currencies},"{currency}"),12)'
                )
                value = total(b.amount for b in of if b.currency == currency)
                sheet.write_formula(at, number, formula, self.kinds["number"], float(value))
        if not found:
            at += 1
            sheet.write_string(at, 0, "None", self.quiet)
        return at + 1

    def _summary_counts(self, sheet: Worksheet, at: int) -> None:
        report = self.report
        sheet.write_string(at, 0, "Also in this workbook", self.head)
        sheet.write_string(at, 1, "Count", self.head_right)
        counts = (
            ("Tenants", len({step.tenant_id for step in report.steps})),
            ("Late or adjusted hours", len(report.adjustments)),
            ("Lines in quarantine", len(report.quarantined)),
            ("Closed breaks", len(report.breaks) - len(report.open)),
        )
        for line, (label, count) in enumerate(counts, at + 1):
            sheet.write_string(line, 0, label, self.plain)
            sheet.write_number(line, 1, count, self.kinds["count"])


def _fit(sheet: Worksheet, row: int, texts: Sequence[tuple[str, int]]) -> None:
    """Makes a row as high as its wrapped texts need; not every program does it by itself."""
    lines = max((-(-len(text) // width) for text, width in texts), default=1)
    if lines > 1:
        sheet.set_row(row, _height(lines))


def _height(lines: int) -> int:
    """Points that so many lines take; ten are enough to see that there is more."""
    return 15 * min(lines, 10)


def _money_format(digits: int) -> str:
    shown = "#,##0" + ("." + "0" * digits if digits else "")
    return f"{shown};[Red]-{shown}"
