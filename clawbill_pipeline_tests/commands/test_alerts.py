"""`clawbill alerts`: a test message arrives, a failure has its exit code, and no address is printed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from clawbill_pipeline.cli import cli
from clawbill_pipeline.settings import SettingsError
from clawbill_pipeline_tests.alerts.receivers import hook, mailbox


def _run(monkeypatch: pytest.MonkeyPatch, routes: str, *arguments: str) -> tuple[int, str]:
    monkeypatch.setenv("CLAWBILL_ALERTS", routes)
    result = CliRunner().invoke(cli, ["alerts", *arguments])
    assert "S3CRET" not in result.output
    return result.exit_code, result.output


def test_a_test_message_to_everybody_and_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with mailbox() as mail, hook() as posted:
        routes = f"team:finance>=5={mail.url('cfo@example.com')};*={posted.url('S3CRET')}"
        code, output = _run(monkeypatch, routes, "test")
        assert (code, output) == (0, "team:finance>=5: sent\n*: sent\n")
        assert [subject for subject, _ in mail.texts()] == ["clawbill: test"]
        assert [message["title"] for message in posted.received] == ["clawbill: test"]
        assert _run(monkeypatch, routes, "test", "--route", "*")[0] == 0
        assert (len(mail.received), len(posted.received)) == (1, 2)
        posted.status = 500
        code, output = _run(monkeypatch, routes, "test")
        assert (code, output) == (1, "team:finance>=5: sent\n*: the message was not taken\n")
        code, output = _run(monkeypatch, routes, "list")
        assert "team:finance>=5" in output
        assert _run(monkeypatch, routes, "test", "--route", "nobody")[0] == 2


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAWBILL_ALERTS", raising=False)
    assert isinstance(CliRunner().invoke(cli, ["alerts", "test"]).exception, SettingsError)
