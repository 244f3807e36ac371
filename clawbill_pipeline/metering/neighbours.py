"""Finds ids that an event of another hour holds already, through a small index of ids an hour. No ledger, no clock.

An index has a row a source and tenant: its smallest and largest id and a hash of each id. Ids that sort by time never
overlap with those of another hour, and the hashes are not even read; otherwise equal hashes say which few events to
compare. What is compared never grows with history: it is the hours of the conflict window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import pyarrow as pa

from clawbill_pipeline.duck import arrow, duck
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger.sharding import ALL, Share
from clawbill_pipeline.metering.counting import TAKEN_SCHEMA, prepare


@dataclass(frozen=True)
class Hour:
    """An hour of the lake: all its event files, and where its index is or shall be."""

    hour: datetime
    files: tuple[str, ...]
    index: str


#: An index that was replaced is kept so long for those who read it.
_IN_USE = timedelta(hours=6)
#: What of an index says where the ids of its hour lie.
_RANGES = ("hour", "source", "tenant_id", "smallest", "largest")


_INDEX = """
COPY (SELECT hour, source, tenant_id, min(event_id) AS smallest, max(event_id) AS largest,
             list(hash(event_id)) AS hashes
      FROM landed GROUP BY ALL)
TO $target (FORMAT parquet, COMPRESSION uncompressed)
"""
# The folders' names look like Hive's, but the files have all there is to know.
_INDEXES = """
CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM read_parquet(getvariable('{name}'), hive_partitioning = false)
"""
_OVERLAPPING = """
CREATE TEMP TABLE overlapping AS
SELECT DISTINCT o.hour, n.hour AS other, o.source, o.tenant_id
FROM own o JOIN near n
  ON o.source = n.source AND o.tenant_id = n.tenant_id AND o.smallest <= n.largest AND n.smallest <= o.largest
 AND o.hour <> n.hour AND o.hour BETWEEN n.hour - $window AND n.hour + $window
"""
_SUSPECTS = """
CREATE TEMP TABLE suspects AS
SELECT DISTINCT p.hour, p.other, p.source, p.tenant_id, o.h
FROM overlapping p
JOIN (SELECT hour, source, tenant_id, unnest(hashes) AS h FROM own
      SEMI JOIN overlapping USING (hour, source, tenant_id)) o USING (hour, source, tenant_id)
JOIN (SELECT hour, source, tenant_id, unnest(hashes) AS h FROM near
      SEMI JOIN (SELECT other AS hour, source, tenant_id FROM overlapping) USING (hour, source, tenant_id)) n
  ON n.hour = p.other AND n.source = p.source AND n.tenant_id = p.tenant_id AND n.h = o.h
"""
# Whose event landed first has the id, for good: what lands later can never take it away.
_TAKEN = """
WITH earliest AS (
    SELECT hour, tenant_id, source, event_id, min(place) AS place, arg_min(said, place) AS e
    FROM (SELECT *, {landing: landing_id, line: line, time: event_time} AS place FROM landed
          WHERE (source, tenant_id, hash(event_id)) IN (SELECT (source, tenant_id, h) FROM suspects))
    GROUP BY ALL)
SELECT o.hour, o.tenant_id, o.source, o.event_id, arg_min(n.e, n.place) AS first
FROM earliest o JOIN earliest n
  ON o.tenant_id = n.tenant_id AND o.source = n.source AND o.event_id = n.event_id AND n.place < o.place
 AND o.hour <> n.hour AND o.hour BETWEEN n.hour - $window AND n.hour + $window
WHERE o.hour IN (SELECT hour FROM suspects) GROUP BY ALL ORDER BY ALL
"""


def taken_elsewhere(
    lake: Lake,
    own: Sequence[Hour],
    near: Sequence[Hour],
    window: timedelta,
    *,
    values: bool = False,
    share: Share = ALL,
    memory_limit: str | None = None,
) -> pa.Table:
    """The ids of the hours ``own`` that an event of another hour, at most ``window`` away, had before: TAKEN_SCHEMA.

    ``near`` are all hours within the window, ``own`` among them; ``values`` and ``share`` as in ``counting.prepare``.
    Missing indexes are made, of the share's tenants alone.
    """
    if len(near) < 2:
        return TAKEN_SCHEMA.empty_table()
    _make_missing(lake, near, share, memory_limit)
    with duck(memory_limit=memory_limit) as db:
        with _opened(db, lake, own, near, _RANGES):
            db.execute(_OVERLAPPING, {"window": window})
        paired = {hour for pair in db.sql("SELECT DISTINCT hour, other FROM overlapping").fetchall() for hour in pair}
        if not paired:
            return TAKEN_SCHEMA.empty_table()
        with _opened(db, lake, [h for h in own if h.hour in paired], [h for h in near if h.hour in paired]):
            db.execute(_SUSPECTS)
        hours = {hour for pair in db.sql("SELECT DISTINCT hour, other FROM suspects").fetchall() for hour in pair}
        if not hours:
            return TAKEN_SCHEMA.empty_table()
        with lake.at_hand([file for hour in near if hour.hour in hours for file in hour.files]) as files:
            prepare(db, files, values=values, share=share)
            return arrow(db, _TAKEN, window=window).cast(TAKEN_SCHEMA)


@contextmanager
def _opened(
    db: duckdb.DuckDBPyConnection,
    lake: Lake,
    own: Sequence[Hour],
    near: Sequence[Hour],
    columns: Sequence[str] | None = None,
) -> Iterator[None]:
    """Views ``own`` and ``near`` of the indexes of these hours, with at least these columns."""
    with lake.at_hand([hour.index for hour in near], columns) as paths:
        at = dict(zip((hour.index for hour in near), paths, strict=True))
        for name, hours in (("own", own), ("near", near)):
            db.execute(f"SET VARIABLE {name} = $files", {"files": [at[hour.index] for hour in hours]})
            db.execute(_INDEXES.format(name=name))
        yield


def _make_missing(lake: Lake, hours: Sequence[Hour], share: Share, memory_limit: str | None) -> None:
    missing = lake.missing([hour.index for hour in hours])
    for hour in hours:
        if hour.index in missing:
            with (
                lake.at_hand(hour.files) as files,
                lake.folder.made(hour.index) as target,
                duck(memory_limit=memory_limit) as db,
            ):
                prepare(db, files, share=share)
                db.execute(_INDEX, {"target": str(target)})
            # The index of the hour as it was before. Another worker may have it open, or be about to.
            lake.folder.prune(hour.index, _IN_USE)
