"""docs/sandbox-stripe.md is true: its commands run, its settings and their defaults are the sandbox's."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clawbill_pipeline.sandbox.stripe.control import SettingsRequest

PAGE = Path(__file__).parents[3] / "docs" / "sandbox-stripe.md"


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="the page's commands use curl")
def test_the_commands_run(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 8
    commands = "".join(blocks).replace("12111", str(port)).replace("python -m", f'"{sys.executable}" -m')
    script = f"set -e\ntrap 'kill %1; wait' EXIT\n{commands}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"name":"Globex"' in done.stdout
    assert '{"now":1772326800,"happened":0}' in done.stdout
    assert (tmp_path / "sandbox-state").is_dir()


def test_every_setting_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(SettingsRequest.model_fields)
