"""The flow in deploy/node-red, run by the real node-red package from npm against the real web app.

``pytest -m node clawbill_pipeline_tests/deploy/test_node_red.py``; skipped where Node or npm's registry is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.web.serving import served
from clawbill_pipeline_tests.web.test_ingest import Posting, read_lake
from clawbill_pipeline_tests.web.test_metrics import settings_of

FLOW = Path(__file__).parents[2] / "deploy" / "node-red"
NODES = json.loads((FLOW / "flows.json").read_text(encoding="utf-8"))


def test_the_flow_is_whole_and_holds_no_secret() -> None:
    ids = {node["id"] for node in NODES}
    assert len(ids) == len(NODES)
    assert {target for node in NODES for wire in node.get("wires", []) for target in wire} <= ids
    assert not re.search(r"clawbill_[a-z0-9-]+_[\w-]{20,}", json.dumps(NODES))
    core = {"tab", "inject", "http in", "http response", "http request", "function", "debug", "file"}
    assert {node["type"] for node in NODES} == core


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the node-red package that deploy/node-red names."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node is not installed")
    folder = tmp_path_factory.mktemp("npm")
    shutil.copy(FLOW / "package.json", folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode:
        pytest.skip(f"npm can't install node-red here: {done.stderr.strip().splitlines()[-1]}")
    return folder / "node_modules" / "node-red" / "red.js"


@dataclass
class NodeRed:
    """A running Node-RED with the flow, over a user folder that outlives it."""

    address: str
    process: subprocess.Popen[bytes]

    def inject(self, node: str) -> None:
        """Clicks the button of an inject node."""
        httpx.post(f"{self.address}/inject/{node}", trust_env=False).raise_for_status()

    def post(self, usage: Any) -> None:
        answer = httpx.post(f"{self.address}/usage-in", json=usage, trust_env=False)
        assert answer.status_code == 202, answer.text


@contextmanager
def node_red(red: Path, user: Path, clawbill: str, token: str) -> Iterator[NodeRed]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    env = {"PATH": os.environ["PATH"], "HOME": str(user), "PORT": str(port)}
    env |= {"CLAWBILL_URL": clawbill, "CLAWBILL_TOKEN": token}
    command = ["node", str(red), "--userDir", str(user), "--settings", str(user / "settings.js"), "flows.json"]
    with (user / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=user, env=env, stdout=log, stderr=log)
    running = NodeRed(f"http://127.0.0.1:{port}", process)
    try:
        wait_until(lambda: is_up(running), process, user)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def is_up(running: NodeRed) -> bool:
    try:
        # Its own route is there once the flow was started.
        return httpx.get(f"{running.address}/flows", trust_env=False).is_success and (
            httpx.post(f"{running.address}/usage-in", json=[], trust_env=False).status_code == 202
        )
    except httpx.HTTPError:
        return False


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, user: Path = FLOW) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process is None or process.poll() is None, (user / "log").read_text()
        assert time.monotonic() < deadline, "it did not happen in two minutes"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.node
@pytest.mark.timeout(600)
def test_usage_is_posted_once_through_outages_and_restarts(
    installed: Path, postgres_server: AnyServer, ledger_template: str, tmp_path: Path
) -> None:
    user = tmp_path / "node-red"
    user.mkdir()
    for name in ("flows.json", "settings.js"):
        shutil.copy(FLOW / name, user)
    with fresh_database(postgres_server, template=ledger_template) as name:
        url = postgres_server.url(name)
        settings = settings_of(url, tmp_path)
        ledger = Ledger(url)
        posting = Posting(httpx.Client(), ledger, settings)
        token = posting.add_token("node-red", services=["api.calls", "tokens"])
        usage = {"tenant": "acme", "service": "api.calls", "time": "2026-11-22T10:00:00Z"}

        # clawbill is away: what comes is kept, over a kill as well.
        with node_red(installed, user, "http://127.0.0.1:9", token) as running:
            running.post([{**usage, "id": f"e{n}", "quantity": n} for n in range(1, 4)])
            kept = user / "context" / "clawbill_tab" / "flow.json"
            wait_until(lambda: kept.exists() and '"sending"' in kept.read_text() and "e3" in kept.read_text())
            running.process.kill()

        with served(create_app(settings, Ledger(url), live=False)) as address:
            with node_red(installed, user, address, token) as running:
                wait_until(lambda: posting.stored == 1)
                exact = "12345678901234567.123456789012"
                running.post({**usage, "id": "e4", "service": "tokens", "quantity": exact, "model": "large"})
                running.post([{**usage, "id": "bad", "quantity": "many"}, {**usage, "id": "e1", "quantity": 1}])
                wait_until(lambda: events_stored(posting) == 6)
                running.inject("clawbill_example")  # of a service that the token is not good for
                running.post(
                    [{**usage, "service": "other", "id": "e5", "quantity": 1}, {**usage, "id": "e6", "quantity": 6}]
                )
                wait_until(lambda: events_stored(posting) == 7)
                refused = user / "usage-refused.jsonl"
                wait_until(lambda: refused.exists() and refused.read_text().count('"api.requests"') == 1)
                wait_until(lambda: '"e5"' in refused.read_text())
            problems = [json.loads(line) for line in refused.read_text().splitlines()]
            said = {(problem["status"], problem["problem"]["type"]) for problem in problems}
            assert said == {(403, "urn:clawbill:problem:not_covered")}
            set_aside = [event["type"] for problem in problems for event in problem["events"]]
            assert sorted(set_aside) == ["api.requests", "other"]

        landed = posting.land()
        assert (landed.event_lines, landed.quarantined) == (6, 1)
        events = {e["event_id"]: (e["quantity"], e["dimensions"]) for e in read_lake(posting)}
        assert events == {
            "/node-red e1": (1, ""), "/node-red e2": (2, ""), "/node-red e3": (3, ""),
            "/node-red e4": (Decimal(exact), "large"), "/node-red e6": (6, ""),
        }  # fmt: skip
        assert token not in (user / "log").read_text()
        ledger.dispose()


def events_stored(posting: Posting) -> int:
    (row,) = posting.rows("SELECT coalesce(sum(events), 0) AS events FROM ingest_requests")
    return int(row.events)
