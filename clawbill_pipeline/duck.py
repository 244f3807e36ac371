"""The engine for volume: how DuckDB is opened, everywhere the same. The SQL stands beside the functions that run it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from clawbill_pipeline.disk import full, scratch

#: What DuckDB says where its file finds no room, and where what it spills would not.
_NO_ROOM = re.compile(r"""file \\*"(.+?)\\*": No space left|'max_temp_directory_size' setting""")
_REMEDY = "set TMPDIR to a folder on a larger disk, or raise CLAWBILL_MEMORY_LIMIT, so that less of it is needed"


@contextmanager
def duck(*, memory_limit: str | None = None, threads: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A private in-process database in UTC. Extensions are never downloaded: what is built in is all there is.

    What the block asks of it raises DiskFull where there is no room for what does not fit into memory.
    """
    config: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    if memory_limit:
        config["memory_limit"] = memory_limit
    if threads:
        config["threads"] = threads
    # What does not fit into memory spills here; DuckDB's own choice is a folder wherever the process was started.
    with scratch("duck") as spill, duckdb.connect(config={**config, "temp_directory": str(spill)}) as db:
        db.execute("SET TimeZone = 'UTC'")
        try:
            yield db
        except duckdb.OperationalError as error:
            if (found := _NO_ROOM.search(str(error))) is None:
                raise
            folder = Path(found[1] or spill).parent
            raise full(spill.parent if folder == spill else folder, _REMEDY) from error


def arrow(db: duckdb.DuckDBPyConnection, query: str, **params: object) -> pa.Table:
    """The rows of ``query``; ``params`` fill its ``$names``."""
    return db.sql(query, params=params).to_arrow_table()
