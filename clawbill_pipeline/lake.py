"""The lake: usage events as Parquet files by event hour. Knows where files are and how they look, not what they mean.

A file counts only once the ledger names it (``landed_hours``): what a crash left behind is never read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clawbill_pipeline.disk import scratch
from clawbill_pipeline.storage import DiskFolder, Folder, folder

#: One row a usage event. ``quantity`` is exact; ``event_time`` is UTC; ``line`` is the line or row it came from.
EVENT_SCHEMA = pa.schema(
    [
        pa.field("landing_id", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("tenant_id", pa.string(), nullable=False),
        pa.field("service", pa.string(), nullable=False),
        pa.field("dimensions", pa.string(), nullable=False),
        pa.field("quantity", pa.decimal128(38, 12), nullable=False),
        pa.field("event_time", pa.timestamp("us", tz="UTC"), nullable=False),
        # Files that landed before these two were thought of lack them. What unique_count counts; empty for others:
        pa.field("unique_value", pa.string()),
        # What the provider charged for it in USD, as its source says: a witness, that nobody is billed by.
        pa.field("cost", pa.decimal128(38, 12)),
    ]
)


#: Files that are fetched from a store, or written to it, at once: each waits most of its time for an answer.
_AT_ONCE = 8
#: Files that are written to a disk at once.
_ON_DISK = 2
_PIECE = 16 * 1024 * 1024
#: Events that are looked at together where hours can be looked at one by one.
PORTION = 50_000_000


@dataclass(frozen=True)
class Lake:
    """A folder of Parquet files: a path, or an address in an object store (``s3://bucket/prefix``).

    ``memory_limit`` (``1GB``) is what DuckDB may take to read it; what is more spills to disk.
    """

    root: Path | str
    memory_limit: str | None = None

    @cached_property
    def folder(self) -> Folder:
        return folder(self.root)

    @property
    def writers(self) -> int:
        """How many files it pays to write, or to ask for, at once."""
        return _ON_DISK if isinstance(self.folder, DiskFolder) else _AT_ONCE

    def events_file(self, hour: datetime, landing_id: int) -> str:
        """The name, relative to the lake, of the events that one landing has for one hour (aware, on the hour)."""
        return f"usage_events/hour={hour:%Y-%m-%dT%H}/landing-{landing_id:012d}.parquet"

    def ids_file(self, hour: datetime, landings: int, newest: int, share: str = "") -> str:
        """The name of the index of an hour's event ids, as it is with so many landings, ``newest`` the last of them.

        ``share`` names the tenants that it is limited to. It can be made again at any time. DuckDB's version is in it
        since its hashes are.
        """
        folder = f"usage_ids/duckdb-{duckdb.__version__}/{share}/hour={hour:%Y-%m-%dT%H}".replace("//", "/")
        return f"{folder}/{landings}-{newest:012d}.parquet"

    def path(self, file: str) -> Path:
        """Where a file of a lake on disk is; its folder exists afterwards."""
        if not isinstance(self.folder, DiskFolder):
            raise TypeError(f"{self.root} is no folder on disk: its files have addresses")
        path = Path(self.root) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def at_hand(self, files: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[list[str]]:
        """The files as paths for DuckDB, in their order: where they are, or as copies of those in a store.

        Copies hold at least ``columns`` (all by default) and are gone afterwards. DuckDB has no way of its own to a
        store without downloading an extension, and reads wrongly through a Python file that its threads share. Raises
        DiskFull.
        """
        if isinstance(self.folder, DiskFolder):
            yield [self.folder.address(file) for file in files]
            return
        with scratch("lake") as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
            targets = [str(folder / f"{number}.parquet") for number in range(len(files))]
            list(pool.map(lambda file, target: self._copy(file, target, columns), files, targets))
            yield targets

    def _copy(self, file: str, target: str, columns: Sequence[str] | None) -> None:
        with self.folder.open(file) as source:
            if columns is None:
                with Path(target).open("wb") as copy:
                    shutil.copyfileobj(source, copy, _PIECE)
            else:
                pq.write_table(pq.read_table(source, columns=list(columns)), target, compression="none")

    def missing(self, files: Sequence[str]) -> set[str]:
        """Those that are not there."""
        with ThreadPoolExecutor(self.writers) as pool:
            there = pool.map(self.folder.exists, files)
            return {file for file, is_there in zip(files, there, strict=True) if not is_there}

    def rows(self, files: Sequence[str]) -> dict[str, int | None]:
        """How many rows each file has by its own footer; None for one that is gone or no Parquet file any more."""
        with ThreadPoolExecutor(self.writers) as pool:
            return dict(zip(files, pool.map(self._rows, files), strict=True))

    def digests(self, files: Sequence[str]) -> dict[str, str | None]:
        """The SHA-256 of each file as it is now; None for one that is gone. Reads every byte."""
        with ThreadPoolExecutor(self.writers) as pool:
            return dict(zip(files, pool.map(self._digest, files), strict=True))

    def _digest(self, file: str) -> str | None:
        try:
            with self.folder.open(file) as source:
                return hashlib.file_digest(source, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def _rows(self, file: str) -> int | None:
        try:
            with self.folder.open(file) as source:
                return int(pq.read_metadata(source).num_rows)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None


def portions(landed: Iterable[tuple[datetime, str, int]]) -> Iterator[list[str]]:
    """The files of ``landed`` (hour, file, events), in order of hours, in portions of whole hours.

    What a portion needs of memory and disk stays the same however long a period is.
    """
    files: list[str] = []
    size = 0
    for _, of_hour in groupby(sorted(landed), key=lambda row: row[0]):
        rows = list(of_hour)
        events = sum(row[2] for row in rows)
        if files and size + events > PORTION:
            yield files
            files, size = [], 0
        files += [file for _, file, _ in rows]
        size += events
    if files:
        yield files
