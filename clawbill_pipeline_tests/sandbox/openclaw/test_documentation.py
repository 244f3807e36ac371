"""docs/openclaw-server.md is true: its commands run, its answer is the server's, its tables are complete."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import click
import pytest
import yaml

from clawbill_pipeline import cli
from clawbill_pipeline.sandbox import openclaw
from clawbill_pipeline.sandbox.openclaw.openapi import DOCUMENT

TEXT = (Path(__file__).parents[3] / "docs" / "openclaw-server.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="the page's commands use curl")
def test_the_commands_run_and_the_answer_is_as_shown(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(sys.executable).parent
    script = "set -e\ntrap 'kill %1; wait' EXIT\n" + "echo\n".join(blocks("sh")).replace("8480", str(port))
    script = script.replace("curl --silent", "echo; curl --silent").replace("until echo; ", "until ")
    done = subprocess.run(
        ["bash", "-c", f'PATH={shlex.quote(str(here))}:"$PATH"\n{script}'],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    (shown,) = map(json.loads, blocks("json"))
    health, rating, put, got = answers
    assert rating == shown
    assert (health["status"], put["status"], got) == ("ok", "overdue", put)
    assert (tmp_path / "state" / "sandbox" / "openclaw" / "openclaw.sqlite").exists()


def test_every_call_and_every_problem_is_in_its_table() -> None:
    calls = {
        (method.upper(), path) for path, of in DOCUMENT["paths"].items() for method in of if method != "parameters"
    }
    described = set(re.findall(r"^\| `(GET|PUT|POST) ([^` ]+)` \|", TEXT, flags=re.MULTILINE))
    assert described == calls | {("GET", "/openapi.json")}
    source = "".join(file.read_text(encoding="utf-8") for file in Path(openclaw.__file__).parent.glob("*.py"))
    kinds = set(re.findall(r'Problem\(\s*\w+(?:\.\w+)?, "([a-z-]+)"', source)) - {"bad-time"}  # of a clock that was set
    assert set(re.findall(r"^\| `([a-z-]+)` \| \d", TEXT, flags=re.MULTILINE)) == kinds


def test_the_unit_and_the_compose_file_call_what_is_there() -> None:
    unit = RawConfigParser()
    unit.read_string(blocks("ini")[0])
    (compose,) = map(yaml.safe_load, [block for block in blocks("yaml") if "healthcheck" in block])
    serve = cli.openclaw_serve
    known = {name for option in serve.params if isinstance(option, click.Option) for name in option.opts}
    for command in (shlex.split(unit["Service"]["ExecStart"]), compose["services"]["openclaw"]["command"]):
        assert [Path(command[0]).name, *command[1:3]] == ["clawbill", "openclaw", "serve"]
        assert {word for word in command if word.startswith("--")} <= known
