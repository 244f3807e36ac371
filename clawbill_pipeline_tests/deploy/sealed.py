"""What a container is to a process, without a container engine: a root file system that is read-only, and a user 10001
without any capability. The files are this machine's.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from clawbill_pipeline_tests.deploy.small_disk import namespace

#: The user of deploy/compose/Dockerfile.
USER = 10001
# Folders to write to, then a dash, then file systems to seal, then a dash, then the command.
_SEAL = f"""
set -e
while [ "$1" != - ]; do mount --bind "$1" "$1"; shift; done; shift
while [ "$1" != - ]; do mount -o remount,bind,ro "$1"; shift; done; shift
exec unshare --user --map-user={USER} -- "$@"
"""


def sealed(*writable: Path) -> list[str]:
    """The command that seals another one, which can write below these folders alone; none where Linux does not let us.

    The process keeps its id.
    """
    return _command(writable) if is_possible() else []


@cache
def is_possible() -> bool:
    """Whether this machine allows it: namespaces, and mounts in them."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        script = f"touch {folder}/writable/yes && ! touch {folder}/no && ! touch /no && test $(id -u) = {USER}"
        (Path(folder) / "writable").mkdir()
        command = [*_command([Path(folder) / "writable"]), "sh", "-c", script]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _command(writable: Sequence[Path]) -> list[str]:
    # Where these folders lie may be a file system of its own.
    systems = {"/"} | {str(next(each for each in (at, *at.parents) if each.is_mount())) for at in writable}
    return [*namespace(), "sh", "-c", _SEAL, "sh", *map(str, writable), "-", *sorted(systems), "-"]
