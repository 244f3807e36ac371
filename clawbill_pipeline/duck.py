"""The engine for volume: how DuckDB is opened, everywhere the same. The SQL stands beside the functions that run it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa


@contextmanager
def duck(*, memory_limit: str | None = None, threads: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A private in-process database in UTC. Extensions are never downloaded: what is built in is all there is."""
    config: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    if memory_limit:
        config["memory_limit"] = memory_limit
    if threads:
        config["threads"] = threads
    # What does not fit into memory spills here; DuckDB's own choice is a folder wherever the process was started.
    with (
        tempfile.TemporaryDirectory(prefix="clawbill-duck-") as spill,
        duckdb.connect(config={**config, "temp_directory": spill}) as db,
    ):
        db.execute("SET TimeZone = 'UTC'")
        yield db


def arrow(db: duckdb.DuckDBPyConnection, query: str, **params: object) -> pa.Table:
    """The rows of ``query``; ``params`` fill its ``$names``."""
    return db.sql(query, params=params).to_arrow_table()
