"""A person's commands on a billed state: look into the outbox, quarantine and the close, and explain a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clawbill_pipeline.ledger import Ledger, embedded
from clawbill_pipeline_tests.scenarios.command import clawbill


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month of one tenant, billed and paid, with one line that can't be read."""
    folder = tmp_path_factory.mktemp("hands on")
    logs = folder / "logs"
    logs.mkdir()
    event = {"tenant_id": "t-1", "service": "calls"}
    lines = [
        json.dumps(event | {"event_id": "1", "quantity": 1500, "timestamp": "2025-06-10T08:00:00Z"}),
        json.dumps(event | {"event_id": "2", "quantity": "many", "timestamp": "2025-06-10T08:01:00Z"}),
        json.dumps(event | {"event_id": "3", "quantity": 500, "timestamp": "2025-06-10T09:00:00Z"}),
    ]
    (logs / "a.jsonl").write_text("\n".join(lines) + "\n")
    clawbill("demo", "--source", logs, "--state", folder / "state", cwd=folder)
    return folder / "state"


def run(state: Path, *arguments: str) -> str:
    return clawbill(*arguments, "--state", state, cwd=state.parent).stdout


def lines_of_invoices(state: Path) -> list[str]:
    with embedded.serving(state / "postgres") as server:
        ledger = Ledger(server.url())
        with ledger.transaction() as connection:
            found = connection.exec_driver_sql("SELECT line_id FROM invoice_lines").scalars().all()
        ledger.dispose()
    return list(found)


def test_the_outbox_is_delivered(state: Path) -> None:
    listed = run(state, "outbox", "list")
    assert "delivered" in listed
    assert "planned" not in listed
    identifiers = [word for word in run(state, "outbox", "list", "--tenant", "t-1").split() if word.startswith("2025")]
    shown = json.loads(run(state, "outbox", "show", identifiers[-1]))
    assert shown["tenant_id"] == "t-1"
    assert [entry["kind"] for entry in shown["trail"]] == ["usage_record.created"]


def test_an_invoice_line_is_explained_down_to_its_events(state: Path) -> None:
    (line,) = lines_of_invoices(state)
    said = run(state, "explain", line)
    assert "2 usage events" in said
    assert "FAIL" not in said
    document = json.loads(run(state, "explain", line, "--json"))
    assert [event["event_id"] for event in document["events"]] == ["1", "3"]
    assert {(event["uri"], event["line"]) for event in document["events"]} == {("a.jsonl", 1), ("a.jsonl", 3)}
    with pytest.raises(AssertionError, match="il_unknown"):
        run(state, "explain", "il_unknown")


def test_quarantine_shows_the_line_and_what_is_wrong_with_it(state: Path) -> None:
    listed = run(state, "quarantine", "list")
    assert "a.jsonl" in listed
    assert "t-1" in listed
    shown = run(state, "quarantine", "show", "1")
    assert "quantity" in shown
    assert '"many"' in shown
    with pytest.raises(AssertionError, match="still in quarantine"):
        run(state, "quarantine", "replay", "1")


def test_nothing_waits_for_an_amount(state: Path) -> None:
    assert run(state, "retry", "list").splitlines()[2:] == []
    assert "0 rows" in run(state, "retry", "drop", "--kind", "refused", "--why", "a test")


def test_the_next_period_is_open(state: Path) -> None:
    assert "t-1     2025-07-01T00:00Z" in run(state, "close", "status")
    # A decision is carried out at Stripe, so it needs Stripe's key.
    with pytest.raises(AssertionError, match="set STRIPE_SECRET_KEY"):
        run(state, "close", "hold", "in_unknown", "--why", "a test")


def test_commands_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds no database"):
        clawbill("outbox", "list", "--state", tmp_path, cwd=tmp_path)
