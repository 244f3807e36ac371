"""Rows that are written as XML come out as the cells that they are, read by another library."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal

import openpyxl
import pytest
import xlsxwriter

from clawbill_pipeline.reporting.bulk_sheet import BulkSheet, number_cell, row_xml

AT = datetime(2026, 10, 1, 13, 30, tzinfo=UTC)


def test_cells_above_in_and_below_the_block() -> None:
    out = io.BytesIO()
    book = xlsxwriter.Workbook(out, {"in_memory": True})
    look = book.add_format({"num_format": "0.00"})
    at_look = book.add_format({"num_format": "yyyy-mm-dd hh:mm"})
    sheet: BulkSheet = book.add_worksheet("Block", BulkSheet)
    book.add_worksheet("Empty", BulkSheet)
    sheet.write_string(0, 0, "Head")
    name, detail = sheet.shared(look, str.upper), sheet.inline(look, str)
    at, amount = sheet.instant(at_look), number_cell(look)
    texts = ["a & b <c>", "  blanks  ", "tab\tline\nend", "é €", "x" * 40_000, "'=1+1"]
    rows = [
        row_xml(
            number,
            [("A", name("acme")), ("B", detail(text)), ("C", at(AT)), ("D", amount(Decimal("-0.000001")))],
            30 if number == 2 else None,
        )
        for number, text in enumerate(texts, 2)
    ]
    sheet.add_rows(1, rows, 4)
    sheet.write_formula(9, 3, "=SUM(D2:D7)", look, -0.000006)
    book.close()
    read = openpyxl.load_workbook(io.BytesIO(out.getvalue()))
    cells = [[cell.value for cell in row] for row in read["Block"]]
    assert cells[0][0] == "Head"
    assert {row[0] for row in cells[1:7]} == {"ACME"}
    assert [row[1] for row in cells[1:7]] == [*texts[:4], "x" * 32_767, texts[5]]
    assert {row[2] for row in cells[1:7]} == {AT.replace(tzinfo=None)}
    assert {row[3] for row in cells[1:7]} == {-0.000001}
    assert cells[9][3] == "=SUM(D2:D7)"
    assert (read["Block"].row_dimensions[2].height, read["Block"].dimensions) == (30, "A1:D10")
    assert read["Block"]["C2"].number_format == "yyyy-mm-dd hh:mm"


@pytest.mark.parametrize(
    ("text", "kept"), [("a\x07b", "a_x0007_b"), ("a\rb", "a_x000D_b"), ("_x000D_", "_x005F_x000D_")]
)
def test_what_xml_can_not_hold_is_escaped_as_the_format_does(text: str, kept: str) -> None:
    book = xlsxwriter.Workbook(io.BytesIO(), {"in_memory": True})
    sheet: BulkSheet = book.add_worksheet("Block", BulkSheet)
    assert f">{kept}</t>" in sheet.inline(book.add_format(), str)(text)
    sheet.write_string(0, 0, text)
    book.close()
