"""The margin: exact where the provider's cost is known, nothing where it is not, the same whatever comes later."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from clawbill_pipeline.catalog import Catalog, CatalogError, parse
from clawbill_pipeline.catalog.costs import UnitCost
from clawbill_pipeline.ledger.archive import ArchiveError, archive_month
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reporting.margin import Margin
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline.reporting.report import Report, read_report
from clawbill_pipeline_tests.reconciliation.month import CATALOG, NOW, PERIOD, Month, hour

COSTS = """
costs:
  mockai:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: 1, per: 3000}}
      - effective_from: 2026-10-16T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: "0.0005"}}
      - effective_from: 2026-10-31T00:00:00Z
        prices: {}
"""


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    month = Month.at(ledger_url, tmp_path, CATALOG + COSTS)
    month.used("acme", "tokens", hour(0), 1_000_000)
    month.used("acme", "tokens", hour(1), 1)
    month.used("acme", "tokens", hour(24 * 20), 2_000_000)
    month.used("acme", "tokens", hour(24 * 30), 7)  # nobody knows what these cost
    month.used("acme", "requests", hour(3), 100)
    month.used("osaka", "tokens", hour(5), 9000)
    month.land_usage()
    month.meter()
    month.rate()
    yield month
    month.ledger.dispose()


def report(month: Month, now: timedelta = timedelta(0)) -> Report:
    reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW + now, run_id="test")
    return read(month)


def read(month: Month) -> Report:
    with month.ledger.transaction() as connection:
        return read_report(connection, month.catalog, PERIOD)


def test_revenue_and_cost_are_of_usage_whose_cost_is_known(month: Month) -> None:
    acme, osaka = report(month).margins
    assert acme == Margin(
        "acme", "tokens", "USD", quantity=Decimal(3_000_001), unknown_quantity=Decimal(7),
        revenue=Decimal("4500.0015"), cost=Decimal("1333.333666666667"), cost_currency="USD",
    )  # fmt: skip
    assert (acme.margin, acme.percent) == (Decimal("3166.667833333333"), Decimal("70.37"))
    # Yen less dollars is no margin.
    assert (osaka.revenue, osaka.cost, osaka.margin, osaka.percent) == (1800, 3, None, None)


def test_a_report_stays_what_it_was_when_costs_change(month: Month) -> None:
    before = report(month)
    month.catalog = parse(CATALOG + COSTS.replace('"0.0005"', '"0.001"'))
    assert read(month).margins == before.margins
    after = report(month, timedelta(hours=1))
    assert after.reconciliation_id > before.reconciliation_id
    assert after.margins[0].cost == before.margins[0].cost + 1000
    assert report(month, timedelta(hours=2)).reconciliation_id == after.reconciliation_id
    month.catalog = parse(CATALOG)
    assert report(month, timedelta(hours=3)).margins == ()


def test_a_loss_and_no_revenue(month: Month) -> None:
    (margin, _) = report(month).margins
    assert replace(margin, revenue=Decimal(1000)).percent == Decimal("-33.33")
    assert replace(margin, revenue=Decimal(0)).percent is None


def test_it_is_in_the_workbook_the_page_and_csv(month: Month, tmp_path: Path) -> None:
    report(month)
    files = render(month.ledger, month.catalog, period=PERIOD, folder=tmp_path / "out", now=NOW, run_id="test").files
    paths = {file.name: Path(file.address) for file in files}
    assert "margin.csv" in paths
    acme, osaka = csv.DictReader(io.StringIO(paths["margin.csv"].read_text()))
    assert (acme["revenue"], acme["cost"], acme["margin"]) == ("4500.0015", "1333.333666666667", "3166.667833333333")
    assert (osaka["cost"], osaka["cost_currency"], osaka["margin"]) == ("3", "USD", "")
    sheet = openpyxl.load_workbook(paths["diff_report.xlsx"])["Margin"]
    values = openpyxl.load_workbook(paths["diff_report.xlsx"], data_only=True)["Margin"]
    last = [cell.value for cell in values[sheet.max_row]]
    assert last[0] == "Total USD"
    assert last[8] == pytest.approx(3166.667833333333)
    assert str(sheet.cell(sheet.max_row, 9).value).startswith("=ROUND(SUMIFS(")
    assert "3,166.667833333333" in paths["diff_report.html"].read_text()


def test_focus_has_the_cost_of_each_row_in_columns_of_our_own(month: Month, tmp_path: Path) -> None:
    report(month)
    files = render(month.ledger, month.catalog, period=PERIOD, folder=tmp_path / "out", now=NOW, run_id="test").files
    path = next(Path(file.address) for file in files if file.name == "focus_1_2.csv")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    costs = {(r["BillingAccountId"], r["ServiceName"], r["ConsumedQuantity"]): r["x_ProviderCost"] for r in rows}
    assert costs["acme", "tokens", "1000000"] == "333.333333333333"
    assert costs["acme", "tokens", "1"] == "0.000333333333"
    assert costs["acme", "tokens", "2000000"] == "1000"
    assert costs["acme", "tokens", "7"] == costs["acme", "requests", "100"] == ""
    assert {r["x_ProviderCostCurrency"] for r in rows if r["x_ProviderCost"]} == {"USD"}


def test_without_costs_there_is_no_sign_of_them(month: Month, tmp_path: Path) -> None:
    month.catalog = parse(CATALOG)
    report(month)
    files = render(month.ledger, month.catalog, period=PERIOD, folder=tmp_path / "out", now=NOW, run_id="test").files
    paths = {file.name: Path(file.address) for file in files}
    assert "margin.csv" not in paths
    assert "Margin" not in openpyxl.load_workbook(paths["diff_report.xlsx"]).sheetnames
    assert "x_ProviderCost" not in paths["focus_1_2.csv"].read_text()


def test_the_report_of_a_month_that_is_archived_is_not_made_again_without_its_rows(
    month: Month, tmp_path: Path
) -> None:
    report(month)
    month.run("UPDATE breaks SET closed_at = :at", at=NOW)  # nothing was billed here
    later = NOW + timedelta(days=400)
    archive_month(month.ledger, month.lake, date(2026, 10, 1), now=later, by="ann")
    with pytest.raises(ArchiveError, match="2026-10 is archived"):
        render(month.ledger, month.catalog, period=PERIOD, folder=tmp_path / "out", now=later, run_id="test")


# --- the cards -------------------------------------------------------------------------------------------------------

SERVICES = """
start: 2026-01-01T00:00:00Z
services: {tokens: {unit: token, dimensions: [provider, model]}, calls: {unit: call}}
rate_cards:
  c:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: 1}, calls: {model: per_unit, unit_amount: 1}}
