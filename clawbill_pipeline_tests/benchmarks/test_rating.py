"""The benchmark of rating, small: it runs, and all ways come to the same amounts. No time is judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.benchmarks import rating


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "catalog.yaml").write_text(rating.CATALOG)
    return tmp_path


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


def rows_of(table: str) -> list[str]:
    return [line.split("  ")[0] for line in table.splitlines()[2:]]


def test_vectorised_agrees_with_duckdb_and_with_the_engine() -> None:
    shown = rating.vectorised(20_000, sample=500, rounds=1)
    assert rows_of(shown) == [
        "vectorised", "bare DuckDB range join", "the engine, row by row", "Decimal loop, read and kept",
        "Decimal loop, arithmetic alone",
    ]  # fmt: skip


def test_a_row_that_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rating, "BARE", rating.BARE.replace("t.above) * t.unit", "t.above) * t.unit + (u.row = 7)::INT")
    )
    with pytest.raises(SystemExit, match="999 of 1000 rows agree"):
        rating.vectorised(1_000, sample=10, rounds=1)


def test_all_ways_through_http_come_to_the_same_sum(ledger: Ledger, folder: Path) -> None:
    shown = rating.http(200, 1, ledger, folder)
    ways = ("bare aiohttp", "bare httpx on aiohttp", "our client", "the station")
    assert rows_of(shown) == [*(f"{way}, 1 worker" for way in ways), *(f"{way}, 2 workers" for way in ways)]


def test_memory_is_measured_in_processes_of_their_own(ledger: Ledger, ledger_url: str, folder: Path) -> None:
    shown = rating.memory(10_000, 100, ledger, ledger_url, folder)
    assert rows_of(shown) == ["vectorised", "the station"]
