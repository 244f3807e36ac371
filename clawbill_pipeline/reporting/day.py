"""A day's report files: rendered, written, registered; and its workbook.

What they say is in ``day_report``, the HTML page in ``day_page``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import xlsxwriter
from sqlalchemy import text
from xlsxwriter.utility import xl_col_to_name
from xlsxwriter.worksheet import Worksheet

from clawbill_pipeline import storage
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.causes import CAUSES
from clawbill_pipeline.money import total
from clawbill_pipeline.reporting.day_page import day_page
from clawbill_pipeline.reporting.day_report import DayReport, read_day
from clawbill_pipeline.reporting.harmless import harmless
from clawbill_pipeline.reporting.render import ReportFile, register, stored, write
from clawbill_pipeline.reporting.tables import BREAKS as BREAK_COLUMNS
from clawbill_pipeline.reporting.tables import table
from clawbill_pipeline.reporting.workbook import BREAKS, MOST_ROWS, WITNESSES, Column
from clawbill_pipeline.results import Check

HOURS = (
    Column("hour", "Hour (UTC)", 17, "at"),
    Column("tenant_id", "Tenant", 22),
    Column("service", "Service", 24),
    Column("currency", "Currency", 10),
    Column("metered_quantity", "Metered quantity", 18, "quantity"),
    Column("rated_quantity", "Rated quantity", 18, "quantity"),
    Column("rated_amount", "Rated amount", 18, "number"),
    Column("planned_units", "Units planned", 18, "quantity"),
    Column("sent_units", "Units acknowledged", 18, "quantity"),
    Column("held_units", "Units held by Stripe", 18, "quantity"),
    Column("revisions", "Revisions", 10, "quantity"),
    Column("witness_quantity", "Witness (informative)", 18, "quantity"),
)


@dataclass(frozen=True)
class DayRendered:
    """What rendering came to. ``registered`` counts files whose content the ledger had not seen."""

    day: str
    reconciliation_id: int
    files: tuple[ReportFile, ...]
    registered: int
    hours: int
    open_breaks: int
    checks: tuple[Check, ...]


def render_day(ledger: Ledger, *, day: date, folder: Path | str, now: datetime) -> DayRendered:
    """Writes a UTC day's workbook, page and CSV files beside its month's reports, and registers them in the ledger.

    The same data gives the same bytes. Raises NothingToReport for a day of no reconciled period.
    """
    period = f"{day:%Y-%m}"
    with ledger.transaction() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        report = read_day(connection, day)
    made = {
        f"diff_report_{day}.xlsx": day_workbook(report),
        f"diff_report_{day}.html": day_page(report),
        f"hours_{day}.csv": table([column.name for column in HOURS], report.hours),
        f"breaks_{day}.csv": table(BREAK_COLUMNS, report.breaks),
    }
    place = storage.folder(folder)
    files = tuple(write(place, f"{period}/{name}", [content]) for name, content in made.items())
    with ledger.transaction() as connection:
        registered = register(connection, period, files, report.reconciliation_id, now)
    check = Check(
        "day_report_written",
        all(stored(place, f"{period}/{file.name}") == file.sha256 for file in files),
        "Every report file of the day is stored in full.",
        {"files": len(files), "bytes": sum(file.bytes for file in files)},
    )
    counts = len(report.hours), len(report.faults)
    return DayRendered(str(day), report.reconciliation_id, files, registered, *counts, (check,))


# --- the workbook -----------------------------------------------------------------------------------------------------


def day_workbook(report: DayReport) -> bytes:
    """Summary, hours and breaks; totals are formulas. The same report gives the same bytes."""
    out = io.BytesIO()
    options = {
        "in_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False,
        "remove_timezone": True,
    }  # fmt: skip
    book = xlsxwriter.Workbook(out, options)
    made = report.as_of.replace(tzinfo=None, microsecond=0)
    book.set_properties({"title": f"Billing differences {report.day}", "author": "clawbill", "created": made})
    looks = {
        "title": book.add_format({"bold": True, "font_size": 16}),
        "head": book.add_format({"bold": True, "bg_color": "#1F3A5F", "font_color": "#FFFFFF", "text_wrap": True}),
        "text": book.add_format({"valign": "top"}),
        "wrapped": book.add_format({"valign": "top", "text_wrap": True}),
        "at": book.add_format({"valign": "top", "num_format": "yyyy-mm-dd hh:mm", "align": "left"}),
        "quantity": book.add_format({"valign": "top", "num_format": "#,##0.############;[Red]-#,##0.############"}),
        "number": book.add_format({"valign": "top", "num_format": "#,##0.00##########;[Red]-#,##0.00##########"}),
        "count": book.add_format({"valign": "top", "num_format": "#,##0"}),
    }
    summary = book.add_worksheet("Summary")
    _sheet(book, "Hours", HOURS, report.hours, looks)
    _sheet(book, "Breaks", BREAKS, report.breaks, looks)
    if report.witnesses:
        _sheet(book, "Witnesses", WITNESSES, report.witnesses, looks)
    _summary(summary, report, looks)
    book.close()
    return out.getvalue()


def _sheet(book: Any, name: str, columns: Sequence[Column], rows: Sequence[Any], looks: dict[str, Any]) -> None:
    sheet = book.add_worksheet(name)
    sheet.freeze_panes(1, 3)
    sheet.set_landscape()
    sheet.fit_to_pages(1, 0)
    sheet.repeat_rows(0)
    for number, column in enumerate(columns):
        sheet.set_column(number, number, column.width)
        sheet.write_string(0, number, column.heading, looks["head"])
    for at, row in enumerate(rows[:MOST_ROWS], 1):
        for number, column in enumerate(columns):
            value = getattr(row, column.name)
            if value is None:
                continue
            if column.kind == "at":
                sheet.write_datetime(at, number, value, looks["at"])
            elif column.kind in ("quantity", "number"):
                sheet.write_number(at, number, float(value), looks[column.kind])
            else:
                sheet.write_string(at, number, harmless(str(value)), looks[column.kind])
    if rows:
        sheet.autofilter(0, 0, len(rows[:MOST_ROWS]), len(columns) - 1)


def _summary(sheet: Worksheet, report: DayReport, looks: dict[str, Any]) -> None:
    sheet.set_column(0, 0, 40)
    sheet.set_column(1, 8, 20)
    sheet.freeze_panes(4, 1)
    sheet.write_string(0, 0, f"Billing differences {report.day}", looks["title"])
    sheet.write_string(1, 0, f"UTC day; reconciled as of {report.as_of:%Y-%m-%d %H:%M} UTC", looks["text"])
    faults = len(report.faults)
    verdict = f"{faults} open break{'s' * (faults != 1)}" if faults else "No open break"
    sheet.write_string(2, 0, verdict, looks["text"])
    for number, heading in enumerate(("", *report.currencies)):
        sheet.write_string(4, number, heading, looks["head"])
    sheet.write_string(5, 0, "Rated (exact)", looks["text"])
    for number, currency in enumerate(report.currencies, 1):
        value = total(h.rated_amount for h in report.hours if h.currency == currency and h.rated_amount is not None)
        formula = _sum("Hours", HOURS, "rated_amount", len(report.hours), [("currency", f'"{currency}"')])
        sheet.write_formula(5, number, formula, looks["number"], float(value))
    at = 7
    for number, heading in enumerate(("Open differences by cause", *report.currencies)):
        sheet.write_string(at, number, heading, looks["head"])
    rows = report.open
    for cause in [each for each in CAUSES if any(found.cause == each for found in rows)]:
        at += 1
        sheet.write_string(at, 0, cause, looks["text"])
        for number, currency in enumerate(report.currencies, 1):
            value = total(found.amount for found in rows if (found.cause, found.currency) == (cause, currency))
            keys = [("cause", f'"{cause}"'), ("currency", f'"{currency}"'), ("standing", '"<>closed"')]
            formula = _sum("Breaks", BREAKS, "amount", len(report.breaks), keys)
            sheet.write_formula(at, number, formula, looks["number"], float(value))


def _sum(sheet: str, columns: Sequence[Column], name: str, rows: int, keys: Sequence[tuple[str, str]]) -> str:
    def area(column: str) -> str:
        letter = xl_col_to_name([each.name for each in columns].index(column))
        return f"'{sheet}'!${letter}$2:${letter}${min(max(rows, 1), MOST_ROWS) + 1}"

    return f"=ROUND(SUMIFS({area(name)}," + ",".join(f"{area(key)},{wanted}" for key, wanted in keys) + "),12)"
