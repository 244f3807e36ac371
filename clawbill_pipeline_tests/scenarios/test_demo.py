"""``clawbill demo`` on its own logs: the bill is recomputed here from the log files by other means."""

from __future__ import annotations

import json
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import openpyxl
import pytest

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline_tests.scenarios.command import clawbill, processes_of, waterfall_of


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a demo") / "state"


@pytest.fixture(scope="module")
def first(state: Path) -> dict[tuple[str, str], dict[str, object]]:
    done = clawbill("demo", "--state", state, "--json", cwd=state.parent)
    assert "Reports:" in done.stderr
    return waterfall_of(done.stdout)


def usage(folder: Path) -> dict[tuple[str, str], dict[str, Decimal]]:
    """Quantity by tenant and service, then by dimension, of all lines that are JSON; each event once."""
    seen: set[tuple[str, str]] = set()
    used: dict[tuple[str, str], dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                event = json.loads(line, parse_float=Decimal, parse_int=Decimal)
            except ValueError:
                continue
            key = (event["tenant_id"], event["event_id"])
            if key not in seen:
                seen.add(key)
                used[event["tenant_id"], event["service"]][event.get("model", "")] += Decimal(event["quantity"])
    return used


def cost(catalog: Catalog, tenant: str, service: str, quantities: dict[str, Decimal]) -> Decimal:
    """By the prices as the catalogue writes them, with the arithmetic spelled out again."""
    total = Decimal(0)
    for model, quantity in quantities.items():
        name = f"{service}:{model}" if model else service
        card = catalog.rate_cards[catalog.tenants[tenant].rate_card].versions[0].prices
        price = catalog.tenants[tenant].prices.get(service) or card.get(name) or card[service]
        if price.model == "per_unit":
            total += quantity * price.unit_amount
            continue
        below = Decimal(0)
        for tier in price.tiers:
            upper = quantity if tier.up_to is None else min(quantity, tier.up_to)
            total += max(Decimal(0), upper - below) * tier.unit_amount
            below = max(below, upper)
    return total


def test_every_amount_is_what_the_logs_and_prices_say(
    state: Path, first: dict[tuple[str, str], dict[str, object]]
) -> None:
    catalog = load(state / "catalog.yaml")
    used = usage(state / "usage")
    assert set(first) == set(used)
    for (tenant, service), row in first.items():
        assert row["metered_quantity"] == sum(used[tenant, service].values())
        if tenant not in catalog.tenants:
            continue
        exact = cost(catalog, tenant, service, used[tenant, service])
        assert row["rated_amount"] == exact, (tenant, service)
        assert row["sent"] == row["held_by_stripe"] == exact.quantize(Decimal("0.000001"), ROUND_HALF_UP)
        assert row["invoiced_amount"] == row["paid_amount"] == exact.quantize(Decimal("0.01"), ROUND_HALF_UP)
        assert row["breaks"] == 0
        assert row["currency"] == ("EUR" if tenant == "initech" else "USD")


def test_the_unmapped_tenant_is_metered_shown_and_not_billed(first: dict[tuple[str, str], dict[str, object]]) -> None:
    rows = [row for (tenant, _), row in first.items() if tenant == "umbrella"]
    assert rows
    for row in rows:
        assert row["metered_quantity"] > 0
        assert row["rated_amount"] is None
        assert row["breaks"] >= 1


def test_reports_are_there_and_say_the_same(state: Path, first: dict[tuple[str, str], dict[str, object]]) -> None:
    folder = state / "reports" / "2026-01"
    assert {path.suffix for path in folder.iterdir()} >= {".xlsx", ".csv", ".html"}
    (workbook,) = folder.glob("*.xlsx")
    sheets = openpyxl.load_workbook(workbook, data_only=True)
    cells = {str(cell) for row in sheets["Waterfall"].iter_rows(values_only=True) for cell in row}
    assert {"acme", "globex", "initech"} <= cells


def test_nothing_is_left_running(state: Path, first: object) -> None:
    assert processes_of(state) == []


def test_the_second_time_changes_nothing_and_says_so(
    state: Path, first: dict[tuple[str, str], dict[str, object]]
) -> None:
    before = {path: path.read_bytes() for path in (state / "reports").rglob("*") if path.is_file()}
    done = clawbill("demo", "--state", state, "--json", cwd=state.parent)
    assert "Nothing changed" in done.stderr
    assert waterfall_of(done.stdout) == first
    assert {path: path.read_bytes() for path in (state / "reports").rglob("*") if path.is_file()} == before


def test_the_waterfall_command_shows_the_same(state: Path, first: dict[tuple[str, str], dict[str, object]]) -> None:
    everything = clawbill("waterfall", "--state", state, "--json", cwd=state.parent)
    assert waterfall_of(everything.stdout) == first
    one = clawbill("waterfall", "--state", state, "--json", "--tenant", "acme", "--period", "2026-01", cwd=state.parent)
    assert waterfall_of(one.stdout) == {key: row for key, row in first.items() if key[0] == "acme"}
    table = clawbill("waterfall", "--state", state, cwd=state.parent).stdout
    assert "storage.gb_hours" in table


def test_another_source_is_refused_in_the_same_folder(state: Path, first: object, tmp_path: Path) -> None:
    (tmp_path / "logs.jsonl").write_text(
        '{"event_id":"1","tenant_id":"a","service":"s","quantity":1,"timestamp":"2026-03-01T10:00:00Z"}\n'
    )
    with pytest.raises(AssertionError, match="choose another folder with --state"):
        clawbill("demo", "--state", state, "--source", tmp_path, cwd=tmp_path)
