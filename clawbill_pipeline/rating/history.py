"""Reads metered usage out of the ledger for shadow pricing: current revisions, in a transaction that can't write."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.disk import scratch
from clawbill_pipeline.duck import duck
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.database import copy_out
from clawbill_pipeline.rating.movements import Comparison
from clawbill_pipeline.rating.simulation import history_start, simulate

_HISTORY = """
    SELECT tenant_id, service, dimensions, window_start, quantity FROM (
        SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) * FROM metered_usage
        WHERE hour >= :first_hour AND hour < :end
        ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) c
    WHERE window_start >= :first AND window_start < :end
"""
_COLUMNS = {
    "tenant_id": "VARCHAR",
    "service": "VARCHAR",
    "dimensions": "VARCHAR",
    "window_start": "TIMESTAMPTZ",
    "quantity": "DECIMAL(38, 12)",
}
_PACKED = f"""
COPY (FROM read_csv($csv, header = false, auto_detect = false, columns = {_COLUMNS!r}, allow_quoted_nulls = false,
                    delim = ',', quote = '"', escape = '"')) TO $parquet (FORMAT parquet)
"""


def compare(
    ledger: Ledger,
    current: Catalog,
    candidate: Catalog,
    *,
    start: datetime,
    end: datetime,
    as_of: datetime | None = None,
    memory_limit: str | None = None,
) -> Comparison:
    """``simulate`` over the usage that the ledger has metered for ``[start, end)``. Reads, and nothing else.

    The history lies in a file meanwhile, so it may be larger than memory. ``memory_limit`` (``1GB``) is DuckDB's; what
    is more spills to disk. Raises LedgerError, or DiskFull.
    """
    first = history_start((current, candidate), start)
    with scratch("history") as folder, duck(memory_limit=memory_limit) as db:
        csv, parquet = folder / "history.csv", folder / "history.parquet"
        with ledger.transaction() as connection:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            window = {"first": first, "first_hour": utc_hour(first), "end": end}
            refuse_archived(connection, utc_hour(first), end)
            with csv.open("wb") as out:
                out.writelines(copy_out(connection, _HISTORY, window))
        db.execute(_PACKED, {"csv": str(csv), "parquet": str(parquet)})
        csv.unlink()
        db.read_parquet(str(parquet)).create_view("history")
        return simulate(db, "FROM history", current, candidate, start=start, end=end, as_of=as_of)
