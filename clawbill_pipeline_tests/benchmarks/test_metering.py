"""The benchmark of metering, small: it runs, and all candidates come to the same sum. No time is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.benchmarks import metering
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database


@pytest.mark.parametrize("kind", metering.KINDS)
def test_all_candidates_come_to_the_same_sum(
    kind: str, postgres_server: AnyServer, ledger_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    # What continuous integration can afford for one of them: 100,000 events.
    metering.log_of(logs, f"hour.{kind}", metering.START, 100_000 if kind == "jsonl" else 3_000)
    sums = set()
    for name in metering.CANDIDATES:
        with fresh_database(postgres_server, template=ledger_template) as database:
            monkeypatch.setenv("BENCHMARK_URL", postgres_server.url(database))
            sums.add(metering.candidate(name, logs, kind)["sum"])
    assert len(sums) == 1


def test_late_rerun_copy_and_month_are_told(ledger_url: str, tmp_path: Path) -> None:
    ledger = Ledger(ledger_url)
    try:
        assert "1 % more, late" in metering.late(ledger, tmp_path, 3_000)
        assert "rows/s" in metering.copied(ledger, 1_000)
    finally:
        ledger.dispose()


def test_the_hours_of_a_month_are_told(ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "_BEFORE", 1)
    ledger = Ledger(ledger_url)
    try:
        assert "the last 1 hours" in metering.month(ledger, tmp_path, 50, hours=3)
    finally:
        ledger.dispose()
