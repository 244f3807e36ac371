"""README and docs do what they say: their commands are run, their numbers compared, their names looked up."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from clawbill_pipeline.cli import cli
from clawbill_pipeline.definitions import defs
from clawbill_pipeline.invoicing.events import WATCHED, WATCHED_THIN
from clawbill_pipeline_tests.scenarios.command import environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^(?:<!-- test: (\w+) -->\n)?```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``mark`` is ``run`` or ``options``: what the comment above it asks for."""

    mark: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    found = _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [Block(mark or "run", language, text) for mark, language, text in found]


def shell(script: str, cwd: Path, env: Mapping[str, str]) -> str:
    """What ``script`` prints on standard output. Fails the test, with all it printed, where it does not exit with 0."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is, to the commands, a project in which the README's first command was run."""
    folder = tmp_path_factory.mktemp("read me")
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    shell(". .venv/bin/activate; clawbill demo", folder, environment())
    return folder


def test_the_first_two_commands_are_scripts_of_the_project():
    first, second = [block.text.strip() for block in blocks("README.md") if block.language == "bash"][:2]
    assert (first, second) == ("scripts/demo", "scripts/test")
    assert all(os.access(ROOT / script, os.X_OK) for script in (first, second))


def test_every_other_command_does_what_is_printed_under_it(project: Path):
    printed = ""
    later = [block for block in blocks("README.md") if block.language in ("bash", "text")][2:]
    assert [block.language for block in later].count("text") >= 1
    for block in later:
        if block.language == "text":
            assert printed == block.text
        elif block.mark == "run":
            printed = shell(f". .venv/bin/activate\n{block.text}", project, environment())


def test_a_backfill_as_the_docs_describe_it(project: Path):
    (block,) = [block for block in blocks("docs/dagster.md") if block.language == "bash"]
    state = shlex.quote(str(project / ".clawbill" / "demo"))
    activate = f". {shlex.quote(str(project / '.venv/bin/activate'))}"
    printed = shell(f"{activate}; clawbill env --state {state}", project, environment())
    env = dict(line.split("=", 1) for line in printed.splitlines())
    env = {name: "".join(shlex.split(value)) if value.startswith("'") else value for name, value in env.items()}
    try:
        # In a DAGSTER_HOME, so that nothing is written into the project.
        home = str(project / ".clawbill" / "demo" / "dagster")
        shell(f"{activate}\n{block.text}", ROOT, environment(DAGSTER_HOME=home, **env))
    finally:
        shell(f"{activate}; clawbill postgres stop --state {state}", project, environment())


def command_lines() -> Iterator[list[str]]:
    """Every ``clawbill`` command of a bash block in README and docs."""
    for page in PAGES:
        for block in blocks(str(page.relative_to(ROOT))):
            if block.language == "bash":
                yield from (shlex.split(line) for line in block.text.splitlines() if line.startswith("clawbill "))


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that ``words`` call, and its arguments. Raises KeyError for one that does not exist."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        name, *words = words
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise KeyError(name)
        command = found
    return command, words


@pytest.mark.parametrize("line", list(command_lines()), ids=" ".join)
def test_commands_and_their_options_exist(line: list[str]):
    command, arguments = resolved(line[1:])
    assert not isinstance(command, click.Group)
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= options


def told() -> Iterator[tuple[str, str]]:
    """Every ``clawbill`` command that pages, alert rules and the program itself tell somebody to run, with its file."""
    patterns = {
        ".md": (r"`clawbill ([^`|]+)", r"(?m)^clawbill (.+)$"),
        ".yaml": (r"`clawbill ([^`]+)`", r"action: clawbill ([^,\n]+)"),
        ".py": (r"`clawbill ([^`{]+)", r"\(clawbill ([^(){,]+)"),
    }
    for folder in (ROOT / "docs", ROOT / "deploy", ROOT / "clawbill_pipeline"):
        for file in [ROOT / "README.md", *folder.rglob("*")]:
            if "node_modules" not in file.parts and file.suffix in patterns:
                for pattern in patterns[file.suffix]:
                    for words in re.findall(pattern, file.read_text(encoding="utf-8")):
                        yield words.strip(), str(file.relative_to(ROOT))


def test_nobody_is_told_to_run_a_command_or_an_option_that_does_not_exist():
    commands = dict(told())
    assert {"archive store 2026-01", "outbox list", "webhooks failed"} <= set(commands)
    for words, file in commands.items():
        try:
            command, arguments = resolved(words.split())
        except KeyError:
            pytest.fail(f"{file}: clawbill {words}")
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= options, f"{file}: {words}"


def test_every_test_and_program_that_a_page_names_is_there():
    for page in (*PAGES, *(ROOT / "deploy").rglob("*.md")):
        if "node_modules" not in page.parts:
            text = page.read_text(encoding="utf-8")
            for path in re.findall(r"\bclawbill_pipeline_tests/[\w/]+\.py", text):
                assert (ROOT / path).is_file(), f"{page.name}: {path}"
            for module in re.findall(r"python -m (clawbill_pipeline[\w.]*)", text):
                path = ROOT.joinpath(*module.split("."))
                assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page.name}: {module}"


def test_the_readme_lists_every_command():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name.removeprefix("clawbill ") for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert all(resolved(name.split())[1] == [] for name in listed)
    assert {name.split()[0] for name in listed} == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_document_that_the_code_names_is_there():
    for file in (ROOT / "clawbill_pipeline").rglob("*"):
        if file.suffix in (".py", ".yaml"):
            for named in re.findall(r"\bdocs/[\w./-]+\.(?:md|svg)", file.read_text(encoding="utf-8")):
                assert (ROOT / named).exists(), f"{file.name} names {named}"


def test_the_page_on_dagster_names_all_there_is():
    page = (ROOT / "docs" / "dagster.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    in_tables = {name for line in page.splitlines() if line.startswith("|") for name in re.findall(r"`(\w+)`", line)}
    repository = defs.get_repository_def()
    there = {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()}
    there |= {check.name for asset in defs.resolve_asset_graph().assets_defs for check in asset.check_specs}
    there |= {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    there |= {each.name for each in (*repository.schedule_defs, *repository.sensor_defs)}
    assert there <= named
    assert in_tables - there <= {"metering_lag", "correcting"}


def test_the_page_on_stripe_lists_the_events_that_are_handled():
    page = (ROOT / "docs" / "stripe.md").read_text(encoding="utf-8")
    events = set(re.findall(r"`((?:v1\.)?(?:billing|customer|invoice|credit_note)\.[\w.]+)`", page))
    assert events == {*WATCHED, *WATCHED_THIN}
