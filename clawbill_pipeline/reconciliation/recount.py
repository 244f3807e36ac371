"""What usage events count to, counted once more by each service's aggregation, from the events alone.

It is metering's rule told a second time, on purpose: the two are compared. Tables that are counted have tenant_id,
service, dimensions, source, event_id, event_time, quantity, unique_value, window_start and window_end, duplicates out;
what comes of them has tenant_id, service, dimensions, window_start, events and quantity.
"""

# ruff: noqa: S608 -- the names of tables are this package's own

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from itertools import groupby
from operator import itemgetter

import duckdb
import pyarrow as pa

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.money import EXACT, SCALE, rounded, total

_KEY = "tenant_id, service, dimensions, window_start"
_AGGREGATES = {
    "sum": "sum(quantity)",
    "count": "count(*)",
    "max": "max(quantity)",
    "unique_count": "count(DISTINCT unique_value)",
    "latest": "arg_max(quantity, {time: event_time, source: source, id: event_id})",
}
#: A value counts in the first window of the period that it was used in.
_ONCE = """
WITH firsts AS (
  SELECT {key}, count(*) AS firsts
  FROM (SELECT tenant_id, service, dimensions, unique_value, min(window_start) AS window_start
        FROM {events} GROUP BY ALL) GROUP BY ALL)
SELECT {key}, events, CAST(coalesce(firsts, 0) AS DECIMAL(38, 12)) AS quantity
FROM (SELECT {key}, count(*) AS events FROM {events} GROUP BY ALL) LEFT JOIN firsts USING ({key})
"""
_HOUR = timedelta(hours=1) // timedelta(microseconds=1)
_SCHEMA = pa.schema(
    [
        ("tenant_id", pa.string()), ("service", pa.string()), ("dimensions", pa.string()),
        ("window_start", pa.timestamp("us", tz="UTC")), ("events", pa.int64()), ("quantity", pa.decimal128(38, 12)),
    ]
)  # fmt: skip


def way(catalog: Catalog, service: str) -> str:
    """How a service is counted: its aggregation, or ``once`` a period; sums where the catalogue does not know it."""
    known = catalog.services.get(service)
    if known is None:
        return "sum"
    return "once" if known.unique_over == "period" else known.aggregation


def recount(db: duckdb.DuckDBPyConnection, events: str, way: str, into: str) -> None:
    """Makes table ``into`` of what ``events``, of services that are all counted one ``way``, come to."""
    if way == "time_weighted":
        db.register("weighted", _weighted(db, events))
        db.execute(f"CREATE OR REPLACE TEMP TABLE {into} AS SELECT * FROM weighted")
        db.unregister("weighted")
        return
    query = (
        _ONCE.format(key=_KEY, events=events)
        if way == "once"
        else f"SELECT {_KEY}, count(*) AS events, CAST({_AGGREGATES[way]} AS DECIMAL(38, 12)) AS quantity"
        f" FROM {events} GROUP BY ALL"
    )
    db.execute(f"CREATE OR REPLACE TEMP TABLE {into} AS {query}")


def _weighted(db: duckdb.DuckDBPyConnection, events: str) -> pa.Table:
    """Levels, each until the next one or the end of its window: in unit-hours, exact but for one rounding."""
    rows = db.execute(
        f"SELECT {_KEY}, epoch_us(event_time), epoch_us(window_end), quantity FROM {events}"
        f" ORDER BY {_KEY}, event_time, source, event_id"
    ).fetchall()
    counted = []
    for key, group in groupby(rows, itemgetter(slice(0, 4))):
        levels = list(group)
        until = [at for *_, at, _, _ in levels[1:]] + [levels[-1][5]]
        areas = [
            EXACT.multiply(level, Decimal(end - at)) for (*_, at, _, level), end in zip(levels, until, strict=True)
        ]
        hours = rounded(EXACT.divide(total(areas), Decimal(_HOUR)), SCALE)
        counted.append(dict(zip(_SCHEMA.names, (*key, len(levels), hours), strict=True)))
    return pa.Table.from_pylist(counted, schema=_SCHEMA)
