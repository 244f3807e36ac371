"""A folder of the house's own files, on disk or in an object store, used alike. Not what is in the files.

A file appears whole or not at all, and is durable once it is there.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

from clawbill_pipeline.disk import scratch, told
from clawbill_pipeline.object_store import ObjectFolder, is_address


class Folder(Protocol):
    """Files by names with ``/`` between their parts. Methods raise OSError where the disk or the store fails."""

    def address(self, name: str) -> str:
        """The file's path, or its address in the store."""
        ...

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def open(self, name: str) -> BufferedIOBase:
        """The file's bytes as they are now, whatever comes in its place. Raises FileNotFoundError."""
        ...

    def made(self, name: str) -> AbstractContextManager[Path]:
        """Where to write the file: it gets its name once the block ends. Nothing changes if the block fails, or leaves
        no file there. Raises DiskFull."""
        ...

    def prune(self, name: str, rest: timedelta) -> int:
        """Deletes what else is in the file's folder and was written longer ago than that; returns how many there were.

        Only for files that can be made again. Whoever reads one that was just replaced may finish.
        """
        ...


@dataclass(frozen=True)
class DiskFolder:
    """A folder on disk; it is made with its first file."""

    root: Path

    def address(self, name: str) -> str:
        return str(self.root / name)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def open(self, name: str) -> BufferedIOBase:
        return (self.root / name).open("rb")

    @contextmanager
    def made(self, name: str) -> Iterator[Path]:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place: only there is renaming one step. The name's end is none that anybody looks for.
        fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with told(self.root):
                yield fresh
                if fresh.exists():
                    with fresh.open("rb") as file:
                        os.fsync(file.fileno())
                    fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def prune(self, name: str, rest: timedelta) -> int:
        kept, before = self.root / name, time.time() - rest.total_seconds()
        gone = 0
        for path in kept.parent.iterdir():
            with suppress(FileNotFoundError):  # another worker was faster
                if path != kept and path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone


@dataclass(frozen=True)
class StoreFolder:
    """A folder in an object store."""

    objects: ObjectFolder

    def address(self, name: str) -> str:
        return self.objects.of(name)

    def exists(self, name: str) -> bool:
        return self.objects.exists(name)

    def read(self, name: str) -> bytes:
        return self.objects.read(name)

    def open(self, name: str) -> BufferedIOBase:
        return self.objects.open(self.objects.find(name))

    @contextmanager
    def made(self, name: str) -> Iterator[Path]:
        with scratch("upload") as folder:
            fresh = folder / name.rpartition("/")[2]
            yield fresh
            if fresh.exists():
                self.objects.write(name, fresh)

    def prune(self, name: str, rest: timedelta) -> int:
        before = datetime.now(UTC) - rest
        beside = self.objects.listed(name.rpartition("/")[0])
        old = [one.name for one in beside if one.name != name and one.modified < before]
        self.objects.delete(old)
        return len(old)


def folder(root: Path | str) -> Folder:
    """The folder at a path or at an address (``s3://bucket/prefix``). Raises ValueError for a strange address."""
    if is_address(root):
        return StoreFolder(ObjectFolder(str(root)))
    return DiskFolder(Path(root))
