"""The lake: usage events as Parquet files by event hour. Knows where files are and how they look, not what they mean.

A file counts only once the ledger names it (``landed_hours``): what a crash left behind is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

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
    ]
)


@dataclass(frozen=True)
class Lake:
    """A folder of Parquet files."""

    root: Path

    def events_file(self, hour: datetime, landing_id: int) -> str:
        """The name, relative to the lake, of the events that one landing has for one hour (aware, on the hour)."""
        return f"usage_events/hour={hour:%Y-%m-%dT%H}/landing-{landing_id:012d}.parquet"

    def ids_file(self, hour: datetime, landings: int, newest: int) -> str:
        """The name of the index of an hour's event ids, as it is with so many landings, ``newest`` the last of them.

        It can be made again at any time. DuckDB's version is in it since its hashes are.
        """
        return f"usage_ids/duckdb-{duckdb.__version__}/hour={hour:%Y-%m-%dT%H}/{landings}-{newest:012d}.parquet"

    def path(self, file: str) -> Path:
        """Where a file of the lake is; its folder exists afterwards."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
