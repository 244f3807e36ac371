"""The day's report as Dagster makes it: the partition is the day, and files are linked from the asset."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from clawbill_pipeline.definitions import build_definitions
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.settings import Settings
from clawbill_pipeline_tests.reconciliation.month import Month, hour


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    made = Month.at(ledger_url, tmp_path)
    yield made
    made.ledger.dispose()


def test_the_partition_is_the_day(month: Month, tmp_path: Path) -> None:
    at = hour(5)
    month.used("acme", "tokens", at, 10)
    month.used("acme", "tokens", at + timedelta(days=1), 10)
    month.clean()
    now = at + timedelta(days=40)
    reconcile(month.ledger, month.catalog, month.lake, period="2026-10", now=now, run_id="test")
    definitions = build_definitions(
        {
            "settings": Settings(state=tmp_path, web_url="https://billing.example.com"),
            "ledger": month.ledger,
            "clock": dg.ResourceDefinition.hardcoded_resource(lambda: now),
        }
    )
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_job_def("day_report")
        result = job.execute_in_process(instance=instance, partition_key=f"{at:%Y-%m-%d}")
        (made,) = result.asset_materializations_for_node("daily_diff_report")
    assert made.metadata["dagster/row_count"].value == 1
    name = f"diff_report_{at:%Y-%m-%d}.xlsx"
    assert made.metadata[name].value == f"https://billing.example.com/reports/2026-10/{name}"
    assert (tmp_path / "reports" / "2026-10" / name).exists()
