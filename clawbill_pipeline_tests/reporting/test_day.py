"""The report of one day: every hour of it, its breaks, formulas that agree, and the same bytes again."""

from __future__ import annotations

import csv
import io
import re
from datetime import date
from decimal import Decimal
from html import unescape
from pathlib import Path

import openpyxl
import pytest

from clawbill_pipeline.money import total
from clawbill_pipeline.reporting.day import DayRendered, render_day
from clawbill_pipeline.reporting.day_report import read_day
from clawbill_pipeline.reporting.page import number as shown
from clawbill_pipeline.reporting.report import NothingToReport
from clawbill_pipeline_tests.reconciliation.month import NOW, PERIOD, Month

DAY = date(2026, 10, 1)


def run(month: Month, folder: Path, day: date = DAY) -> DayRendered:
    return render_day(month.ledger, day=day, folder=folder, now=NOW)


def test_the_day_has_its_hours_and_breaks_and_no_other(month: Month, tmp_path: Path) -> None:
    result = run(month, tmp_path)
    assert [file.name for file in result.files] == [
        "diff_report_2026-10-01.xlsx", "diff_report_2026-10-01.html", "hours_2026-10-01.csv", "breaks_2026-10-01.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((tmp_path / PERIOD / "hours_2026-10-01.csv").read_text())))
    used = {key: quantity for key, quantity in month.usage.items() if key[2].date() == DAY}
    assert len(rows) == len(used) == result.hours
    found = {(row["tenant_id"].removeprefix("'"), row["service"], row["hour"]): row for row in rows}
    for (tenant, service, at), quantity in used.items():
        row = found[tenant, service, f"{at:%Y-%m-%dT%H:%M:%SZ}"]
        assert Decimal(row["metered_quantity"]) == quantity
        if tenant in month.catalog.tenants:
            # Rated, and sent at its first revision: what was late is planned anew by nobody in this month.
            assert Decimal(row["rated_quantity"]) == quantity
            assert Decimal(row["sent_units"]) == Decimal(row["planned_units"])
        else:
            assert (row["rated_quantity"], row["sent_units"]) == ("", "")
    assert found["osaka", "tokens", "2026-10-01T02:00:00Z"]["held_units"] == "0"
    assert found["globex", "tokens", "2026-10-01T13:00:00Z"]["revisions"] == "2"
    breaks = list(csv.DictReader(io.StringIO((tmp_path / PERIOD / "breaks_2026-10-01.csv").read_text())))
    (stored,) = month.run("SELECT count(*) FROM breaks WHERE hour >= '2026-10-01Z' AND hour < '2026-10-02Z'")
    assert len(breaks) == stored[0] > 2
    quiet = run(month, tmp_path, date(2026, 10, 9))
    assert (quiet.hours, quiet.open_breaks) == (1, 0)


def test_the_workbook_adds_up(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    path = tmp_path / PERIOD / "diff_report_2026-10-01.xlsx"
    book, values = openpyxl.load_workbook(path), openpyxl.load_workbook(path, data_only=True)
    assert book.sheetnames == ["Summary", "Hours", "Breaks"]
    assert all(sheet.freeze_panes for sheet in book)
    head = [cell.value for cell in book["Summary"][5]]
    heads = [cell.value for cell in values["Hours"][1]]
    currency, amount = heads.index("Currency"), heads.index("Rated amount")
    for number, name in enumerate(head[1:], 1):
        assert str(book["Summary"].cell(6, number + 1).value).startswith("=ROUND(SUMIFS('Hours'!")
        rated = sum(
            Decimal(str(row[amount].value))
            for row in values["Hours"].iter_rows(min_row=2)
            if row[currency].value == name
        )
        assert Decimal(str(values["Summary"].cell(6, number + 1).value)) == rated
    causes = {row[0].value: row for row in values["Summary"].iter_rows(min_row=9)}
    assert "lost_after_acknowledgement" in causes
    assert not any(str(cell.value).startswith("=cmd") for row in book["Hours"].iter_rows() for cell in row)


def test_the_page_tells_the_day_and_needs_nothing_else(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    page = (tmp_path / PERIOD / "diff_report_2026-10-01.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(?:src|href|url)\s*[=(]", page)
    assert page.count("<h1>") == 1
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    assert "Billing differences 2026-10-01" in text
    assert "lost_after_acknowledgement" in text
    assert "=cmd|' /C calc'!A0" in text
    with month.ledger.transaction() as connection:
        report = read_day(connection, DAY)
    for currency in ("JPY", "USD"):
        rated, *changes, left = report.bars(currency)
        assert total([rated.amount, *(bar.amount for bar in changes)]) == left.amount
        assert rated.amount == total(amount for _, amount in report.rated_hours(currency))
        assert f"Rated {shown(rated.amount)} {currency}" in page
        assert f"At Stripe {shown(left.amount)} {currency}" in page
    assert [bar.amount for bar in report.bars("JPY") if not bar.is_level] == [Decimal("-66.6")]


def test_the_same_data_gives_the_same_bytes_and_is_registered_once(month: Month, tmp_path: Path) -> None:
    first = run(month, tmp_path)
    assert (first.registered, run(month, tmp_path).registered) == (4, 0)
    again = run(month, tmp_path / "elsewhere")
    assert [file.sha256 for file in again.files] == [file.sha256 for file in first.files]
    assert all(check.passed for check in first.checks)


def test_a_day_that_nobody_reconciled(month: Month, tmp_path: Path) -> None:
    with pytest.raises(NothingToReport, match="usage_reconciliation"):
        run(month, tmp_path, date(2027, 3, 1))
