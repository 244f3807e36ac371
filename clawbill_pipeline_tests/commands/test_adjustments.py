"""`clawbill adjustments`: what it shows, what it does at the stand-in, and how it says no."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clawbill_pipeline.cli import cli
from clawbill_pipeline_tests.invoicing.conftest import CATALOG, ledger  # noqa: F401 -- a fixture
from clawbill_pipeline_tests.invoicing.test_adjusting import Office, office  # noqa: F401 -- a fixture
from clawbill_pipeline_tests.invoicing.test_close import UNITS, catalog, month, sandbox  # noqa: F401 -- fixtures


@pytest.fixture
def shell(office: Office, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:  # noqa: F811
    """The office with an environment that leads to its ledger and its Stripe."""
    (tmp_path / "catalog.yaml").write_text(CATALOG.replace("2026-10-01", "2026-03-01"), encoding="utf-8")
    (tmp_path / "clock").write_text(office.month.now.isoformat(), encoding="ascii")
    monkeypatch.chdir(tmp_path)
    values = {
        "STATE": tmp_path, "DATABASE_URL": ledger_url, "CATALOG": tmp_path / "catalog.yaml",
        "CLOCK": tmp_path / "clock", "STRIPE_API_BASE": office.month.sandbox.url,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"CLAWBILL_{name}", str(value))
    monkeypatch.setenv("STRIPE_SECRET_KEY", office.month.account.key)
    return office


def adjustments(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adjustments", *map(str, arguments)])


def test_from_a_proposal_to_the_invoice_item_and_back(shell: Office) -> None:
    assert adjustments("list").stdout == "No adjustment waits.\n"
    shell.late(UNITS + 2_500_000)
    number = shell.newest
    said = adjustments("list").stdout
    invoice = shell.month.inbox.rows("invoices")[0].invoice_id
    assert said.splitlines()[2].split() == [
        str(number), "open", "globex", invoice, "requests", "2026-05-01T00:00", "2026-06-01T00:00", "2500000", "2.5",
        "USD", "-",
    ]  # fmt: skip
    assert "proposed  2.5" in said.partition("History")[2]
    assert adjustments("list", "--tenant", "initech").stdout == "No adjustment waits.\n"

    without_why = adjustments("approve", number)
    assert (without_why.exit_code, shell.items) == (2, [])
    for _ in range(2):
        done = adjustments("approve", number, "--why", "globex agreed")
        (item,) = shell.items
        assert done.stdout == f"Adjustment {number} (2.5 USD): done, {item.id} at Stripe.\n", done.output
    assert adjustments("list").stdout == "No adjustment waits. Earlier ones: --all\n"
    said = adjustments("list", "--all").stdout
    assert said.splitlines()[2].split()[-1] == item.id
    assert "globex agreed" in said

    undone = adjustments("undo", number, "--why", "a mistake")
    assert undone.exit_code == 0, undone.output
    assert shell.items == []
    steps = adjustments("list", "--all").stdout.partition("History")[2].splitlines()[3:]
    assert [step.split()[2] for step in steps] == ["proposed", "accepted", "sending", "done", "undone", "done"]


def test_what_can_not_be_done_is_said(shell: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.late(UNITS + 2_500_000)
    first = shell.newest
    shell.late(UNITS + 3_000_000)
    no = adjustments("approve", first, "--why", "x")
    assert (no.exit_code, "a newer proposal replaced it" in no.stderr, shell.items) == (1, True, [])
    no = adjustments("undo", shell.newest, "--why", "x")
    assert (no.exit_code, "there is nothing to undo" in no.stderr) == (1, True)

    monkeypatch.setenv("CLAWBILL_STRIPE_API_BASE", "http://127.0.0.1:9")
    lost = adjustments("approve", shell.newest, "--why", "x")
    assert (lost.exit_code, "not done yet, try again" in lost.stderr) == (1, True)
    assert shell.month.account.key not in lost.output
    assert adjustments("list").stdout.splitlines()[2].split()[1] == "sending"
    monkeypatch.setenv("CLAWBILL_STRIPE_API_BASE", shell.month.sandbox.url)
    assert adjustments("approve", shell.newest, "--why", "x").exit_code == 0
    assert [item.amount for item in shell.items] == [300]
