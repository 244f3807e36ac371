"""Logs as JSON lines: what is in them, from the web app and from a real Dagster run, and what never is."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from clawbill_pipeline import processes
from clawbill_pipeline.logs import JsonLines, about, log_as_json, secrets_of
from clawbill_pipeline.settings import Settings, SettingsError

SECRETS = {
    "STRIPE_SECRET_KEY": "sk_test_0123456789",
    "STRIPE_WEBHOOK_SECRET": "first-signing-secret,second-signing-secret",
    "OPENCLAW_TOKEN": "plain-looking-word",
    "CLAWBILL_PORTAL_TOKEN": "portal-word",
    "CLAWBILL_METRICS_TOKEN": "metrics-word",
    "CLAWBILL_DATABASE_URL": "postgresql+psycopg://clawbill:database-word@127.0.0.1/clawbill",
    "CLAWBILL_ALERTS": "*=json://hooks.example.com/alerts-word; team:finance>=100 USD=slack://A/B/chat-word",
}
WORDS = (
    "sk_test_0123456789", "first-signing-secret", "second-signing-secret", "plain-looking-word", "portal-word",
    "metrics-word", "database-word", "alerts-word", "chat-word",
)  # fmt: skip


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of ours, as it was before afterwards."""
    ours = logging.getLogger("clawbill_pipeline")
    before = ours.handlers, ours.propagate, ours.level
    yield logging.getLogger("clawbill_pipeline.some.module")
    ours.handlers, ours.propagate = before[:2]
    ours.setLevel(before[2])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_says_where_when_and_what_it_is_about(logger: logging.Logger) -> None:
    stream = StringIO()
    settings = Settings.from_env({"CLAWBILL_LOG_FORMAT": "json"})
    assert log_as_json(settings, "clawbill_pipeline", stream=stream)
    with about(run="r1", hour="2026-11-22-10:00", day=None):
        logger.info("not rated", extra={"fields": {"tenant": "acme", "attempts": 3, "hour": "another"}})
        logger.debug("nothing")
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("it failed: %s", "so\nand so")
    first, second = lines(stream.getvalue())
    assert {name: value for name, value in first.items() if name != "at"} == {
        "level": "info", "logger": "clawbill_pipeline.some.module", "event": "not rated", "run": "r1",
        "hour": "another", "tenant": "acme", "attempts": 3,
    }  # fmt: skip
    assert first["at"].endswith("+00:00")
    assert second["event"] == "it failed: so\nand so"
    assert "ValueError: the reason" in second["exception"]
    assert "run" not in second


def test_without_the_setting_logging_is_left_alone(logger: logging.Logger) -> None:
    before = logging.getLogger("clawbill_pipeline").handlers
    assert not log_as_json(Settings.from_env({}), "clawbill_pipeline")
    assert logging.getLogger("clawbill_pipeline").handlers is before
    with pytest.raises(SettingsError, match="CLAWBILL_LOG_FORMAT"):
        Settings.from_env({"CLAWBILL_LOG_FORMAT": "xml"})


@pytest.mark.parametrize("word", WORDS)
def test_no_secret_of_the_settings_is_ever_written(word: str, logger: logging.Logger) -> None:
    settings = Settings.from_env(SECRETS | {"CLAWBILL_LOG_FORMAT": "json"})
    assert len(secrets_of(settings)) >= len(WORDS) - 1
    stream = StringIO()
    log_as_json(settings, "clawbill_pipeline", stream=stream)
    try:
        raise OSError(f"refused {word}")
    except OSError:
        logger.exception("said %s", f"<{word}>", extra={"fields": {"error": [word], "tenant": word}})
    (line,) = lines(stream.getvalue())
    assert word not in stream.getvalue()
    assert (line["tenant"], line["error"]) == ("***", "['***']")


def test_what_looks_like_a_secret_is_not_written_either() -> None:
    said = "key sk_live_abcdef0123 at https://user:pass@host/ as Bearer abc.def and clawbill_acme_" + "x" * 43
    record = logging.LogRecord("n", logging.INFO, "f", 1, said, None, None)
    event = json.loads(JsonLines().format(record))["event"]
    assert all(secret not in event for secret in ("sk_live", "user:pass", "abc.def", "x" * 43))


def test_the_web_app_writes_json_from_its_first_line_to_its_last(ledger_url: str, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "CLAWBILL_STATE": str(tmp_path), "CLAWBILL_DATABASE_URL": ledger_url}
    child, port = processes.start_serving(
        "web",
        [sys.executable, "-m", "clawbill_pipeline.web"],
        env=env | {"CLAWBILL_LOG_FORMAT": "json"},
        log=tmp_path / "web.log",
        port_file=tmp_path / "web.port",
    )
    try:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/usage", headers={"Authorization": "Bearer x-y-z"}, trust_env=False
        )
        assert answer.status_code == 401
    finally:
        child.stop()
    said = lines((tmp_path / "web.log").read_text())
    assert ("usage refused", 401, "no_token") in [(s["event"], s.get("status"), s.get("reason")) for s in said]
    assert "x-y-z" not in str(said)


def test_what_a_run_says_has_its_run_hour_and_tenant(ledger_url: str, tmp_path: Path) -> None:
    """In a process of its own, as Dagster's run workers are: a real run over an hour that nobody can rate."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "CLAWBILL_STATE": str(tmp_path),
            "CLAWBILL_DATABASE_URL": ledger_url,
            "CLAWBILL_LOG_FORMAT": "json",
            "OPENCLAW_URL": "http://127.0.0.1:9",
            "OPENCLAW_TOKEN": "run-secret-word",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip().splitlines()[-1]
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"at"')]
    (line,) = [line for line in said if line["event"] == "not rated"]
    assert line["run"] == run_id
    assert line["hour"] == "2026-11-22T10:00:00+00:00"
    assert (line["tenant"], line["kind"]) == ("nobody", "unmapped")
    assert "run-secret-word" not in done.stderr


_RUN = """
from datetime import UTC, datetime

import dagster as dg
from sqlalchemy import text
from clawbill_pipeline.definitions import defs
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings

hour = datetime(2026, 11, 22, 10, tzinfo=UTC)
ledger = Ledger(Settings.from_env().need_database())
ledger.ensure_partitions([hour])
with ledger.transaction() as connection:
    connection.execute(text(
        "INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity, events, "
        "reason, metered_at, run_id) VALUES (:hour, 'nobody', 'api.requests', '', :hour, 1, 5, 1, 'first', now(), 'r')"
    ), {"hour": hour})
job = defs.resolve_job_def("late_billing")
done = job.execute_in_process(
    partition_key="2026-11-22-10:00",
    asset_selection=[dg.AssetKey("rated_usage")],
    instance=dg.DagsterInstance.ephemeral(),
)
print(done.run_id)
"""
