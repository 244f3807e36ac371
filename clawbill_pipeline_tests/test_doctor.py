"""``clawbill doctor``: every kind of failure is found, said with its remedy, and hides no other one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.doctor import Finding, examine, probed
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.processes import start_serving
from clawbill_pipeline.settings import STARTER, Settings, SettingsError
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.object_store import Bucket
from clawbill_pipeline_tests.scenarios.command import environment

TOKEN = "a-token-of-the-tests"
KEY = "sk_test_doctor"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses of the two stand-ins."""
    folder = tmp_path_factory.mktemp("servers")
    env = environment(OPENCLAW_TOKEN=TOKEN)
    children, ports = [], []
    try:
        for name, arguments in (("openclaw", ["--catalog", str(STARTER)]), ("stripe", [])):
            child, port = start_serving(
                name,
                [sys.executable, "-m", f"clawbill_pipeline.sandbox.{name}", "--port", "0",
                 "--state", str(folder / name), *arguments],
                env=env, log=folder / f"{name}.log", port_file=folder / f"{name}.port",
            )  # fmt: skip
            children.append(child)
            ports.append(f"http://127.0.0.1:{port}")
        yield ports[0], ports[1]
    finally:
        for child in children:
            child.stop()


@pytest.fixture
def good(tmp_path: Path, ledger_url: str, servers: tuple[str, str]) -> Settings:
    (tmp_path / "usage").mkdir()
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(STARTER.read_text())
    return Settings(
        state=tmp_path,
        catalog=catalog,
        database_url=SecretStr(ledger_url),
        openclaw_url=servers[0],
        openclaw_token=SecretStr(TOKEN),
        stripe_key=SecretStr(KEY),
        stripe_webhook_secrets=(SecretStr("whsec_1"),),
        stripe_api_base=servers[1],
    )


def found(settings: Settings, **changed: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(settings.model_copy(update=changed))}


def bad(findings: dict[str, Finding]) -> set[str]:
    for finding in findings.values():
        assert finding.good or finding.remedy, f"{finding.name} says nothing about what to do"
    return {name for name, finding in findings.items() if not finding.good}


def test_all_is_well_once_stripe_is_provisioned(good: Settings, ledger_url: str) -> None:
    assert bad(found(good)) == {"Stripe meters"}
    from clawbill_pipeline.catalog import load

    ledger = Ledger(ledger_url)
    api = StripeApi(SecretStr(KEY), good.stripe_api_base)
    provision(ledger, load(good.catalog_file), api, now=datetime.now(UTC), run_id="test")
    ledger.dispose()
    assert bad(found(good)) == set()


@pytest.mark.parametrize(
    ("changed", "name", "says"),
    [
        ({"openclaw_token": SecretStr("wrong")}, "OpenClaw", "OPENCLAW_TOKEN"),
        ({"openclaw_url": "http://127.0.0.1:9"}, "OpenClaw", "reachable"),
        ({"openclaw_url": None}, "OpenClaw", "clawbill openclaw serve"),
        ({"stripe_key": SecretStr("not-a-key")}, "Stripe", "STRIPE_SECRET_KEY"),
        ({"stripe_key": SecretStr("sk_live_0")}, "Stripe", "test key"),
        ({"stripe_key": None}, "Stripe", "test key"),
        ({"stripe_webhook_secrets": (SecretStr("typo"),)}, "webhook secret", "whsec_"),
        ({"database_url": SecretStr("postgresql://u:secret-pw@127.0.0.1:9/x")}, "database", "URL"),
        ({"database_url": None}, "database", "CLAWBILL_DATABASE_URL"),
        ({"catalog": Path("/nowhere.yaml")}, "catalogue", "catalog check"),
    ],
)
def test_each_failure_is_found_with_its_remedy(
    good: Settings, changed: dict[str, object], name: str, says: str
) -> None:
    findings = found(good, **changed)
    assert name in bad(findings)
    assert says in findings[name].remedy
    everything = "".join(f"{finding.text}{finding.remedy}" for finding in findings.values())
    for secret in (TOKEN, KEY, "secret-pw", "sk_live_0", "not-a-key"):
        assert secret not in everything


def test_a_database_without_the_ledger_is_to_be_migrated(good: Settings, database_url: str) -> None:
    findings = found(good, database_url=SecretStr(database_url))
    assert findings["database"].good
    assert findings["migrations"].remedy == "clawbill migrate"


def test_a_database_of_a_later_version_is_none_to_mend(good: Settings, ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    with ledger.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    ledger.dispose()
    finding = found(good, database_url=SecretStr(ledger_url))["migrations"]
    assert finding.good
    assert "revision 9999, of a later version" in finding.text


def test_the_probe_asks_the_account_what_documents_leave_open(good: Settings) -> None:
    findings = probed(good, settle_seconds=0)
    assert len(findings) > 3
    assert all(finding.good for finding in findings), findings
    with pytest.raises(SettingsError, match="live key"):
        probed(good.model_copy(update={"stripe_key": SecretStr("sk_live_0")}), settle_seconds=0)


def test_a_source_that_is_not_there_is_named(good: Settings) -> None:
    (good.state / "usage").rmdir()
    findings = found(good)
    assert "usage is not there" in findings["source app"].text
    assert "source app" in bad(findings)


def test_a_doubtful_calendar_is_said_and_fails_nothing(good: Settings) -> None:
    assert "calendar" not in found(good)
    good.catalog_file.write_text(STARTER.read_text().replace("late_window: 45m", "late_window: 1h"))
    findings = found(good)
    assert "calendar.late_window" in findings["calendar"].text
    assert "raise stripe_grace" in findings["calendar"].remedy
    assert "calendar" not in bad(findings)


def test_a_bucket_that_is_not_there_is_named(good: Settings, bucket: Bucket) -> None:
    findings = found(good, lake=bucket.address)
    assert findings["lake"].good
    findings = found(good, lake="s3://nowhere/lake")
    assert "there is no bucket 'nowhere'" in findings["lake"].text
    assert "lake" in bad(findings)
