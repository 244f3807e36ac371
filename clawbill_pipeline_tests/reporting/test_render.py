"""Report files: the same bytes for the same data, right numbers, formulas that agree, and nothing that runs."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from datetime import timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import openpyxl
import pytest

from clawbill_pipeline.ledger.waterfall import waterfall
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reporting.harmless import harmless
from clawbill_pipeline.reporting.render import Rendered, render
from clawbill_pipeline.reporting.report import NothingToReport, read_report
from clawbill_pipeline_tests.reconciliation.month import NOW, PERIOD, Month


def run(month: Month, folder: Path, now=NOW) -> Rendered:
    return render(month.ledger, month.catalog, period=PERIOD, folder=folder, now=now, run_id="test")


def test_files_are_written_and_registered_once(month: Month, tmp_path: Path) -> None:
    first = run(month, tmp_path)
    assert [file.name for file in first.files] == [
        "diff_report.xlsx",
        "diff_report.html",
        "waterfall.csv",
        "breaks.csv",
        "focus_1_2.csv",
    ]
    for file in first.files:
        path = Path(file.address)
        content = path.read_bytes()
        assert (path.parent, file.bytes, file.sha256) == (
            tmp_path / PERIOD, len(content), hashlib.sha256(content).hexdigest()
        )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / PERIOD).iterdir()) == sorted(file.name for file in first.files)
    before = month.fingerprint()
    assert run(month, tmp_path, NOW + timedelta(days=1)).registered == 0
    assert (first.registered, month.fingerprint()) == (5, before)


def test_the_same_data_gives_the_same_bytes(month: Month, tmp_path: Path) -> None:
    one = run(month, tmp_path / "a")
    two = run(month, tmp_path / "b", NOW + timedelta(days=300))
    assert [file.sha256 for file in one.files] == [file.sha256 for file in two.files]


def test_other_data_gives_other_files(month: Month, tmp_path: Path) -> None:
    one = run(month, tmp_path)
    month.held("osaka", "tokens", month.totals()["osaka", "tokens"])
    reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW + timedelta(hours=1), run_id="test")
    two = run(month, tmp_path, NOW + timedelta(hours=1))
    assert two.registered == 4
    changed = [file.name for file, other in zip(one.files, two.files, strict=True) if file.sha256 != other.sha256]
    assert changed == ["diff_report.xlsx", "diff_report.html", "waterfall.csv", "breaks.csv"]


def test_a_period_without_reconciliation_says_what_to_run(month: Month, tmp_path: Path) -> None:
    with pytest.raises(NothingToReport, match="2027-01 was never reconciled: run"):
        render(month.ledger, month.catalog, period="2027-01", folder=tmp_path, now=NOW, run_id="test")
    assert not list(tmp_path.glob("2027-01"))


def test_csv_holds_the_waterfall_in_full(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / PERIOD / "waterfall.csv").read_text())))
    with month.ledger.transaction() as connection:
        steps = waterfall(connection, month.catalog, PERIOD)
    assert len(rows) == len(steps)
    for row, step in zip(rows, steps, strict=True):
        for name in ("metered_quantity", "rated_amount", "sent", "invoiced_amount", "rounding"):
            value = getattr(step, name)
            assert row[name] == "" if value is None else Decimal(row[name]) == value
    assert rows[0]["tenant_id"] == "'=cmd|' /C calc'!A0"


def formulas_and_values(path: Path) -> list[tuple[str, str, object]]:
    book, values = openpyxl.load_workbook(path), openpyxl.load_workbook(path, data_only=True)
    return [
        (f"{sheet.title}!{cell.coordinate}", cell.value, values[sheet.title][cell.coordinate].value)
        for sheet in book
        for row in sheet.iter_rows()
        for cell in row
        if cell.data_type == "f"
    ]


def test_the_workbook_is_complete(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    book = openpyxl.load_workbook(tmp_path / PERIOD / "diff_report.xlsx")
    assert book.sheetnames == [
        "Summary", "Waterfall", "Breaks", "Late and adjusted", "Quarantine", "Rounding", "Method",
    ]  # fmt: skip
    assert all(sheet.freeze_panes for sheet in book)
    assert book.properties.created.isoformat() == "2026-11-04T00:00:00"
    with month.ledger.transaction() as connection:
        report = read_report(connection, month.catalog, PERIOD)
    assert book["Waterfall"].max_row == 1 + len(report.steps) + 1 + len(report.currencies)
    assert book["Breaks"].max_row == 1 + len(report.breaks)
    assert [cell.value for cell in book["Late and adjusted"][2]][4:9] == [2, "late", 100500, 150.75, 0.75]
    assert book["Quarantine"].max_row == 3
    yen = next(row for row in book["Waterfall"].iter_rows(min_row=2) if row[3].value == "JPY")
    assert yen[8].number_format.startswith("#,##0;")


def test_totals_are_formulas_whose_values_agree(month: Month, tmp_path: Path) -> None:
    """Each formula is worked out again here from the cells it names."""
    run(month, tmp_path)
    path = tmp_path / PERIOD / "diff_report.xlsx"
    values = openpyxl.load_workbook(path, data_only=True)
    found = formulas_and_values(path)
    assert len(found) > 20

    def cells(reference: str) -> list[object]:
        sheet, area = re.fullmatch(r"'(.+)'!(.+)", reference).groups()
        return [cell.value for (cell,) in values[sheet][area.replace("$", "")]]

    def matching(pairs: list[tuple[str, str]]) -> list[int]:
        columns = [(cells(reference), wanted) for reference, wanted in pairs]
        return [
            row
            for row in range(len(columns[0][0]))
            if all(
                (column[row] != wanted[2:]) if wanted.startswith("<>") else column[row] == wanted
                for column, wanted in columns
            )
        ]

    for place, formula, value in found:
        if match := re.fullmatch(r"=ROUND\(SUMIFS\((.+)\),12\)", formula):
            summed, *criteria = re.findall(r"'[^']+'![$A-Z0-9:]+|\"[^\"]+\"", match[1])
            rows = matching([(criteria[i], criteria[i + 1].strip('"')) for i in range(0, len(criteria), 2)])
            amounts = cells(summed)
            again = round(sum(Decimal(repr(amounts[row] or 0)) for row in rows), 12)
        elif match := re.fullmatch(r"=COUNTIFS\((.+)\)", formula):
            criteria = re.findall(r"'[^']+'![$A-Z0-9:]+|\"[^\"]+\"", match[1])
            again = len(matching([(criteria[i], criteria[i + 1].strip('"')) for i in range(0, len(criteria), 2)]))
        else:
            match = re.fullmatch(r"=ROUND\((\w+)-(\w+)-SUM\((\w+):(\w+)\),12\)", formula)
            assert match, formula
            sheet = values[place.split("!")[0]]
            rest = [cell.value for (cell,) in sheet[f"{match[3]}:{match[4]}"]]
            parts = [sheet[match[1]].value, -sheet[match[2]].value, *(-part for part in rest)]
            again = round(sum(Decimal(repr(part)) for part in parts), 12)
        assert float(again) == pytest.approx(value, abs=1e-9), (place, formula)


def test_the_summary_adds_up(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    sheet = openpyxl.load_workbook(tmp_path / PERIOD / "diff_report.xlsx", data_only=True)["Summary"]
    rows = {row[0].value: [cell.value for cell in row[1:3]] for row in sheet.iter_rows(min_row=6, max_row=13)}
    rated, *changes, invoiced, _paid = rows.values()
    for column in (0, 1):
        moved = sum(Decimal(repr(change[column])) for change in changes)
        assert float(Decimal(repr(rated[column])) + moved) == pytest.approx(invoiced[column])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_what_a_spreadsheet_would_run_is_made_harmless(text: str) -> None:
    assert harmless(text) == f"'{text}"


def test_plain_text_stays_as_it_is() -> None:
    assert harmless("acme=1") == "acme=1"


def test_no_cell_of_the_workbook_runs_input(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    book = openpyxl.load_workbook(tmp_path / PERIOD / "diff_report.xlsx")
    for sheet in book:
        for row in sheet.iter_rows():
            for cell in row:
                if cell.data_type == "s":
                    assert (cell.value or " ")[0] not in "=+-@\t\r", (sheet.title, cell.coordinate)
    assert "'-usage.jsonl" in {row[2].value for row in book["Quarantine"].iter_rows()}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    text = (tmp_path / PERIOD / "diff_report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe"} & set(names)
    assert not any({"src", "href", "onclick"} & set(attributes) for _, attributes in page.tags)
    assert names.count("h1") == 1
    assert all(attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert "<b>x</b>.jsonl" not in text
    assert "&lt;b&gt;x&lt;/b&gt;.jsonl" in text


def test_the_page_tells_the_numbers(month: Month, tmp_path: Path) -> None:
    run(month, tmp_path)
    text = (tmp_path / PERIOD / "diff_report.html").read_text()
    with month.ledger.transaction() as connection:
        report = read_report(connection, month.catalog, PERIOD)
    bars = {bar.label: bar.amount for bar in report.bars("USD")}
    assert f"{bars['Rated']:,f}".rstrip("0") in text
    level = Decimal(0)
    for bar in report.bars("USD"):
        if bar.is_level:
            assert bar.label == "Rated" or bar.amount == level
            level = bar.amount
        else:
            level += bar.amount


def test_an_empty_period_makes_a_report_too(month: Month, tmp_path: Path) -> None:
    reconcile(month.ledger, month.catalog, month.lake, period="2026-12", now=NOW, run_id="test")
    rendered = render(month.ledger, month.catalog, period="2026-12", folder=tmp_path, now=NOW, run_id="test")
    assert rendered.open_breaks == 0
    assert "No open break" in Path(rendered.files[1].address).read_text()
    assert openpyxl.load_workbook(rendered.files[0].address)["Quarantine"]["A2"].value == "No line is in quarantine."
