"""The Dagster component in a project of somebody else's: scaffolded, loaded, and run, as docs/component.md says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from clawbill_pipeline.component import _NAMES, UsageBilling
from clawbill_pipeline.defs import environment as defs_environment
from clawbill_pipeline.settings import SettingsError
from clawbill_pipeline_tests.scenarios.command import environment
from clawbill_pipeline_tests.test_readme import ROOT, blocks, shell

EVENT = '{"event_id": "e1", "tenant_id": "acme", "service": "api.requests", "quantity": "3", "timestamp": "%s"}\n'


@pytest.mark.timeout(600)
def test_one_file_brings_the_whole_line_into_another_project(tmp_path: Path, ledger_url: str):
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    env = environment(PATH=path, CLAWBILL_DATABASE_URL=ledger_url, DAGSTER_HOME=str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    shell("create-dagster project shop --no-uv-sync", tmp_path, env)
    project = tmp_path / "shop"
    env["PYTHONPATH"] = str(project / "src")
    documented, shown = [block for block in blocks("docs/component.md") if block.language in ("bash", "yaml")]
    printed = shell(documented.text, project, env)
    assert "clawbill_pipeline.UsageBilling" in printed
    folder = project / "src" / "shop" / "defs" / "billing"
    assert yaml.safe_load((folder / "defs.yaml").read_text()) == yaml.safe_load(shown.text)

    # The starter's first month, and usage in its first hour.
    start = yaml.safe_load((folder / "catalog.yaml").read_text())["start"]
    (folder / "usage").mkdir()
    (folder / "usage" / "a.jsonl").write_text(EVENT % start.isoformat().replace("+00:00", "Z"))
    listed = json.loads(shell("dg list defs --json", project, env))
    assets = {asset["asset_key"]: asset for asset in listed["assets"]}
    assert {"billing/usage_events", "billing/metered_usage", "billing/diff_report"} <= set(assets)
    assert assets["billing/metered_usage"]["dependency_keys"] == ["billing/usage_events"]
    assert {"hourly_billing", "reconciliation"} <= {job["name"] for job in listed["jobs"]}
    hour = f"{start:%Y-%m-%d-%H:%M}"
    shell(f"dg launch --assets billing/usage_events,billing/metered_usage --partition {hour}", project, env)
    lake = next((project / ".clawbill" / "lake").rglob("*.parquet"))
    assert f"hour={start:%Y-%m-%dT%H}" in str(lake)
    shutil.rmtree(project)


def test_documented_attributes_are_those_of_the_component():
    table = (ROOT / "docs" / "component.md").read_text(encoding="utf-8")
    for name in UsageBilling.model_fields:
        assert f"`{name}`" in table
    for name, variable in _NAMES.items():
        assert name in UsageBilling.model_fields
        assert f"`{variable}`" in table


def test_a_second_usage_billing_in_a_code_location_is_refused():
    defs_environment.catalog_at_load()  # as loading the definitions does
    with pytest.raises(SettingsError, match="one usage billing a code location"):
        defs_environment.choose({"CLAWBILL_CATALOG": "other.yaml"})
