"""Counts usage events: duplicates out, exact sums a tenant, service, dimension set and window. No ledger, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from clawbill_pipeline.duck import arrow, duck

#: A billing period's boundary that cuts an hour: (tenant, hour, boundary), all UTC.
Cut = tuple[str, datetime, datetime]


@dataclass(frozen=True)
class Count:
    """What ``count`` found. ``quantities`` has a row a window: hour, tenant_id, service, dimensions, window_start,
    quantity (DECIMAL(38,12)), events. ``conflicts`` has a row an event that contradicts an earlier one of its id.
    ``hours`` has events, duplicates and conflicts of each hour."""

    quantities: pa.Table
    conflicts: pa.Table
    hours: pa.Table


# The first event of an id stands: earliest landing, then earliest line. Equal ones after it are duplicates; ones
# with another service, quantity or time are conflicts. The struct carries all of it through one aggregation.
_FIRST = """
CREATE TEMP TABLE first AS
SELECT date_trunc('hour', event_time) AS hour, tenant_id, source, event_id,
       min_by({service: service, dimensions: dimensions, quantity: quantity, event_time: event_time},
              {landing: landing_id, line: line}) AS e,
       count(*) AS events,
       min(quantity) <> max(quantity) OR min(event_time) <> max(event_time)
           OR min(service) <> max(service) OR min(dimensions) <> max(dimensions) AS contradicted
FROM read_parquet($files) GROUP BY ALL
"""
_CONFLICTS = """
SELECT r.landing_id, r.source, r.uri, r.line, r.byte_offset, r.tenant_id, r.event_id, f.hour,
       r.service, r.dimensions, r.quantity, r.event_time, f.e AS first
FROM read_parquet($files) r JOIN first f
  ON f.contradicted AND r.tenant_id = f.tenant_id AND r.source = f.source AND r.event_id = f.event_id
 AND date_trunc('hour', r.event_time) = f.hour
WHERE {service: r.service, dimensions: r.dimensions, quantity: r.quantity, event_time: r.event_time} <> f.e
ORDER BY r.landing_id, r.line, r.service
"""
_QUANTITIES = """
SELECT f.hour, f.tenant_id, f.e.service AS service, f.e.dimensions AS dimensions,
       CASE WHEN f.e.event_time >= c.boundary THEN c.boundary ELSE f.hour END AS window_start,
       CAST(sum(f.e.quantity) AS DECIMAL(38, 12)) AS quantity, count(*) AS events
FROM first f LEFT JOIN cuts c ON c.tenant_id = f.tenant_id AND c.hour = f.hour
GROUP BY ALL ORDER BY ALL
"""
_HOURS = """
SELECT f.hour, CAST(sum(f.events) AS BIGINT) AS events, CAST(sum(f.events) AS BIGINT) - count(*) AS repeats
FROM first f GROUP BY f.hour ORDER BY f.hour
"""
_CUTS = pa.schema(
    [("tenant_id", pa.string()), ("hour", pa.timestamp("us", tz="UTC")), ("boundary", pa.timestamp("us", tz="UTC"))]
)


def count(files: Sequence[Path], cuts: Iterable[Cut] = ()) -> Count:
    """The quantities in the lake's ``files``, which hold whole hours: all files of an hour, or none of it.

    The same events in any order, split over any files, give the same quantities: an id belongs to one hour, and
    exact decimal sums don't depend on order.
    """
    rows = [dict(zip(_CUTS.names, cut, strict=True)) for cut in cuts]
    names = [str(file) for file in files]
    with duck() as db:
        db.register("cuts", pa.Table.from_pylist(rows, schema=_CUTS))
        db.execute(_FIRST, {"files": names})
        return Count(arrow(db, _QUANTITIES), arrow(db, _CONFLICTS, files=names), arrow(db, _HOURS))
