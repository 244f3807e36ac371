"""``python -m clawbill_pipeline.web`` as a process: its port file, its answers, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from clawbill_pipeline.settings import Settings, SettingsError
from clawbill_pipeline.web.__main__ import takes_live_events
from clawbill_pipeline_tests.web.conftest import SECRET, signed, snapshot

CATALOG = """\
version: 1
live: {live}
start: 2026-10-01T00:00:00Z
services:
  requests: {{unit: request}}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-10-01T00:00:00Z
        prices: {{requests: {{model: per_unit, unit_amount: "0.01"}}}}
"""


@contextmanager
def process(env: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "clawbill_pipeline.web", *arguments]
    with subprocess.Popen(
        command, env={"PATH": os.environ["PATH"], **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def test_serves_on_a_free_port_until_it_is_told_to_stop(ledger_url: str, tmp_path: Path) -> None:
    env = {"CLAWBILL_DATABASE_URL": ledger_url, "STRIPE_WEBHOOK_SECRET": SECRET, "CLAWBILL_STATE": str(tmp_path)}
    port_file = tmp_path / "web port"
    with process(env, "--port", "0", "--port-file", str(port_file)) as child:
        while not port_file.exists():
            assert child.poll() is None, child.communicate()[0]
            time.sleep(0.02)
        address = f"http://127.0.0.1:{int(port_file.read_text())}"
        with httpx.Client(base_url=address, trust_env=False) as http:  # kept alive: it must not hold up the end
            body = snapshot()
            assert http.post("/stripe/webhook", content=body, headers=signed(body)).status_code == 200
            assert http.get("/healthz").status_code == 200
            assert "server" not in http.get("/healthz").headers
            child.send_signal(signal.SIGTERM)
            output, _ = child.communicate(timeout=20)
    assert output == ""
    assert child.returncode in (0, -signal.SIGTERM)


def test_says_what_is_missing(tmp_path: Path) -> None:
    with process({"CLAWBILL_STATE": str(tmp_path)}) as child:
        output, _ = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "CLAWBILL_DATABASE_URL" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("live", "key", "takes_live"),
    [("true", None, True), ("false", None, False), ("true", "sk_live_x", True), ("true", "sk_test_x", False)],
)
def test_live_events_are_taken_where_catalogue_and_key_agree(
    tmp_path: Path, live: str, key: str | None, takes_live: bool
) -> None:
    settings = settings_with(tmp_path, live, key)
    assert takes_live_events(settings) is takes_live


def test_a_live_key_needs_a_live_catalogue(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="live: true"):
        takes_live_events(settings_with(tmp_path, "false", "sk_live_x"))


def settings_with(folder: Path, live: str, key: str | None) -> Settings:
    catalog = folder / "catalog.yaml"
    catalog.write_text(CATALOG.format(live=live))
    return Settings(catalog=catalog, stripe_key=SecretStr(key) if key else None)
