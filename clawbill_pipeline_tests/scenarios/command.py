"""Runs the ``clawbill`` command as a user would: a process of its own, nothing of our environment but the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

CLAWBILL = [sys.executable, "-m", "clawbill_pipeline.cli"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def environment(**more: str) -> dict[str, str]:
    """Ours without what configures clawbill or Dagster, so that a developer's settings change no test."""
    foreign = ("CLAWBILL_", "STRIPE_", "OPENCLAW_", "DAGSTER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more


def clawbill(*arguments: str | Path, cwd: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """The finished command; fails the test, with all that was printed, where it does not exit with 0."""
    done = subprocess.run(
        [*CLAWBILL, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def waterfall_of(output: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of ``--json`` output by tenant and service, decimals parsed."""
    rows = json.loads(output)
    return {(row["tenant_id"], row["service"]): _parsed(row) for row in rows}


_DECIMALS = ("metered_quantity", "rated_amount", "sent", "held_by_stripe", "invoiced_amount", "paid_amount")


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    for name in _DECIMALS:
        assert row[name] is None or isinstance(row[name], str), f"{name} is {row[name]!r}, not a decimal string"
    return row | {name: Decimal(row[name]) for name in _DECIMALS if row[name] is not None}


def processes_of(state: Path) -> list[str]:
    """Command lines of processes that have to do with a state folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                env = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(state) in line or f"CLAWBILL_STATE={state}\0" in env:
                found.append(f"{entry.name}: {line}")
    return found
