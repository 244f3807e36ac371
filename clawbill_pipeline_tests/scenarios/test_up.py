"""``clawbill up``: everything at once, one real run launched in the UI's way, and a clean end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from clawbill_pipeline_tests.scenarios.command import CLAWBILL, clawbill, environment, processes_of, waterfall_of


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: str, happened: Callable[[], Any], patience: float = 120) -> Any:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not happen within {patience} s")


class Running:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.web = f"http://127.0.0.1:{free_port()}"
        self.dagster = f"http://127.0.0.1:{free_port()}"
        self.log = state.with_suffix(".log")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*CLAWBILL, "up", "--state", str(state), "--web-port", self.web.rpartition(":")[2],
                 "--dagster-port", self.dagster.rpartition(":")[2]],
                env=environment(), cwd=state.parent, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.web}/healthz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, query: str, **variables: object) -> Any:
        answer = httpx.post(f"{self.dagster}/graphql", json={"query": query, "variables": variables}, timeout=30).json()
        assert "errors" not in answer, answer
        return answer["data"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    up = Running(tmp_path_factory.mktemp("up") / "state")
    try:
        eventually("health", up.healthy)
        yield up
    finally:
        up.process.kill() if up.process.poll() is None else None
        up.process.wait(30)


_LAUNCH = """mutation($selector: JobOrPipelineSelector!, $tags: [ExecutionTag!]) {
  launchRun(executionParams: {selector: $selector, executionMetadata: {tags: $tags}}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def test_a_run_launched_in_dagster_bills_an_hour(running: Running) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    event = {"event_id": "1", "tenant_id": "acme", "service": "api.requests", "quantity": 5000}
    (running.state / "usage" / "now.jsonl").write_text(
        json.dumps(event | {"timestamp": (hour + timedelta(minutes=5)).isoformat()}) + "\n"
    )
    selector = {
        "repositoryLocationName": "clawbill",
        "repositoryName": "__repository__",
        "jobName": "hourly_billing",
    }
    tags = [{"key": "dagster/partition", "value": f"{hour:%Y-%m-%d-%H:%M}"}]
    launched = running.ask(_LAUNCH, selector=selector, tags=tags)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = launched["run"]["runId"]

    def ended() -> str | None:
        status: str = running.ask(_STATUS, id=run)["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    assert eventually("the run", ended, 180) == "SUCCESS"
    rows = waterfall_of(clawbill("waterfall", "--state", running.state, "--json", cwd=running.state.parent).stdout)
    assert rows["acme", "api.requests"]["rated_amount"] == rows["acme", "api.requests"]["sent"] == 2


def test_schedules_and_sensors_are_running(running: Running) -> None:
    found = running.ask(
        '{ repositoryOrError(repositorySelector: {repositoryLocationName: "clawbill", '
        'repositoryName: "__repository__"}) { ... on Repository { schedules { name scheduleState { status } } '
        "sensors { name sensorState { status } } } } }"
    )["repositoryOrError"]
    states = {entry["name"]: entry["scheduleState"]["status"] for entry in found["schedules"]}
    states |= {entry["name"]: entry["sensorState"]["status"] for entry in found["sensors"]}
    assert states == dict.fromkeys(states, "RUNNING")
    assert states.keys() >= {"hourly", "daily", "open_matters", "sweep", "late_usage", "stripe_inbox", "alerts"}


def test_forged_webhooks_are_refused(running: Running) -> None:
    headers = {"Stripe-Signature": "t=1,v1=00", "Content-Type": "application/json"}
    answer = httpx.post(f"{running.web}/stripe/webhook", content=b"{}", headers=headers, timeout=10)
    assert answer.status_code == 400


def test_doctor_finds_nothing_wrong_but_the_keys(running: Running) -> None:
    done = subprocess.run(
        [*CLAWBILL, "doctor", "--state", str(running.state), "--json"],
        env=environment(), cwd=running.state.parent, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["database"]["good"]
    assert findings["migrations"]["good"]
    assert findings["catalogue"]["good"]
    assert not findings["Stripe"]["good"]
    assert done.returncode == 1


def test_sigterm_ends_everything(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()
    assert processes_of(running.state) == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"STRIPE_SECRET_KEY": "sk_live_1", "STRIPE_WEBHOOK_SECRET": "whsec_1"}, "live: true"),
        ({"STRIPE_SECRET_KEY": "sk_test_1"}, "set both STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET"),
        ({"OPENCLAW_URL": "http://127.0.0.1:1"}, "set both OPENCLAW_URL and OPENCLAW_TOKEN"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path: Path, env: dict[str, str], message: str) -> None:
    done = subprocess.run(
        [*CLAWBILL, "up", "--state", str(tmp_path / "state")],
        env=environment(**env), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "sk_live_1" not in done.stderr + done.stdout
