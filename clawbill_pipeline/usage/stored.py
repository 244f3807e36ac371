"""Where the bytes of an input lie: files on disk, objects in a store, or in some other place. Not what they say."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

from clawbill_pipeline.object_store import Listed, ObjectFolder

COMPRESSED = (".gz", ".zst")
#: Within so many seconds another change may leave a file's times, or an object's, as they are.
_TICK = 2


class Stored(Protocol):
    """Bytes under a name. ``uri`` is their path below the source's folder, wherever that is."""

    @property
    def uri(self) -> str: ...

    @property
    def name(self) -> str:
        """The last part of the uri, without what compression appends."""
        ...

    def open(self) -> BufferedIOBase:
        """The bytes from their start. Raises OSError; of an object, Replaced once there is another one."""
        ...

    def for_arrow(self) -> str | BufferedIOBase:
        """What Arrow's own readers take: a path where there is one."""
        ...

    def size(self) -> int: ...

    def stamp(self) -> list[int | str] | None:
        """Stays the same as long as the bytes do; None where nothing can tell that as yet."""
        ...

    def rested(self, seconds: float) -> bool:
        """Whether nothing was written for so long."""
        ...


def plain_name(uri: str) -> str:
    """The file's name without what compression appends."""
    name = uri.rpartition("/")[2]
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return name


@dataclass(frozen=True)
class DiskFile:
    """A file on disk."""

    path: Path
    uri: str

    @property
    def name(self) -> str:
        return plain_name(self.path.name)

    def open(self) -> BufferedIOBase:
        return self.path.open("rb")

    def for_arrow(self) -> str:
        return str(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    def stamp(self) -> list[int | str] | None:
        stat = self.path.stat()
        if time.time() - max(stat.st_mtime, stat.st_ctime) < _TICK:
            return None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]

    def rested(self, seconds: float) -> bool:
        return time.time() - self.path.stat().st_mtime > seconds


@dataclass(frozen=True)
class StoredObject:
    """An object as the source's listing had it: what is read is that version, or nothing."""

    folder: ObjectFolder
    listed: Listed

    @property
    def uri(self) -> str:
        return self.listed.name

    @property
    def name(self) -> str:
        return plain_name(self.uri)

    def open(self) -> BufferedIOBase:
        return self.folder.open(self.listed)

    def for_arrow(self) -> BufferedIOBase:
        return self.open()

    def size(self) -> int:
        return self.listed.size

    def stamp(self) -> list[int | str] | None:
        if self.listed.tag:
            return [self.listed.size, self.listed.tag]
        return [self.listed.size, str(self.listed.modified)] if self.rested(_TICK) else None

    def rested(self, seconds: float) -> bool:
        return time.time() - self.listed.modified.timestamp() > seconds


@dataclass(frozen=True)
class Kept:
    """Bytes that something else keeps, such as a database: they never change."""

    uri: str
    opened: Callable[[], BufferedIOBase]
    length: int

    @property
    def name(self) -> str:
        return plain_name(self.uri)

    def open(self) -> BufferedIOBase:
        return self.opened()

    def for_arrow(self) -> BufferedIOBase:
        return self.open()

    def size(self) -> int:
        return self.length

    def stamp(self) -> list[int | str]:
        return [self.length]

    def rested(self, seconds: float) -> bool:
        return False


def files(root: Path, patterns: str | Sequence[str]) -> list[Path]:
    """The files below ``root`` whose names match a pattern with or without ``.gz`` or ``.zst`` behind, in order.

    Names that begin with a dot, and what is in folders of such a name, are nobody's usage.
    """
    found = {path for glob in _globs(patterns) for path in root.glob(glob) if path.is_file()}
    return sorted(path for path in found if not _hidden(path.relative_to(root).as_posix()))


def objects(folder: ObjectFolder, patterns: str | Sequence[str]) -> list[StoredObject]:
    """The objects of ``folder`` by the same rules."""
    return [StoredObject(folder, found) for found in folder.matching(_globs(patterns)) if not _hidden(found.name)]


def uri_of(path: Path, folder: Path) -> str:
    """A file's uri: its path below the source's folder. Bytes in names that are no text are shown escaped."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")


def _globs(patterns: str | Sequence[str]) -> list[str]:
    each = [patterns] if isinstance(patterns, str) else patterns
    return [glob + suffix for glob in each for suffix in ("", *COMPRESSED)]


def _hidden(uri: str) -> bool:
    return re.search(r"(?:^|/)\.", uri) is not None
