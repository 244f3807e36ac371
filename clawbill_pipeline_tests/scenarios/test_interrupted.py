"""A demonstration that is interrupted, or killed, in the middle: nothing is left running, and it goes on from there."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from decimal import Decimal
from pathlib import Path

from clawbill_pipeline.ledger import embedded
from clawbill_pipeline_tests.scenarios.command import CLAWBILL, clawbill, environment, processes_of, waterfall_of


def logs_of_a_day(folder: Path) -> Decimal:
    """A day of usage; returns the quantity used."""
    folder.mkdir()
    event = {"tenant_id": "t-1", "service": "calls", "quantity": "100.25"}
    lines = [
        json.dumps(event | {"event_id": str(hour), "timestamp": f"2025-06-10T{hour:02d}:30:00Z"}) for hour in range(24)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return Decimal("100.25") * 24


def play_until(word: str, arguments: list[str], cwd: Path, number: signal.Signals) -> int:
    """Starts a demonstration, sends it a signal once it has said ``word``, and returns its exit code."""
    process = subprocess.Popen(
        [*CLAWBILL, *arguments], cwd=cwd, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            if word in line.decode():
                process.send_signal(number)
                break
        process.stderr.read()
    return process.wait(60)


def gone(state: Path, patience: float = 20) -> list[str]:
    deadline = time.monotonic() + patience
    while (left := processes_of(state)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def test_sigterm_leaves_nothing_running_and_the_rest_is_done_next_time(tmp_path: Path) -> None:
    used = logs_of_a_day(tmp_path / "logs")
    state = tmp_path / "state"
    arguments = ["demo", "--source", str(tmp_path / "logs"), "--state", str(state), "--json"]
    assert play_until("closing", arguments, tmp_path, signal.SIGTERM) != 0
    assert gone(state) == []
    rows = waterfall_of(clawbill(*arguments, cwd=tmp_path).stdout)
    assert rows["t-1", "calls"]["metered_quantity"] == used
    assert rows["t-1", "calls"]["breaks"] == 0
    assert rows["t-1", "calls"]["paid_amount"] == Decimal("2.41")


def test_a_killed_demonstration_takes_its_servers_along_and_the_next_one_finishes_it(tmp_path: Path) -> None:
    used = logs_of_a_day(tmp_path / "logs")
    state = tmp_path / "state"
    arguments = ["demo", "--source", str(tmp_path / "logs"), "--state", str(state), "--json"]
    assert play_until("landing", arguments, tmp_path, signal.SIGKILL) == -signal.SIGKILL
    try:
        # PostgreSQL outlives a kill -9 on purpose, so that no transaction is lost; the next start adopts it.
        assert [line for line in gone(state, 10) if "postgres" not in line] == []
        rows = waterfall_of(clawbill(*arguments, cwd=tmp_path).stdout)
    finally:
        embedded.stop(state / "postgres")
    assert rows["t-1", "calls"]["metered_quantity"] == used
    assert rows["t-1", "calls"]["breaks"] == 0
