"""Finance's benchmarks, small: they run, and all candidates find the same. No time is judged."""

from __future__ import annotations

import io
from pathlib import Path

import openpyxl
import pytest

from clawbill_pipeline_tests.benchmarks import comparison, finance_pages, workbook


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.drop")  # pandas warns of its own merge
def test_every_way_of_comparing_finds_the_same() -> None:
    found = comparison.measure(20_000, 1)
    assert found.differences > 0
    assert set(found.times) == {
        "bare join and count", "classified", "classified, all files written", "all five steps",
        "pandas outer merge, exact", "pandas outer merge, floats",
    }  # fmt: skip
    assert "pandas outer merge, exact" in comparison.told(20_000, found)


def test_both_workbooks_hold_every_break() -> None:
    report = workbook.report_of(300)
    ours = openpyxl.load_workbook(io.BytesIO(workbook.workbook(report)), read_only=True)["Breaks"]
    theirs = openpyxl.load_workbook(io.BytesIO(workbook.bare(report)), read_only=True).worksheets[0]
    shown = [[row[0].value, row[8].value, row[9].value] for row in ours.iter_rows(min_row=2)]
    assert shown == [[row[0].value, row[8].value, row[9].value] for row in theirs.iter_rows()]
    assert "bare xlsxwriter" in workbook.told(300, workbook.measure(300, 1))


def test_every_page_is_timed(ledger_url: str, tmp_path: Path) -> None:
    told = finance_pages.measure(ledger_url, tmp_path, finance_pages.SMALL)
    assert all(path in told for path in finance_pages.pages(finance_pages.SMALL))
