"""What the ledger and the lake hold of one billing period, brought into DuckDB side by side. Compares nothing.

Tables, all in UTC and limited to each tenant's own period: ``events`` (from the lake), ``metered``, ``rated``,
``failures``, ``records`` (the outbox), ``held_hours``, ``hours`` (how far metering is), ``services``, ``tenants`` and
``finals`` (when the invoice of a tenant's service became final).
"""

# ruff: noqa: S608 -- queries are put together from constants of this file; every value is a parameter

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.disk import scratch
from clawbill_pipeline.lake import Lake, portions
from clawbill_pipeline.ledger.database import copy_out
from clawbill_pipeline.ledger.sharing import Sharing
from clawbill_pipeline.ledger.waterfall import Scope, unit_scale
from clawbill_pipeline.reconciliation.recount import recount, way
from clawbill_pipeline.repeats import repeated

NUMBER = "DECIMAL(38,12)"
_KEY = {
    "hour": "TIMESTAMPTZ",
    "tenant_id": "VARCHAR",
    "service": "VARCHAR",
    "dimensions": "VARCHAR",
    "window_start": "TIMESTAMPTZ",
}
_KEYS = ", ".join(_KEY)

#: Where the outbox is read, and what takes its place where tenants share customers: each one's part.
RECORDS, PARTS = "usage_records", "usage_record_parts"
#: DuckDB table → (its columns, the query of the ledger that fills it).
LEDGER_TABLES: dict[str, tuple[dict[str, str], str]] = {
    "metered": (
        {**_KEY, "revision": "INTEGER", "quantity": NUMBER, "events": "BIGINT"},
        f"SELECT DISTINCT ON ({_KEYS}) {_KEYS}, revision, quantity, events {Scope.rows('metered_usage')}"
        f" ORDER BY {_KEYS}, revision DESC",
    ),
    "rated": (
        {**_KEY, "quantity": NUMBER, "amount": NUMBER, "currency": "VARCHAR", "rated_at": "TIMESTAMPTZ"},
        f"SELECT DISTINCT ON ({_KEYS}) {_KEYS}, quantity, amount, currency, rated_at {Scope.rows('rated_usage')}"
        f" ORDER BY {_KEYS}, revision DESC",
    ),
    "failures": (
        {**_KEY, "metered_revision": "INTEGER", "kind": "VARCHAR", "error": "VARCHAR"},
        f"SELECT DISTINCT ON ({_KEYS}) {_KEYS}, metered_revision, kind, error {Scope.rows('rating_failures')}"
        f" ORDER BY {_KEYS}, metered_revision DESC",
    ),
    # One row a tenant, customer, meter and window: the newest revision, and what the delivered ones come to.
    "records": (
        {
            "hour": "TIMESTAMPTZ",
            "tenant_id": "VARCHAR",
            "service": "VARCHAR",
            "units": NUMBER,
            "exact_units": NUMBER,
            "state": "VARCHAR",
            "parked": "VARCHAR",
            "error": "VARCHAR",
            "delivered": NUMBER,
            "delivered_by_final": NUMBER,
            "settled_at": "TIMESTAMPTZ",
            "values": "VARCHAR",
        },
        f"""
        , f AS (SELECT * FROM unnest(CAST(:final_tenants AS text[]), CAST(:final_services AS text[]),
                                     CAST(:finals AS timestamptz[])) AS f (tenant_id, service, finalized_at)),
        r AS (SELECT x.* {Scope.rows(RECORDS)}),
        newest AS (SELECT DISTINCT ON (hour, customer_id, meter, window_start, tenant_id) * FROM r
                   ORDER BY hour, customer_id, meter, window_start, tenant_id, revision DESC),
        done AS (SELECT hour, customer_id, meter, window_start, tenant_id,
                   (array_agg(units ORDER BY revision DESC))[1] AS delivered,
                   (array_agg(units ORDER BY revision DESC)
                     FILTER (WHERE finalized_at IS NULL OR settled_at <= finalized_at))[1] AS delivered_by_final,
                   max(settled_at) AS settled_at, string_agg(value::text, ' ' ORDER BY revision) AS "values"
                 FROM r LEFT JOIN f USING (tenant_id, service) WHERE state = 'delivered'
                 GROUP BY hour, customer_id, meter, window_start, tenant_id)
        SELECT hour, tenant_id, service, units, exact_units, state, parked, error, coalesce(done.delivered, 0),
               coalesce(done.delivered_by_final, 0), done.settled_at, done."values"
        FROM newest LEFT JOIN done USING (hour, customer_id, meter, window_start, tenant_id)""",
    ),
    "held_hours": (
        {"hour": "TIMESTAMPTZ", "tenant_id": "VARCHAR", "service": "VARCHAR", "units": NUMBER},
        "SELECT DISTINCT ON (hour, tenant_id, service) hour, tenant_id, service, units "
        f"{Scope.rows('usage_summaries', 'period_start', hourly=False)} AND hour IS NOT NULL"
        " ORDER BY hour, tenant_id, service, id DESC",
    ),
    "hours": (
        {
            "hour": "TIMESTAMPTZ",
            "landed": "BIGINT",
            "landed_at": "TIMESTAMPTZ",
            "counted": "BIGINT",
            "shards": "VARCHAR",
        },
        """
        , l AS (SELECT hour, count(*) AS landed, max(landed_at) AS landed_at
                FROM landed_hours JOIN landings ON id = landing_id
                WHERE hour >= :first_hour AND hour < :last GROUP BY hour),
        m AS (SELECT hour, max(landings) AS counted FROM metered_hours
              WHERE hour >= :first_hour AND hour < :last GROUP BY hour),
        s AS (SELECT hour, string_agg(DISTINCT shard || '/' || shards, ', ') AS shards FROM metered_shards
              WHERE hour >= :first_hour AND hour < :last GROUP BY hour)
        SELECT hour, coalesce(l.landed, 0), l.landed_at, m.counted, s.shards
        FROM l FULL JOIN m USING (hour) LEFT JOIN s USING (hour)""",
    ),
    "conflicts": (
        {"landing_id": "BIGINT", "uri": "VARCHAR", "place": "VARCHAR", "raw": "VARCHAR"},
        "SELECT landing_id, uri, place, raw FROM quarantine WHERE reason = 'conflict' AND landing_id IN"
        " (SELECT landing_id FROM landed_hours WHERE hour >= :first_hour AND hour < :last)",
    ),
}


