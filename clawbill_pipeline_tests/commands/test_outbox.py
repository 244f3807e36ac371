"""`clawbill outbox` and `clawbill provision --customers` on a ledger whose tenants share a customer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.cli import cli
from clawbill_pipeline.delivery.operations import counts
from clawbill_pipeline_tests.delivery.conftest import ledger, sandbox, world  # noqa: F401 -- fixtures
from clawbill_pipeline_tests.delivery.world import CATALOG, HOUR, T0, World


@pytest.fixture
def shell(world: World, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    """An environment that leads to the world; acme and globex share a customer by a file."""
    (tmp_path / "catalog.yaml").write_text(CATALOG, encoding="utf-8")
    (tmp_path / "clock").write_text(world.now().isoformat(), encoding="ascii")
    monkeypatch.chdir(tmp_path)
    values = {
        "STATE": tmp_path, "DATABASE_URL": ledger_url, "CATALOG": tmp_path / "catalog.yaml",
        "CLOCK": tmp_path / "clock", "STRIPE_API_BASE": world.sandbox.url,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"CLAWBILL_{name}", str(value))
    monkeypatch.setenv("STRIPE_SECRET_KEY", world.account.key)
    customer = world.account.customer()
    (tmp_path / "customers.csv").write_text(f"tenant_id,customer_id\nacme,{customer}\nglobex,{customer}\n")
    return world


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_tenants_mapped_by_a_file_share_their_records(shell: World, tmp_path: Path) -> None:
    dry = run("provision", "--dry-run", "--customers", "customers.csv")
    assert (dry.exit_code, shell.account.stats()["objects"].get("subscription", 0)) == (0, 0)
    assert "billed with acme" in dry.stdout
    made = run("provision", "--customers", "customers.csv")
    assert made.exit_code == 0, made.output
    assert run("provision").exit_code == 0  # the ledger remembers

    shell.rate("acme", "tokens", T0, "1")
    shell.rate("globex", "tokens", T0, "2")
    shell.rate("acme", "tokens", T0 + HOUR, "4")
    shell.plan()
    listed = run("outbox", "list", "--tenant", "globex").stdout
    (identifier,) = [word for word in listed.split() if word.startswith("20260301T")]
    record = json.loads(run("outbox", "show", identifier).stdout)
    assert (record["units"], record["parts"]) == ("3000000", {"acme": "1000000", "globex": "2000000"})

    assert run("outbox", "park", "--tenant", "globex", "--reason", "disputed").stdout == "1 records are parked.\n"
    assert shell.deliver().delivered == 1
    assert [(c.state, c.parked, c.records) for c in counts(shell.ledger)] == [
        ("delivered", None, 1), ("planned", "disputed", 1),
    ]  # fmt: skip
    assert [(c.state, c.records) for c in counts(shell.ledger, (T0, T0 + HOUR))] == [("planned", 1)]
    assert "disputed" in run("outbox", "list").stdout
    assert run("outbox", "retry", "--parked", "disputed").stdout == "1 records will be tried again.\n"
    assert shell.deliver().delivered == 1
    assert shell.held("globex", "tokens") == 7_000_000
    assert run("outbox", "park", "--reason", "why").exit_code == 1
    assert "no usage record" in run("outbox", "show", "20260301T000000Z:1:nobody").output


def test_a_file_with_faults_maps_nobody(shell: World, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text("tenant_id,customer_id\nacme,cus_1\nnobody,cus_2\n")
    refused = run("provision", "--customers", "customers.csv")
    assert isinstance(refused.exception, CatalogError)  # which clawbill's own entry point shows
    assert "customers.csv:3: tenant_id: 'nobody' is no tenant of the catalogue" in str(refused.exception)
    assert not shell.account.stats()["objects"].get("customer", 0) - 1
    assert shell.rows() == []
