"""Counts usage events: duplicates out, exact quantities of each tenant, service and window. No ledger, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.duck import arrow, duck
from clawbill_pipeline.ledger.sharding import ALL, DUCK_BUCKET, Share
from clawbill_pipeline.money import EXACT, SCALE, rounded, total
from clawbill_pipeline.repeats import repeated

#: A billing period's boundary that cuts an hour: (tenant, hour, boundary), all UTC.
Cut = tuple[str, datetime, datetime]

#: How the events of a window become its quantity; ``sum`` is in ``_SUMS``, ``time_weighted`` in ``_weighted``.
_AGGREGATE = {
    "count": "count(*)",
    "max": "max(quantity)",
    "unique_count": "count(DISTINCT unique_value)",
    # By the events' own time, and by their identity where that is equal: never by the order of arrival.
    "latest": "arg_max(quantity, {time: event_time, source: source, id: event_id})",
}
TAKEN_SCHEMA = pa.schema(
    [
        ("hour", pa.timestamp("us", tz="UTC")),
        ("tenant_id", pa.string()),
        ("source", pa.string()),
        ("event_id", pa.string()),
        (
            "first",
            pa.struct(
                [
                    ("service", pa.string()),
                    ("dimensions", pa.string()),
                    ("quantity", pa.decimal128(38, 12)),
                    ("event_time", pa.timestamp("us", tz="UTC")),
                    ("unique_value", pa.string()),
                ]
            ),
        ),
    ]
)

#: A value that was used in a window.
USED_SCHEMA = pa.schema(
    [
        ("hour", pa.timestamp("us", tz="UTC")),
        ("tenant_id", pa.string()),
        ("service", pa.string()),
        ("dimensions", pa.string()),
        ("window_start", pa.timestamp("us", tz="UTC")),
        ("value", pa.string()),
    ]
)


@dataclass(frozen=True)
class Count:
    """What ``count`` found. ``quantities`` has a row a window: hour, tenant_id, service, dimensions, window_start,
    quantity (DECIMAL(38,12)), events. ``used`` has the values of services that count one once a period: USED_SCHEMA.
    ``conflicts`` has a row an event that contradicts the ``first`` of its id. ``repeats`` is how many events of an
    hour, conflicts among them, were not counted; ``events``, of a shard, how many it has."""

    quantities: pa.Table
    used: pa.Table
    conflicts: pa.Table
    repeats: Mapping[datetime, int]
    events: Mapping[datetime, int]


# The view has what is derived of an event: its hour and what it says, by which events of one id are compared; unused
# columns are never read. Plain arithmetic, since DuckDB's calendar functions cost more than the counting itself.
_HASH = "id_hash(tenant_id, source, event_id)"
_DERIVED = """
    landing_id, source, uri, line, byte_offset, event_id, tenant_id, service, dimensions, quantity, event_time,
    unique_value, file_row_number, make_timestamptz(epoch_us(event_time) // 3600000000 * 3600000000) AS hour,
    {service: service, dimensions: dimensions, quantity: quantity, event_time: event_time,
     unique_value: unique_value} AS said
"""
_LANDED = (
    "SET preserve_insertion_order = false",
    "CREATE TEMP MACRO id_hash(tenant_id, source, event_id) AS hash(tenant_id, source, event_id)",
    f"CREATE TEMP VIEW landed AS SELECT {_DERIVED}, {_HASH} AS h FROM events",  # noqa: S608 - of constants
)
_EVENTS = """
CREATE TEMP VIEW events AS
SELECT landing_id, source, uri, line, byte_offset, event_id, tenant_id, service, dimensions, quantity, event_time,
       file_row_number, '' AS unique_value
FROM read_parquet(getvariable('files'), file_row_number = true, hive_partitioning = false) {share}
"""
# Files that landed before there was such a column lack it.
_EVENTS_WITH_VALUES = """
CREATE TEMP VIEW events AS
SELECT * REPLACE (coalesce(unique_value, '') AS unique_value)
FROM (SELECT NULL::VARCHAR AS unique_value WHERE false
      UNION ALL BY NAME FROM read_parquet(getvariable('files'), file_row_number = true, hive_partitioning = false,
                                          union_by_name = true)) {share}
"""
# Which tenants a shard has is found once, of the one column; all else reads their events alone.
_SHARE = f"""
CREATE TEMP TABLE shared_out AS
SELECT tenant_id FROM (SELECT DISTINCT tenant_id FROM read_parquet(getvariable('files'), hive_partitioning = false))
LEFT JOIN payers USING (tenant_id)
WHERE {DUCK_BUCKET.format(tenant="coalesce(payer_id, tenant_id)")} BETWEEN $first AND $last
"""  # noqa: S608 - of constants
_OF_SHARE = "WHERE tenant_id IN (SELECT tenant_id FROM shared_out)"
_PAYERS = pa.schema([("tenant_id", pa.string()), ("payer_id", pa.string())])
# Ids that are there more than once, and ids that belong to another hour. A hash finds them in a fraction of the time
# and memory that the ids themselves would take; it only prefilters: what it finds is compared by id.
_WATCHED = """
CREATE TEMP TABLE watched AS
SELECT h FROM repeated UNION SELECT id_hash(tenant_id, source, event_id) FROM taken
"""
# Not of the view: what is derived of an event is derived of these alone.
_SUSPECTS = f"""
CREATE TEMP TABLE suspects AS
SELECT {_DERIVED}, h
FROM (SELECT *, {_HASH} AS h FROM events WHERE {_HASH} IN (SELECT h FROM watched))
"""  # noqa: S608 - of constants
# The first event of an id stands: earliest landing, then earliest line, then earliest within a line that bears many.
_FIRST = """
CREATE TEMP TABLE first AS
SELECT e.hour, e.tenant_id, e.source, e.event_id, coalesce(t.first, e.first) AS e, t.first IS NOT NULL AS taken
FROM (SELECT hour, tenant_id, source, event_id,
             arg_min(said, {landing: landing_id, line: line, row: file_row_number}) AS first
      FROM suspects GROUP BY ALL) e
LEFT JOIN taken t USING (hour, tenant_id, source, event_id)
"""
# Events equal to the first of their id are duplicates; the others contradict it, as all events of a taken id do.
_CONFLICTS = """
SELECT s.landing_id, s.source, s.uri, s.line, s.byte_offset, s.tenant_id, s.event_id, s.hour,
       s.service, s.dimensions, s.quantity, s.event_time, s.unique_value, f.e AS first
FROM suspects s JOIN first f USING (hour, tenant_id, source, event_id)
WHERE f.taken OR s.said <> f.e
ORDER BY s.landing_id, s.line, s.file_row_number
"""
_REPEATS = """
SELECT hour, count(*) - (SELECT count(*) FROM first f WHERE f.hour = s.hour AND NOT taken) AS repeats
FROM suspects s GROUP BY hour HAVING repeats > 0
"""
_OF_HOURS = "SELECT hour, count(*) AS events FROM landed GROUP BY hour"
_STANDING = """
CREATE TEMP VIEW standing AS
SELECT hour, tenant_id, source, event_id, e.service, e.dimensions, e.quantity, e.event_time, e.unique_value
FROM first WHERE NOT taken
"""
_COUNTED = """
CREATE TEMP VIEW counted AS
SELECT hour, tenant_id, source, event_id, service, dimensions, quantity, event_time, unique_value
FROM landed WHERE h NOT IN (SELECT h FROM watched)
UNION ALL SELECT * FROM standing
"""
_WINDOWS = """
CREATE TEMP VIEW {name} AS
SELECT e.*, c.boundary, CASE WHEN e.event_time >= c.boundary THEN c.boundary ELSE e.hour END AS window_start
FROM {events} e LEFT JOIN cuts c USING (tenant_id, hour)
"""
# To look for what isn't there would cost as much as the rest.
_WHOLE_HOURS = """
CREATE TEMP VIEW {name} AS SELECT *, NULL::TIMESTAMPTZ AS boundary, hour AS window_start FROM {events}
"""
_OF_EVENTS = {"all_windows": "landed", "suspect_windows": "suspects", "first_windows": "standing", "windows": "counted"}
# Sums of all events, without the suspects, with the first of each id: exact numbers may be taken away again, and so no
# event needs its id looked at.
_SUMS = """
SELECT hour, tenant_id, service, dimensions, {window} AS window_start,
       CAST(sum(quantity) AS DECIMAL(38, 12)) AS quantity, CAST(sum(events) AS BIGINT) AS events
FROM (SELECT hour, tenant_id, service, dimensions, {window} AS window_start, sum(quantity) AS quantity,
             count(*) AS events
      FROM all_windows {where} GROUP BY {keys}
      UNION ALL
      SELECT hour, tenant_id, service, dimensions, {window}, -sum(quantity), -count(*)
      FROM suspect_windows {where} GROUP BY {keys}
      UNION ALL
      SELECT hour, tenant_id, service, dimensions, {window}, sum(quantity), count(*)
      FROM first_windows {where} GROUP BY {keys})
GROUP BY {keys} HAVING sum(events) > 0 ORDER BY ALL
"""
# Where no boundary cuts an hour, the hour is the window, and there is one key less to group by.
_KEYS = "hour, tenant_id, service, dimensions"
_BY_HOUR = {"keys": _KEYS, "window": "any_value(window_start)"}
_BY_WINDOW = {"keys": f"{_KEYS}, window_start", "window": "window_start"}
_QUANTITIES = """
SELECT hour, tenant_id, service, dimensions, window_start,
       CAST({aggregate} AS DECIMAL(38, 12)) AS quantity, count(*) AS events
FROM windows {where} GROUP BY ALL ORDER BY ALL
"""
_USED = """
SELECT DISTINCT hour, tenant_id, service, dimensions, window_start, unique_value AS value
FROM windows WHERE list_contains($services, service)
"""
_LEVELS = """
SELECT hour, tenant_id, service, dimensions, window_start, boundary, event_time, quantity
FROM windows {where} ORDER BY hour, tenant_id, service, dimensions, window_start, event_time, source, event_id
"""
_CUTS = pa.schema(
    [("tenant_id", pa.string()), ("hour", pa.timestamp("us", tz="UTC")), ("boundary", pa.timestamp("us", tz="UTC"))]
)
_ROW = pa.schema(
    [
        ("hour", pa.timestamp("us", tz="UTC")),
        ("tenant_id", pa.string()),
        ("service", pa.string()),
        ("dimensions", pa.string()),
        ("window_start", pa.timestamp("us", tz="UTC")),
        ("quantity", pa.decimal128(38, 12)),
        ("events", pa.int64()),
    ]
)


def count(
    files: Sequence[Path | str],
    cuts: Iterable[Cut] = (),
    *,
    aggregations: Mapping[str, str] | None = None,
    once_a_period: Sequence[str] = (),
    taken: pa.Table | None = None,
    share: Share = ALL,
    memory_limit: str | None = None,
) -> Count:
    """The quantities of ``share`` in the lake's ``files``, which hold whole hours: all files of an hour, or none of it.

    ``aggregations`` names services that are not summed, ``once_a_period`` those whose values ``used`` shall tell;
    ``taken`` (TAKEN_SCHEMA) the ids that belong to an event of another hour. The same events in any order, split over
    any files, give the same quantities.
    """
    rows = [dict(zip(_CUTS.names, cut, strict=True)) for cut in cuts]
    with duck(memory_limit=memory_limit) as db:
        prepare(db, files, values="unique_count" in (aggregations or {}).values(), share=share)
        db.register("cuts", pa.Table.from_pylist(rows, schema=_CUTS))
        db.register("taken", taken if taken is not None else TAKEN_SCHEMA.empty_table())
        db.register("repeated", repeated(db, "landed"))
        windows = [(_WINDOWS if rows else _WHOLE_HOURS).format(name=n, events=e) for n, e in _OF_EVENTS.items()]
        for statement in (_WATCHED, _SUSPECTS, _FIRST, _STANDING, _COUNTED, *windows):
            db.execute(statement)
        return Count(
            quantities=pa.concat_tables(_quantities(db, aggregations or {}, _BY_WINDOW if rows else _BY_HOUR)),
            used=_used(db, once_a_period).cast(USED_SCHEMA),
            conflicts=arrow(db, _CONFLICTS),
            repeats={row["hour"]: row["repeats"] for row in arrow(db, _REPEATS).to_pylist()},
            events={row["hour"]: row["events"] for row in arrow(db, _OF_HOURS).to_pylist()} if share.shard else {},
        )


def _used(db: duckdb.DuckDBPyConnection, services: Sequence[str]) -> pa.Table:
    return arrow(db, _USED, services=list(services)) if services else USED_SCHEMA.empty_table()


def prepare(
    db: duckdb.DuckDBPyConnection, files: Sequence[Path | str], *, values: bool = False, share: Share = ALL
) -> None:
    """Makes the view ``landed`` of the events of ``share`` in ``files``; ``values``: with what unique_count counts."""
    events_of(db, files, share, _EVENTS_WITH_VALUES if values else _EVENTS)
    for statement in _LANDED:
        db.execute(statement)


def events_of(db: duckdb.DuckDBPyConnection, files: Sequence[Path | str], share: Share, view: str) -> None:
    """Makes a ``view`` of the variable ``files``, limited to the tenants of ``share`` at its ``{share}``."""
    db.execute("SET VARIABLE files = $files", {"files": [str(file) for file in files]})
    if share.shard is not None:
        payers = [dict(zip(_PAYERS.names, pair, strict=True)) for pair in share.sharing.payers.items()]
        db.register("payers", pa.Table.from_pylist(payers, schema=_PAYERS))
        buckets = share.shard.buckets
        db.execute(_SHARE, {"first": buckets[0], "last": buckets[-1]})
    db.execute(view.format(share="" if share.shard is None else _OF_SHARE))


def _quantities(
    db: duckdb.DuckDBPyConnection, aggregations: Mapping[str, str], grouping: Mapping[str, str]
) -> Iterator[pa.Table]:
    special: dict[str, list[str]] = {}
    for service, aggregation in aggregations.items():
        if aggregation != "sum":
            special.setdefault(aggregation, []).append(service)
    others = [service for services in special.values() for service in services]
    where = "WHERE NOT list_contains($services, service)" if others else ""
    given = {"services": others} if others else {}
    yield arrow(db, _SUMS.format(where=where, **grouping), **given).cast(_ROW)
    for aggregation, services in sorted(special.items()):
        where = "WHERE list_contains($services, service)"
        if aggregation == "time_weighted":
            yield _weighted(arrow(db, _LEVELS.format(where=where), services=services))
        else:
            query = _QUANTITIES.format(aggregate=_AGGREGATE[aggregation], where=where)
            yield arrow(db, query, services=services).cast(_ROW)


def _weighted(levels: pa.Table) -> pa.Table:
    """Unit-hours of levels: each holds from its event to the next one, or to the window's end.

    A window knows nothing of the one before: a level that lasts is reported anew every hour, on the hour. The result
    is exact but for one rounding to 12 places a window.
    """
    windows: dict[tuple[Any, ...], list[tuple[datetime, Decimal]]] = {}
    ends: dict[tuple[Any, ...], datetime] = {}
    for row in levels.to_pylist():
        key: tuple[Any, ...] = (row["hour"], row["tenant_id"], row["service"], row["dimensions"], row["window_start"])
        windows.setdefault(key, []).append((row["event_time"], row["quantity"]))
        cut = row["boundary"]
        ends[key] = cut if cut and row["window_start"] < cut else row["hour"] + HOUR
    rows: list[tuple[Any, ...]] = []
    for window, samples in windows.items():
        until = [at for at, _ in samples[1:]] + [ends[window]]
        parts = (
            EXACT.multiply(level, Decimal((end - at) // timedelta(microseconds=1)))
            for (at, level), end in zip(samples, until, strict=True)
        )
        hours = EXACT.divide(total(parts), Decimal(HOUR // timedelta(microseconds=1)))
        rows.append((*window, rounded(hours, SCALE), len(samples)))
    columns = zip(*rows, strict=True) if rows else ([] for _ in _ROW)
    return pa.Table.from_arrays(
        [pa.array(list(column), field.type) for column, field in zip(columns, _ROW, strict=True)], schema=_ROW
    )