def read_books(
    db: duckdb.DuckDBPyConnection,
    connection: Connection,
    catalog: Catalog,
    lake: Lake,
    scope: Scope,
    finals: Mapping[tuple[str, str], datetime],
    sharing: Sharing,
) -> int:
    """Fills ``db`` with the books of ``scope``; returns how many lake files are not what the ledger says they are.

    A file that is gone or damaged counts as empty.
    """
    final_keys = sorted(finals)
    parameters = {
        **scope.parameters,
        "final_tenants": [tenant_id for tenant_id, _ in final_keys],
        "final_services": [service for _, service in final_keys],
        "finals": [finals[key] for key in final_keys],
    }
    with scratch("books") as folder:
        for name, (columns, query) in LEDGER_TABLES.items():
            file = folder / f"{name}.csv"
            query = query.replace(f"FROM {RECORDS} x", f"FROM {PARTS} x") if sharing.payers else query
            with file.open("wb") as out:
                out.writelines(copy_out(connection, f"WITH {scope.PERIODS} {query}", parameters))
            db.execute(
                f"CREATE TABLE {name} AS SELECT * FROM read_csv($file, header = false, auto_detect = false,"
                f" columns = {columns!r}, allow_quoted_nulls = false, delim = ',', quote = '\"', escape = '\"')",
                {"file": str(file)},
            )
    mapped = connection.execute(text("SELECT tenant_id, service FROM stripe_items")).all()
    put_context(db, catalog, scope, finals, [(row.tenant_id, row.service) for row in mapped])
    put(db, "payers", _PAYERS, sharing.payers.items())
    landed = connection.execute(
        text("SELECT hour, file, events FROM landed_hours WHERE hour >= :first_hour AND hour < :last"),
        scope.parameters,
    ).all()
    held = lake.rows([row.file for row in landed])
    put_events(db, catalog, lake, [(row.hour, row.file, row.events) for row in landed if held[row.file] is not None])
    return sum(held[row.file] != row.events for row in landed)


