"""The Dagster component in a project of somebody else's: scaffolded, loaded, and run, as docs/component.md says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from sqlalchemy import text

from clawbill_pipeline.component import _NAMES, UsageBilling
from clawbill_pipeline.defs import environment as defs_environment
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import STARTER, SettingsError
from clawbill_pipeline.stack import Stack
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

    # Services by the names that the project has for them: those of clawbill's own lead nowhere.
    with Stack(tmp_path / "services", environment(CLAWBILL_DATABASE_URL=ledger_url)) as services:
        env |= {"SHOP_OPENCLAW": services.openclaw(folder / "catalog.yaml"), "SHOP_STRIPE": services.stripe()}
        env |= {"SHOP_TOKEN": services.env["OPENCLAW_TOKEN"], "SHOP_KEY": services.env["STRIPE_SECRET_KEY"]}
        env |= dict.fromkeys(("OPENCLAW_URL", "CLAWBILL_STRIPE_API_BASE"), "http://127.0.0.1:9")
        names = {"openclaw_url": "OPENCLAW", "openclaw_token": "TOKEN", "stripe_api_base": "STRIPE"}
        chosen = {name: f"{{{{ env.SHOP_{variable} }}}}" for name, variable in names.items()}
        document = yaml.safe_load(shown.text)
        document["attributes"] |= {**chosen, "stripe_secret_key": "{{ env.SHOP_KEY }}", "key_prefix": "shop/billing"}
        (folder / "defs.yaml").write_text(yaml.safe_dump(document))
        shell("dg launch --assets shop/billing/stripe_setup", project, env)
        hour = f"{start:%Y-%m-%d-%H:%M}"
        shell(f"dg launch --job hourly_billing --partition {hour}", project, env)
        stats = httpx.get(f"{env['SHOP_STRIPE']}/_sandbox/stats", trust_env=False).json()
    assert stats["meter_events"]["accepted"] == 1
    ledger = Ledger(ledger_url)
    with ledger.transaction() as connection:
        (record,) = connection.execute(text("SELECT tenant_id, state FROM usage_records")).all()
        assert connection.scalar(text("SELECT count(*) FROM metered_usage")) == 1
    ledger.dispose()
    assert tuple(record) == ("acme", "delivered")
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


def loaded(folder: Path, attributes: dict[str, str], env: dict[str, str]) -> str:
    """What the settings of a component come to in a process of its own: the Stripe key, or the error."""
    script = """
import json, sys
from pathlib import Path
from clawbill_pipeline.component import UsageBilling
from clawbill_pipeline.defs import environment
component, context = UsageBilling(**json.loads(sys.argv[1])), type("Context", (), {"path": Path.cwd()})
try:
    component.build_defs(context)
    key = environment.settings().stripe_key
    print(key.get_secret_value() if key else None)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
print(component, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(attributes)], cwd=folder, env=environment(**env),
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "word" not in done.stderr.splitlines()[-1], "a component that is printed shows no secret"
    return done.stdout.strip()


def test_what_is_written_stands_above_the_environment_even_if_it_comes_to_nothing(tmp_path: Path):
    shutil.copyfile(STARTER, tmp_path / "catalog.yaml")
    # {{ env.NAME }} of a variable that is not set: another account's key must not take its place.
    attributes = {"catalog": "catalog.yaml", "database_url": "postgresql://u:pass-word@db/d", "stripe_secret_key": ""}
    assert loaded(tmp_path, attributes, {"STRIPE_SECRET_KEY": "sk_test_of_the_environment"}) == "None"


def test_a_catalogue_that_is_not_there_is_named_with_the_file_to_mend(tmp_path: Path):
    said = loaded(tmp_path, {"catalog": "catalogue.yaml"}, {})
    assert said == (
        f"CatalogError: {tmp_path / 'catalogue.yaml'}: no such file; mend `catalog` in the defs.yaml in {tmp_path}"
    )


def test_a_second_usage_billing_in_a_code_location_is_refused():
    defs_environment.catalog_at_load()  # as loading the definitions does
    with pytest.raises(SettingsError, match="one usage billing a code location"):
        defs_environment.choose({"CLAWBILL_CATALOG": "other.yaml"})
