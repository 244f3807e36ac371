"""Joins the shards of an hour: which are done, and what they come to together. What a shard counts is in hours.

An hour is metered, in ``metered_hours``, once all shards of one layout are; until then everybody who asks is told that
it isn't. Shards of another number, or of before tenants came to share a customer, count for nothing in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.ledger.database import lock_all
from clawbill_pipeline.ledger.sharding import BUCKETS, Shard

#: Hours of ``[:start, :end)`` that a shard's buckets were metered for before, by whatever shards. For a query.
METERED_BEFORE = f"""
    SELECT s.hour FROM metered_shards s
    CROSS JOIN generate_series(CAST(:first_bucket AS integer), CAST(:last_bucket AS integer)) AS b (bucket)
    WHERE s.hour >= :start AND s.hour < :end AND s.shard = b.bucket * s.shards / {BUCKETS} + 1
    GROUP BY s.hour HAVING count(DISTINCT b.bucket) = CAST(:last_bucket AS integer) - :first_bucket + 1
"""  # noqa: S608 - of constants


@dataclass(frozen=True)
class Joined:
    """``awaited``: the shards that some of the hours still lack. ``lost``: events that landed and no shard has."""

    awaited: tuple[int, ...]
    lost: int


def write_shards(
    connection: Connection,
    shard: Shard,
    layout: str,
    hours: Sequence[Mapping[str, Any]],
    now: datetime,
    run_id: str,
) -> Joined:
    """Appends what a shard's turn came to in each of ``hours``, and each hour of which it was the last one awaited.

    Shards that end at once wait here for one another until their transactions end, so that the last one knows it.
    """
    given = {"shards": shard.of, "layout": layout, "shard": shard.number, "now": now, "run_id": run_id}
    connection.execute(_SHARDS, [{**given, **hour} for hour in hours])
    lock_all(connection, (("metering join", hour["hour"].isoformat()) for hour in hours))
    given |= {"hours": [hour["hour"] for hour in hours]}
    joined = connection.execute(_JOINED, given).all()
    at_once = {hour["hour"]: hour for hour in hours}
    # Where shards have seen different landings, the sum is put right by the turn that the hour is due for.
    lost = sum(
        at_once[row.hour]["landed"] - row.events
        for row in joined
        if row.least == row.most == at_once[row.hour]["landings"]
    )
    return Joined(tuple(connection.scalars(_AWAITED, given)), abs(lost))


_SHARDS = text("""
    INSERT INTO metered_shards (hour, shards, layout, shard, landings, recounts, events, duplicates, conflicts, changed,
                                metered_at, run_id)
    VALUES (:hour, :shards, :layout, :shard, :landings,
            coalesce((SELECT asked FROM hour_recounts WHERE hour = :hour), 0), :events, :duplicates, :conflicts,
            :changed, :now, :run_id)
    ON CONFLICT DO NOTHING
""")
_JOINED = text("""
    WITH newest AS (
        SELECT DISTINCT ON (hour, shard) * FROM metered_shards
        WHERE hour = ANY(CAST(:hours AS timestamptz[])) AND shards = :shards AND layout = :layout
        ORDER BY hour, shard, landings DESC, recounts DESC),
    joined AS (
        SELECT hour, min(landings) AS least, max(landings) AS most, min(recounts) AS recounts,
               CAST(sum(events) AS bigint) AS events, sum(duplicates) AS duplicates, sum(conflicts) AS conflicts,
               sum(changed) AS changed
        FROM newest GROUP BY hour HAVING count(*) = :shards),
    written AS (
        INSERT INTO metered_hours (hour, landings, events, duplicates, conflicts, changed, metered_at, run_id)
        SELECT hour, least, events, duplicates, conflicts, changed, :now, :run_id FROM joined ON CONFLICT DO NOTHING),
    recounted AS (
        UPDATE hour_recounts r SET done = j.recounts FROM joined j WHERE r.hour = j.hour AND r.done < j.recounts)
    SELECT hour, least, most, events FROM joined
""")
_AWAITED = text("""
    SELECT number FROM generate_series(1, CAST(:shards AS integer)) AS of (number)
    WHERE EXISTS (
        SELECT FROM unnest(CAST(:hours AS timestamptz[])) AS wanted (hour)
        WHERE NOT EXISTS (SELECT FROM metered_shards s
                          WHERE s.hour = wanted.hour AND s.shards = :shards AND s.layout = :layout
                            AND s.shard = of.number))
    ORDER BY number
""")