costs:
"""


def card(name: str, **prices: str) -> str:
    shown = ", ".join(f'"{service}": {price}' for service, price in prices.items())
    return (
        f"  {name}:\n    currency: USD\n    versions:\n"
        f"      - {{effective_from: 2026-01-01T00:00:00Z, prices: {{{shown}}}}}\n"
    )


def unit(amount: str, **more: str) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in {"model": "per_unit", "unit_amount": amount, **more}.items()) + "}"


def found(catalog: Catalog) -> list[tuple[str, str | None, Decimal, Decimal]]:
    return [(cost.service, cost.dimensions, cost.amount, cost.per) for cost in catalog.unit_costs()]


def test_cards_are_read_like_rate_cards_and_the_most_specific_comes_first() -> None:
    matrix = f"{{model: matrix, cells: {{a/large: {unit('3')}, a/small: {unit('2')}}}, otherwise: {unit('1')}}}"
    prices: dict[str, Any] = {"tokens": matrix, "tokens:a/large": unit("9", per="1000000")}
    catalog = parse(SERVICES + card("a", **prices) + card("b", calls="{model: percentage, percent: '2.5'}"))
    assert found(catalog) == [
        ("tokens", "a/large", Decimal(9), Decimal(1_000_000)),
        ("tokens", "a/small", Decimal(2), Decimal(1)),
        ("tokens", None, Decimal(1), Decimal(1)),
        ("calls", None, Decimal("2.5"), Decimal(100)),
    ]
    assert [UnitCost.from_json(cost.as_json()) for cost in catalog.unit_costs()] == catalog.unit_costs()


def test_a_conversion_is_part_of_the_unit() -> None:
    catalog = parse(SERVICES + card("a", calls=unit("2", convert="{divide_by: 1000}")))
    assert found(catalog) == [("calls", None, Decimal(2), Decimal(1000))]


@pytest.mark.parametrize(
    ("price", "why"),
    [
        ("{model: graduated, tiers: [{unit_amount: 1}]}", "a cost is by the unit: per_unit"),
        ("{model: per_unit, unit_amount: 1, flat_amount: 5}", "without increment and flat_amount"),
        ("{model: per_unit, unit_amount: 1, minimum: 5}", "without discounts, maximum, minimum"),
        ("{model: per_unit, unit_amount: 1, included: 5}", "without included units"),
        ("{model: per_unit, unit_amount: 1, convert: {divide_by: 10, round: up}}", "converted without rounding"),
    ],
)
def test_what_is_not_by_the_unit_is_refused(price: str, why: str) -> None:
    with pytest.raises(CatalogError, match=why):
        parse(SERVICES + card("a", calls=price))


def test_two_cards_for_the_same_and_a_service_that_is_not_there_are_refused() -> None:
    with pytest.raises(CatalogError, match="is in cost card 'a' too"):
        parse(SERVICES + card("a", calls=unit("1")) + card("b", calls=unit("1")))
    with pytest.raises(CatalogError, match="prices no service of the catalogue"):
        parse(SERVICES + card("a", fax=unit("1")))
