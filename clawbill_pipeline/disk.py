"""Full disks, told in words that help, and folders for what is put aside meanwhile. Not the house's files (storage).

A full disk is no fault of the input that was read when it filled: whoever meets it stops, keeps nothing half-written,
and does the same again next time.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: With less than this free, PostgreSQL has no room for the next file of its log, and nothing goes on.
_LITTLE = 16 * 1024 * 1024


class DiskFull(RuntimeError):
    """There is no room left to write to; the message names the folder and what to do.

    Not an OSError: those are what goes wrong with a single input, without which all others go on.
    """


def full(folder: Path, remedy: str) -> DiskFull:
    """The error for a folder whose disk is full just now."""
    found = shutil.disk_usage(folder)
    sizes = f"{found.free / 1e6:,.1f} MB of {found.total / 1e6:,.1f} MB are free"
    return DiskFull(
        f"no room left below {folder} ({sizes}): free some space there, or {remedy}. Nothing half-written counts; "
        "the next run does it again"
    )


@contextmanager
def told(folder: Path, remedy: str = "move that folder to a larger disk") -> Iterator[None]:
    """Raises DiskFull where the block, which writes below ``folder``, finds no room. Other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise full(folder, remedy) from error


def blamed(folder: Path, error: Exception) -> Exception:
    """``error``, or DiskFull in its place where the disk of ``folder``, in which all that failed is kept, has no room:
    with a full disk, it is chance who fails first and how."""
    if shutil.disk_usage(folder).free >= _LITTLE or isinstance(error, DiskFull):
        return error
    said = full(folder, "move that folder to a larger disk")
    return DiskFull(f"{said}. It showed as {type(error).__name__}: {str(error).partition(chr(10))[0]}")


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder of one's own for temporary files (in TMPDIR), gone afterwards. Raises DiskFull."""
    try:
        above = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # Python tries to write to each of them
        raise DiskFull(
            f"{error.strerror}: free some space there, or set TMPDIR to a folder that can be written to"
        ) from error
    with (
        told(above, "set TMPDIR to a folder on a larger disk"),
        tempfile.TemporaryDirectory(prefix=f"clawbill-{purpose}-") as name,
    ):
        yield Path(name)
