"""A real file system of a few megabytes for tests to fill: in a mount namespace of its own, gone with its process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_PIECE = 64 * 1024


def namespace(*flags: str) -> list[str]:
    """The command that puts another one into a mount namespace; whoever is not root becomes root of a user's own."""
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), *flags]


@dataclass(frozen=True)
class Disk:
    """``folder`` is its root, for processes that ``command`` starts; ``seen`` is the same place as we see it."""

    folder: Path
    holder: int

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.holder}/root{self.folder}")

    def command(self, words: Sequence[str]) -> list[str]:
        """``words`` as a command that has the disk."""
        own = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.holder}", "--mount", *own, f"--wd={Path.cwd()}", "--", *words]

    def fill(self, leave: int = 0) -> None:
        """Takes all that is free but about ``leave`` bytes."""
        with (self.seen / "ballast").open("ab", buffering=0) as ballast:
            while (free := shutil.disk_usage(self.seen).free) > leave:
                ballast.write(bytes(min(free - leave, _PIECE * 16)))

    def clear(self) -> None:
        """Gives back what ``fill`` took."""
        (self.seen / "ballast").unlink(missing_ok=True)


def mount_own(folder: Path, size: str) -> Disk:
    """A disk at ``folder`` for this process and all that it starts; it must have been started through ``namespace``."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)], check=True)
    return Disk(folder, os.getpid())


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """A disk of ``size`` (``4m``) at ``folder``, which is made. Skips the test where the machine allows no mount."""
    folder.mkdir(parents=True, exist_ok=True)
    script = 'mount -t tmpfs -o "size=$1,mode=755" tmpfs "$2" && echo mounted && exec cat'
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("a small disk needs unshare and nsenter (Linux, util-linux)")
    with subprocess.Popen(
        [*namespace(), "sh", "-c", script, "sh", size, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no file system can be mounted here: {holder.stderr.read().strip()}")
        try:
            yield Disk(folder, holder.pid)
        finally:
            assert holder.stdin is not None
            holder.stdin.close()  # it ends with its input