def put_context(
    db: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    scope: Scope,
    finals: Mapping[tuple[str, str], datetime],
    mapped: Iterable[tuple[str, str]],
) -> None:
    """The small tables that rows are judged by: ``tenants``, ``services``, ``finals``, ``mapped``, ``month``."""
    given = scope.parameters
    tenants = zip(given["ids"], given["starts"], given["ends"], strict=True)
    put(db, "tenants", _TENANTS, tenants)
    put(db, "month", _MONTH, [(given["month_start"], given["month_end"], given["tenant"], catalog.start)])
    put(
        db,
        "services",
        _SERVICES,
        [(name, s.bill_by == "amount", unit_scale(catalog, name)) for name, s in catalog.services.items()],
    )
    put(db, "finals", _FINALS, [(*key, at) for key, at in sorted(finals.items())])
    put(db, "mapped", _MAPPED, mapped)


_INSTANT = pa.timestamp("us", tz="UTC")
_TENANTS = pa.schema([("tenant_id", pa.string()), ("starts", _INSTANT), ("ends", _INSTANT)])
_MONTH = pa.schema([("starts", _INSTANT), ("ends", _INSTANT), ("tenant_id", pa.string()), ("begin", _INSTANT)])
_SERVICES = pa.schema([("service", pa.string()), ("by_amount", pa.bool_()), ("scale", pa.decimal128(38, 0))])
_FINALS = pa.schema([("tenant_id", pa.string()), ("service", pa.string()), ("finalized_at", _INSTANT)])
_PAYERS = pa.schema([("tenant_id", pa.string()), ("payer_id", pa.string())])
_MAPPED = pa.schema([("tenant_id", pa.string()), ("service", pa.string())])


def put(db: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, rows: Iterable[Sequence[Any]]) -> None:
    """Makes table ``name`` of ``rows``."""
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    db.register("incoming", table)
    db.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    db.unregister("incoming")


