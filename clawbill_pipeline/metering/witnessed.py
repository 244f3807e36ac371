"""What the events of a source with a witness come to, copies told apart, so that the two can be compared.

A gateway counts every usage line of every session. Lines that forks copied into other sessions, and copies in
archives, are found here by the places that one event id has; a line that was read twice has one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import pyarrow as pa
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.sources import OpenClawFleet
from clawbill_pipeline.duck import arrow, duck
from clawbill_pipeline.ledger.database import copy_arrow
from clawbill_pipeline.ledger.sharding import ALL, Share
from clawbill_pipeline.metering.counting import events_of

# Transcripts of sessions that are there no longer: OpenClaw names them so.
_ARCHIVE = r"\.jsonl\.(deleted|reset|imported)|session-sqlite-import-archive/"
_SHOWN = """
CREATE TEMP VIEW shown AS
SELECT * FROM read_parquet(getvariable('files'), union_by_name = true, hive_partitioning = false,
                           file_row_number = true) {share}
"""
# As everywhere, the first event of an id in an hour stands.
_WITNESSED = f"""
WITH events AS (
  SELECT NULL::DECIMAL(38, 12) AS cost WHERE false
  UNION ALL BY NAME
  FROM shown),
ids AS (
  SELECT date_trunc('hour', event_time) AS hour, source, tenant_id, event_id,
         arg_min({{service: service, quantity: quantity, cost: cost}},
                 {{landing: landing_id, line: line, row: file_row_number}}) AS e,
         count(DISTINCT {{uri: uri, line: line}}) FILTER (NOT regexp_matches(uri, '{_ARCHIVE}')) AS live,
         count(DISTINCT {{uri: uri, line: line}}) FILTER (regexp_matches(uri, '{_ARCHIVE}')) AS kept
  FROM events WHERE list_contains($sources, source) GROUP BY ALL),
copies AS (
  SELECT *, greatest(live - 1, 0) AS forked, kept - CASE WHEN live = 0 THEN 1 ELSE 0 END AS archived FROM ids)
SELECT hour, source, tenant_id, e.service AS service, landings,
       CAST(sum(e.quantity) AS DECIMAL(38, 12)) AS quantity, CAST(sum(e.cost) AS DECIMAL(38, 12)) AS cost,
       CAST(sum(forked) AS BIGINT) AS forked, CAST(sum(forked * e.quantity) AS DECIMAL(38, 12)) AS forked_quantity,
       CAST(sum(archived) AS BIGINT) AS archived,
       CAST(sum(archived * e.quantity) AS DECIMAL(38, 12)) AS archived_quantity
FROM copies JOIN hours USING (hour) GROUP BY ALL ORDER BY ALL
"""  # noqa: S608 - of constants


def with_witnesses(catalog: Catalog) -> list[str]:
    """The sources that have one."""
    return [s.name for s in catalog.sources if isinstance(s, OpenClawFleet) and s.witnesses is not None]


def witnessed(
    files: Sequence[str],
    sources: Sequence[str],
    landings: Mapping[datetime, int],
    *,
    share: Share = ALL,
    memory_limit: str | None = None,
) -> pa.Table:
    """A row an hour, source, tenant of ``share`` and service of ``sources`` in the lake's ``files``, as witnessed_usage
    has it.

    ``landings``: the hours, and how many landings touch each.
    """
    hours = {"hour": pa.array(landings, pa.timestamp("us", tz="UTC")), "landings": pa.array(landings.values())}
    with duck(memory_limit=memory_limit) as db:
        db.register("hours", pa.table(hours))
        events_of(db, files, share, _SHOWN)
        return arrow(db, _WITNESSED, sources=list(sources))


def write_witnessed(connection: Connection, rows: pa.Table, now: datetime, run_id: str) -> None:
    """Appends ``rows``; those that are there already stay as they are."""
    connection.execute(_TEMPORARY)
    copy_arrow(connection, "witnessed", rows)
    connection.execute(_APPEND, {"now": now, "run_id": run_id})


_TEMPORARY = text("""
    CREATE TEMP TABLE witnessed ON COMMIT DROP AS
    SELECT hour, source, tenant_id, service, landings, quantity, cost, forked, forked_quantity, archived,
           archived_quantity
    FROM witnessed_usage WITH NO DATA
""")
_APPEND = text("""
    INSERT INTO witnessed_usage (hour, source, tenant_id, service, landings, quantity, cost, forked, forked_quantity,
                                 archived, archived_quantity, metered_at, run_id)
    SELECT hour, source, tenant_id, service, landings, quantity, cost, forked, forked_quantity, archived,
           archived_quantity, :now, :run_id
    FROM witnessed ON CONFLICT DO NOTHING
""")
