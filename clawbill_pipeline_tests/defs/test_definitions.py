"""What Dagster loads: a snapshot of every asset, job, schedule and sensor, and the manners each must have."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from clawbill_pipeline.definitions import build_definitions, defs

ROOT = Path(__file__).resolve().parents[2]
HOURLY = {"usage_events", "metered_usage", "rated_usage", "stripe_usage_records"}
MONTHLY = {"stripe_usage_summaries", "usage_reconciliation", "diff_report"}
DAILY = {"daily_diff_report"}
EVENTFUL = {
    "stripe_setup",
    "stripe_event_inbox",
    "stripe_invoices",
    "invoice_drafts",
    "invoice_adjustments",
    "tenant_standing",
}


def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_the_assets_are_those_of_the_design_and_partitioned_as_it_says() -> None:
    found = {name: type(spec.partitions_def).__name__ for name, spec in specs().items()}
    assert found == {
        **dict.fromkeys(HOURLY, "HourlyPartitionsDefinition"),
        **dict.fromkeys(DAILY, "DailyPartitionsDefinition"),
        **dict.fromkeys(MONTHLY, "MonthlyPartitionsDefinition"),
        **dict.fromkeys(EVENTFUL, "NoneType"),
    }


def test_jobs_schedules_and_sensors() -> None:
    assert {job.name for job in defs.resolve_all_job_defs()} - {"__ASSET_JOB"} == {
        "landing", "hourly_billing", "late_billing", "stripe_events", "reconciliation", "stripe_provisioning",
        "open_matters", "stripe_sweep", "price_simulation", "corrective_delivery", "period_rerating",
        "day_report",
    }  # fmt: skip
    repository = defs.get_repository_def()
    assert {schedule.name: schedule.cron_schedule for schedule in repository.schedule_defs} == {
        "hourly": "10 * * * *",
        "daily": "30 6 * * *",
        "open_matters": "*/10 * * * *",
        "sweep": "40 * * * *",
        "day_report": "30 7 * * *",
    }
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "after_reconciliation", "alerts", "approved_corrections", "failed_runs", "late_usage", "rating_retries",
        "stripe_inbox",
    }  # fmt: skip
    started = [*repository.schedule_defs, *repository.sensor_defs]
    assert all(each.default_status.value == "RUNNING" for each in started)


@pytest.mark.parametrize("name", sorted(HOURLY | DAILY | MONTHLY | EVENTFUL))
def test_every_asset_is_its_own_documentation(name: str) -> None:
    spec = specs()[name]
    assert spec.description
    assert spec.group_name != "default"
    assert spec.owners
    assert spec.kinds
    columns: Any = spec.metadata["dagster/column_schema"]
    assert len(columns.columns) > 3


def test_hours_of_a_backfill_go_into_one_run() -> None:
    for name in HOURLY:
        asset = defs.resolve_assets_def(dg.AssetKey(name))
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()


def test_checks_that_guard_the_bill_are_blocking() -> None:
    checks = {
        (spec.asset_key.to_user_string(), spec.name): spec.blocking
        for asset in defs.resolve_asset_graph().assets_defs
        for spec in asset.check_specs
    }
    assert checks["metered_usage", "conservation"]
    assert checks["usage_events", "books_balance"]
    # What is odd about a source or a tenant is told, and holds nobody's bill up.
    told = {"no_quarantine", "sources_unchanged", "sources_readable", "sources_fresh", "everybody_known"}
    assert {name for asset, name in checks if asset == "usage_events"} == told | {"books_balance"}
    assert {name for asset, name in checks if asset == "metered_usage"} == {"conservation", "volumes_usual"}
    assert not any(checks["usage_events", name] for name in told)
    assert not checks["metered_usage", "volumes_usual"]
    # A tenant that can't be rated must not keep everybody else from being billed.
    assert not checks["rated_usage", "everything_rated"]


def test_dg_and_the_workspace_load_the_same_location() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry["python_module"] == {
        "module_name": project["code_location_target_module"],
        "location_name": project["code_location_name"],
    }


def test_resources_can_be_replaced() -> None:
    replaced = build_definitions({"ledger": dg.ResourceDefinition.hardcoded_resource("another")})
    assert replaced.resources is not None
    assert replaced.resources["ledger"] is not (defs.resources or {})["ledger"]
