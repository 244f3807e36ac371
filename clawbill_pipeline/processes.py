"""Child processes that never outlive us: start, wait until ready, stop in order. What they run is up to the caller."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PATIENCE = 60.0
_GRACE = 15.0


class ProcessError(RuntimeError):
    """A child process did not come up, or ended by itself; the message names its log."""


@dataclass
class Child:
    """A process of ours, in a process group of its own, so that a Ctrl-C reaches us first and we end it in order."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises ProcessError if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise ProcessError(f"{self.name} ended by itself (exit {code}). {self._why()}")

    def wait_until(self, ready: Callable[[], bool], patience: float = _PATIENCE) -> None:
        """Waits until ``ready`` says so. Raises ProcessError when the process ends, or takes too long."""
        deadline = time.monotonic() + patience
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not ready within {patience:.0f} s. {self._why()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the process and all it started: asked first, killed when it won't."""
        for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
            if self.process.poll() is not None and not _group_lives(self.process.pid, patience=2.0):
                return

    def _why(self) -> str:
        with contextlib.suppress(OSError):
            tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
            return "\n  ".join([f"Its log, {self.log}, ends with:", *tail])
        return f"Its log is {self.log}"


def start(name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path | None = None) -> Child:
    """Starts ``command`` with exactly ``env``, its output in ``log``. On Linux it ends when we are killed, too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
    return Child(name, process, log)


def start_serving(
    name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, port_file: Path
) -> tuple[Child, int]:
    """Starts a server that writes its port to ``port_file`` once it accepts connections; returns it with the port."""
    port_file.parent.mkdir(parents=True, exist_ok=True)
    port_file.unlink(missing_ok=True)
    child = start(name, [*command, "--port-file", str(port_file)], env=env, log=log)
    try:
        child.wait_until(port_file.exists)
        return child, int(port_file.read_text(encoding="ascii"))
    except BaseException:
        child.stop()
        raise


def end_with_parent() -> None:
    """On Linux, ends this process when the one that started it is gone, however that ended."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _group_lives(group: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.02)
    return True
