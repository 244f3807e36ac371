"""With all keys set, `clawbill up` starts no stand-in: it works with the services that the keys and addresses name.

What plays the real services here are the two stand-ins, started by their own commands with keys of our choosing.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from clawbill_pipeline_tests.scenarios.command import CLAWBILL, environment, processes_of
from clawbill_pipeline_tests.scenarios.test_up import eventually, free_port

KEY = "sk_test_given"


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def meters(env: dict[str, str]) -> list[object]:
    """What the account has."""
    address = f"{env['CLAWBILL_STRIPE_API_BASE']}/v1/billing/meters"
    found: list[object] = httpx.get(address, headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder, and the environment that a user of real services would set."""
    folder = tmp_path_factory.mktemp("given")
    stripe, openclaw = free_port(), free_port()
    env = environment(OPENCLAW_TOKEN="a-token")
    commands = [
        ["sandbox", "stripe", "--port", str(stripe), "--state", str(folder / "stripe-service")],
        ["openclaw", "serve", "--port", str(openclaw), "--state", str(folder / "openclaw-service")],
    ]
    with (folder / "services.log").open("wb") as log:
        services = [
            subprocess.Popen([*CLAWBILL, *command], env=env, cwd=folder, stdout=log, stderr=log) for command in commands
        ]
    try:
        eventually("the Stripe service", lambda: answers(f"http://127.0.0.1:{stripe}/_sandbox/health"))
        eventually("the OpenClaw service", lambda: answers(f"http://127.0.0.1:{openclaw}/healthz"))
        yield (
            folder,
            env
            | {
                "STRIPE_SECRET_KEY": KEY,
                "STRIPE_WEBHOOK_SECRET": "whsec_given",
                "OPENCLAW_URL": f"http://127.0.0.1:{openclaw}",
                "CLAWBILL_STRIPE_API_BASE": f"http://127.0.0.1:{stripe}",
            },
        )
    finally:
        for service in services:
            service.terminate()
        for service in services:
            service.wait(30)


def test_up_uses_the_given_services_and_provisioning_is_a_persons_command(given: tuple[Path, dict[str, str]]) -> None:
    folder, env = given
    state = folder / "state"
    web = f"http://127.0.0.1:{free_port()}"
    ports = ["--web-port", web.rpartition(":")[2], "--dagster-port", str(free_port())]
    log = folder / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [*CLAWBILL, "up", "--state", str(state), *ports], env=env, cwd=folder, stdout=out, stderr=out
        )
    try:
        eventually("health", lambda: up.poll() is not None or answers(f"{web}/healthz"))
        said = log.read_text()
        assert up.poll() is None, said
        assert "stand-in" not in said
        assert not (state / "sandbox").exists()
        assert meters(env) == []

        def run(*arguments: str) -> str:
            command = [*CLAWBILL, *arguments, "--state", str(state)]
            done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
            return done.stdout

        assert "made" in run("provision", "--dry-run")
        assert meters(env) == []
        assert "made" in run("provision")
        again = run("provision")
        assert "made" not in again
        assert "kept" in again
        assert "FAIL" not in run("doctor")
        # A token or key in what the commands print would end up in somebody's log.
        assert KEY not in log.read_text() + again
        assert "a-token" not in log.read_text() + again
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0
    assert processes_of(state) == []
