"""Which hashes a table has more than once, found in bounded memory: what may be there twice, before it is compared."""

from __future__ import annotations

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: So many hashes are held at a time, of eight bytes each.
HASHES_AT_ONCE = 32_000_000
_ROWS = 1_000_000


def repeated(db: duckdb.DuckDBPyConnection, of: str) -> pa.Table:
    """The hashes that more than one row of the table or view ``of`` has: both columns are ``h``, unsigned 64-bit.

    Sorted, equal ones stand side by side: a fraction of the time and memory that grouping by them takes.
    """
    (rows,) = db.sql(f"SELECT count(*) FROM {of}").fetchall()[0]  # noqa: S608 - callers name their own tables
    parts = -(-rows // HASHES_AT_ONCE)
    if parts <= 1:
        found = _twice(db.sql(f"SELECT h FROM {of}"), rows)  # noqa: S608
    else:
        query = f"SELECT h FROM {of} WHERE h % $parts = $part"  # noqa: S608
        pieces = (db.sql(query, params={"parts": parts, "part": part}) for part in range(parts))
        found = np.concatenate([_twice(piece, HASHES_AT_ONCE * 5 // 4) for piece in pieces])
    return pa.table({"h": found})


def _twice(hashes: duckdb.DuckDBPyRelation, room: int) -> npt.NDArray[np.uint64]:
    held = np.empty(room, np.uint64)
    count = 0
    for batch in hashes.to_arrow_reader(_ROWS):
        if count + len(batch) > len(held):
            held = np.resize(held, count + len(batch) + room)
        held[count : count + len(batch)] = batch["h"].to_numpy()
        count += len(batch)
    held = held[:count]
    held.sort()
    return np.unique(held[1:][held[1:] == held[:-1]])
