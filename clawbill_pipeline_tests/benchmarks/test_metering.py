"""The benchmark of metering, small: it runs, and all candidates come to the same sum. No time is judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.benchmarks import metering


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


def test_all_candidates_come_to_the_same_sum(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    metering.land(ledger, Lake(tmp_path), metering.START, 3_000)
    sums = {metering.candidate(name, ledger_url, tmp_path)[0] for name in ("metering", "bare DuckDB", "pandas")}
    assert len(sums) == 1


def test_late_rerun_and_month_are_told(ledger: Ledger, tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    metering.land(ledger, lake, metering.START, 3_000)
    assert "again with 1 % late" in metering.late_and_copy(ledger, lake, 3_000)
    assert "the last day" in metering.month(ledger, lake, 50, hours=3)