# Counted here once more, from the files alone: the first event of an id in an hour stands, what metering set aside as
# a conflict is left out, and an event belongs to the period by its own time. Plain arithmetic, since DuckDB's calendar
# functions cost more than the counting itself; unused columns are never read.
_FILES = "read_parquet(getvariable('files'), file_row_number = true, hive_partitioning = false"
_EVENTS = f"""
SELECT landing_id, source, uri, line, byte_offset, event_id, tenant_id, service, dimensions, quantity, event_time,
       file_row_number, '' AS unique_value
FROM {_FILES})
"""
# Files that landed before there were values to count lack the column.
_EVENTS_WITH_VALUES = f"""
SELECT * REPLACE (coalesce(unique_value, '') AS unique_value)
FROM (SELECT NULL::VARCHAR AS unique_value WHERE false UNION ALL BY NAME FROM {_FILES}, union_by_name = true))
"""
_LANDED = """
CREATE OR REPLACE TEMP VIEW landed AS
SELECT e.landing_id, e.source, e.uri, e.line, e.byte_offset, e.file_row_number, e.event_id, e.tenant_id, e.service,
       e.dimensions, e.quantity, e.event_time, e.unique_value, t.starts, t.ends,
       make_timestamptz(epoch_us(e.event_time) // 3600000000 * 3600000000) AS hour,
       hash(e.tenant_id, e.source, e.event_id) AS h
FROM ({events}) e LEFT JOIN tenants t ON t.tenant_id = e.tenant_id CROSS JOIN month m
WHERE e.event_time >= coalesce(t.starts, m.starts) AND e.event_time < coalesce(t.ends, m.ends)
  AND e.event_time >= m.begin AND (m.tenant_id IS NULL OR m.tenant_id = e.tenant_id)
"""
# Events whose id is not alone, or whose line was set aside: of these only, ids are compared. A hash only prefilters.
_WATCHED = r"""
CREATE OR REPLACE TEMP TABLE watched AS
SELECT h FROM repeated UNION
SELECT h FROM landed JOIN (
  SELECT DISTINCT landing_id, TRY_CAST(regexp_extract(place, '^line (\d+), byte ', 1) AS BIGINT) AS line FROM conflicts)
USING (landing_id, line)
"""
_SUSPECTS = "CREATE OR REPLACE TEMP TABLE suspects AS SELECT * FROM landed WHERE h IN (SELECT h FROM watched)"
_STANDING = """
CREATE OR REPLACE TEMP VIEW standing AS
SELECT * FROM suspects e
WHERE NOT EXISTS (SELECT 1 FROM conflicts c WHERE c.landing_id = e.landing_id AND c.uri = e.uri
                  AND c.place = 'line ' || e.line || ', byte ' || e.byte_offset
                  AND starts_with(c.raw, e.event_id || ' ' || e.service || ' '))
QUALIFY row_number() OVER (PARTITION BY tenant_id, source, event_id, hour
                           ORDER BY landing_id, line, file_row_number) = 1
"""
# All events, without the suspects, with those of them that stand: exact numbers may be taken away again.
_SUMMED = """
INSERT INTO events
SELECT hour, tenant_id, service, CAST(sum(events) AS BIGINT), CAST(sum(quantity) AS DECIMAL(38, 12))
FROM (SELECT hour, tenant_id, service, count(*) AS events, sum(quantity) AS quantity FROM landed {where} GROUP BY ALL
      UNION ALL
      SELECT hour, tenant_id, service, -count(*), -sum(quantity) FROM suspects {where} GROUP BY ALL
      UNION ALL
      SELECT hour, tenant_id, service, count(*), sum(quantity) FROM standing {where} GROUP BY ALL)
GROUP BY ALL HAVING sum(events) > 0
"""
# Services that are not summed, event by event.
_SPECIAL = """
INSERT INTO special BY NAME
SELECT tenant_id, service, dimensions, source, event_id, event_time, quantity, unique_value,
       greatest(hour, starts) AS window_start, least(hour + INTERVAL 1 HOUR, ends) AS window_end
FROM (FROM landed WHERE h NOT IN (SELECT h FROM watched) UNION ALL FROM standing)
WHERE list_contains($special, service)
"""
_NO_SPECIAL = f"""
CREATE TEMP TABLE special (tenant_id VARCHAR, service VARCHAR, dimensions VARCHAR, source VARCHAR, event_id VARCHAR,
  event_time TIMESTAMPTZ, quantity {NUMBER}, unique_value VARCHAR, window_start TIMESTAMPTZ, window_end TIMESTAMPTZ)
"""
_RECOUNTED = f"""
INSERT INTO events BY NAME
SELECT date_trunc('hour', window_start) AS hour, tenant_id, service, sum(events) AS events,
       CAST(sum(quantity) AS {NUMBER}) AS quantity
FROM recounted GROUP BY ALL
"""
_NO_EVENTS = (
    f"CREATE TABLE events (hour TIMESTAMPTZ, tenant_id VARCHAR, service VARCHAR, events BIGINT, quantity {NUMBER})"
)


def put_events(
    db: duckdb.DuckDBPyConnection, catalog: Catalog, lake: Lake, landed: Iterable[tuple[datetime, str, int]]
) -> None:
    """Table ``events``: deduplicated usage events of the period by hour, tenant and service, from the lake's files
    (hour, file, events). Quantities are counted as each service's aggregation has it."""
    ways: dict[str, list[str]] = {}
    for service in catalog.services:
        if (how := way(catalog, service)) != "sum":
            ways.setdefault(how, []).append(service)
    special = [service for services in ways.values() for service in services]
    given = {"special": special} if special else {}
    summed = _SUMMED.format(where="WHERE NOT list_contains($special, service)" if special else "")
    for statement in (_NO_EVENTS, _NO_SPECIAL, "SET preserve_insertion_order = false"):
        db.execute(statement)
    for files in portions(landed):
        with lake.at_hand(files) as paths:
            db.execute("SET VARIABLE files = $files", {"files": paths})
            db.execute(_LANDED.format(events=_EVENTS_WITH_VALUES if special else _EVENTS))
            db.register("repeated", repeated(db, "landed"))
            for statement in (_WATCHED, _SUSPECTS, _STANDING):
                db.execute(statement)
            db.execute(summed, given)
            if special:
                db.execute(_SPECIAL, given)
    for how, services in ways.items():
        of_way = ", ".join(f"'{service}'" for service in services)  # their names have no quotes
        db.execute(f"CREATE OR REPLACE TEMP VIEW of_way AS SELECT * FROM special WHERE service IN ({of_way})")
        recount(db, "of_way", how, "recounted")
        db.execute(_RECOUNTED)
