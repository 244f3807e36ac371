"""Whose turn it is: locks that keep runs of the same hours from each other, and the name of who is waited for.

Runs that do the same at the same time, launched twice or by two daemons by mistake, wait for one another; the later
one then sees all that the earlier one has done, and what landed since. Locks are the transaction's, so that a worker
that dies blocks nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from clawbill_pipeline.ledger.database import STRIPES, hold, lock_key, lock_keys
from clawbill_pipeline.ledger.sharding import Shard

log = logging.getLogger(__name__)

#: Who holds a lock shorter than that is not worth a word.
_PATIENCE = "200ms"


def hours_turn(
    connection: Connection, station: str, hours: Sequence[datetime], *, run_id: str, shard: Shard | None
) -> frozenset[str]:
    """Waits until nobody else is at the station's work on these hours and tenants; holds it until the transaction ends.

    Shards of an hour go side by side, also those of another number of shards where they have no tenant in common. For
    all tenants it is the lock of ``lock_all`` by the station's name and the hour. Returns who was waited for.
    """
    stripes = lock_keys((station, hour.isoformat()) for hour in hours)
    if shard is None or len(shard.buckets) * len(hours) > STRIPES:
        return turn(connection, stripes, run_id=run_id, work=station)
    own = [lock_key(station, hour.isoformat(), str(part)) for hour in hours for part in shard.buckets]
    return turn(connection, own, beside=stripes, run_id=run_id, work=station)


def turn(
    connection: Connection, keys: Sequence[int], *, run_id: str, work: str, beside: Sequence[int] = ()
) -> frozenset[str]:
    """Waits for, and holds until the transaction ends, the locks of ``keys``; those of ``beside`` it shares.

    Says in the log, and returns, which runs it waited for.
    """
    shared = {"beside": sorted(beside)}
    # So that whoever waits for this one can tell its name; and so can a person, in pg_stat_activity.
    connection.execute(_NAMED, {"name": named(run_id)})
    waited: frozenset[str] = frozenset()
    try:
        with connection.begin_nested():
            connection.execute(_AT_ONCE, {"patience": _PATIENCE})
            connection.execute(_SHARE, shared)
            hold(connection, keys)
            connection.execute(_AT_ONCE, {"patience": "0"})
    except OperationalError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        waited = holders(connection, keys, beside)
        tell(waited, work)
        connection.execute(_SHARE, shared)
        hold(connection, keys)
    return waited


def holders(connection: Connection, keys: Sequence[int], beside: Sequence[int] = ()) -> frozenset[str]:
    """Whose sessions hold locks of ``keys``, or hold those of ``beside`` alone."""
    return frozenset(connection.scalars(_HOLDERS, {"keys": list(keys), "beside": list(beside)}))


def tell(waited: frozenset[str], work: str) -> None:
    """Says in the log who is waited for."""
    about = {"work": work, "held_by": sorted(waited)}
    # A warning, since that is what a run shows without any setting for logs.
    log.warning("another run is at the same %s, waiting for it: %s", work, whom(waited), extra={"fields": about})


def named(run_id: str) -> str:
    """What a database session of the run is called."""
    return f"run {run_id}"[:63]


def whom(waited: Collection[str]) -> str | None:
    """Who was waited for, as the asset's metadata shows it; None for nobody."""
    return ", ".join(sorted(waited)) or None


_NAMED = text("SELECT set_config('application_name', :name, true)")
_AT_ONCE = text("SELECT set_config('lock_timeout', :patience, true)")
# In order, so that two never wait in a ring: first what is shared, then what is held alone.
_SHARE = text("SELECT pg_advisory_xact_lock_shared(k) FROM unnest(CAST(:beside AS bigint[])) k")
_HOLDERS = text("""
    SELECT DISTINCT coalesce(nullif(a.application_name, ''), 'the session ' || l.pid)
    FROM (SELECT pid, mode, (CAST(CAST(classid AS text) AS bigint) << 32) | CAST(CAST(objid AS text) AS bigint) AS key
          FROM pg_locks
          WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) l
    JOIN pg_stat_activity a USING (pid)
    WHERE key = ANY(CAST(:keys AS bigint[])) OR key = ANY(CAST(:beside AS bigint[])) AND mode = 'ExclusiveLock'
""")
