"""The outbox in the ledger: claiming lanes, reading what is due, moving delivery states. Calls nobody, decides nothing.

A lane is a Stripe customer and meter: Stripe takes one call at a time for each. Whoever holds a lane's advisory lock
may send its records; the lock belongs to a database session, so a worker that dies lets go of its lanes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock_key
from clawbill_pipeline.ledger.sharding import Shard, in_share, share_of
from clawbill_pipeline.ledger.turns import holders, named

Lane = tuple[str, str]


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A record that is still open. ``meter_id`` is None where the tenant is mapped no more."""

    hour: datetime
    identifier: str
    tenant_id: str
    service: str
    customer_id: str
    meter: str
    backend: str
    window_start: datetime
    revision: int
    value: Decimal
    event_timestamp: datetime
    payload: dict[str, Any]
    payload_sha256: str
    state: str
    attempts: int
    first_sent_at: datetime | None
    next_attempt_at: datetime | None
    parked: str | None
    meter_id: str | None

    @property
    def lane(self) -> Lane:
        return self.customer_id, self.meter

    @property
    def doubtful(self) -> bool:
        """Whether it may be at Stripe already: it was being sent, or nobody knows what became of it."""
        return self.state in ("sending", "unknown")


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of a record. ``at`` is when; for a settled one (delivered, rejected) that is its ``settled_at``.

    ``answer`` is JSON text.
    """

    row: OutboxRow
    state: str
    at: datetime
    parked: str | None = None
    error: str | None = None
    answer: str | None = None
    next_attempt_at: datetime | None = None


class Claims:
    """The lanes that this worker holds. Not for several threads at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def take(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Those of ``lanes`` that nobody else holds; they are this worker's until released."""
        keys = [lock_key("lane", *lane) for lane in lanes]
        got = self._connection.execute(_TAKE, {"keys": keys}).all()
        mine = {row.key for row in got if row.taken}
        return [lane for lane, key in zip(lanes, keys, strict=True) if key in mine]

    def holders(self, lanes: Iterable[Lane]) -> frozenset[str]:
        """Who holds those of ``lanes`` that somebody else does."""
        return holders(self._connection, [lock_key("lane", *lane) for lane in lanes])

    def release(self, lanes: Iterable[Lane]) -> None:
        self._connection.execute(_RELEASE, {"keys": [lock_key("lane", *lane) for lane in lanes]})


_TAKE = text("SELECT key, pg_try_advisory_lock(key) AS taken FROM unnest(CAST(:keys AS bigint[])) AS keys (key)")
_NAMED = text("SELECT set_config('application_name', :name, false)")
_RELEASE = text("SELECT pg_advisory_unlock(key) FROM unnest(CAST(:keys AS bigint[])) AS keys (key)")


@contextmanager
def claiming(ledger: Ledger, run_id: str) -> Iterator[Claims]:
    """A session of the run's own that holds lanes; on the way out it is closed, and all of them are free."""
    with ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            connection.execute(_NAMED, {"name": named(run_id)})
            yield Claims(connection)
        finally:
            # Not back to the pool: a session that still holds a lock would keep it.
            connection.invalidate()


def due_lanes(ledger: Ledger, now: datetime, shard: Shard | None = None) -> list[Lane]:
    """Lanes with a record that is due, of the shard's tenants or of all, longest waiting first."""
    with ledger.transaction() as connection:
        given = {"now": now, **share_of(connection, shard).parameters}
        return [(row.customer_id, row.meter) for row in connection.execute(_DUE_LANES, given)]


_DUE_LANES = text(f"""
SELECT customer_id, meter FROM usage_records
WHERE state <> 'delivered' AND state IN ('planned', 'sending', 'unknown') AND parked IS NULL
  AND (next_attempt_at IS NULL OR next_attempt_at <= :now) AND {in_share("tenant_id")}
GROUP BY customer_id, meter ORDER BY min(window_start), customer_id, meter
""")  # noqa: S608 - of constants


def open_rows(ledger: Ledger, lanes: Sequence[Lane]) -> dict[Lane, list[OutboxRow]]:
    """All open records of the lanes, parked ones too, by window and revision."""
    found: dict[Lane, list[OutboxRow]] = {lane: [] for lane in lanes}
    given = {"customers": [lane[0] for lane in lanes], "meters": [lane[1] for lane in lanes]}
    with ledger.transaction() as connection:
        for row in connection.execute(_OPEN_ROWS, given):
            found[row.customer_id, row.meter].append(OutboxRow(*row))
    return found


_OPEN_ROWS = text("""
SELECT u.hour, u.identifier, u.tenant_id, u.service, u.customer_id, u.meter, u.backend, u.window_start, u.revision,
    u.value, u.event_timestamp, u.payload, u.payload_sha256, u.state, u.attempts, u.first_sent_at, u.next_attempt_at,
    u.parked, i.meter_id
FROM usage_records u
JOIN unnest(CAST(:customers AS text[]), CAST(:meters AS text[])) AS lane (customer_id, meter)
  ON lane.customer_id = u.customer_id AND lane.meter = u.meter
LEFT JOIN stripe_items i ON i.tenant_id = u.tenant_id AND i.service = u.service
WHERE u.state <> 'delivered' AND u.state IN ('planned', 'sending', 'unknown')
ORDER BY u.customer_id, u.meter, u.window_start, u.revision
""")


def mark_sending(ledger: Ledger, rows: Sequence[OutboxRow], now: datetime) -> None:
    """Commits that these records are about to be sent."""
    given = {"hours": [row.hour for row in rows], "identifiers": [row.identifier for row in rows], "now": now}
    with ledger.transaction() as connection:
        connection.execute(_MARK_SENDING, given)


_MARK_SENDING = text("""
UPDATE usage_records u
SET state = 'sending', attempts = attempts + 1, first_sent_at = coalesce(first_sent_at, :now), next_attempt_at = NULL
FROM unnest(CAST(:hours AS timestamptz[]), CAST(:identifiers AS text[])) AS given (hour, identifier)
WHERE u.hour = given.hour AND u.identifier = given.identifier
""")


def write_moves(ledger: Ledger, moves: Sequence[Move], run_id: str) -> None:
    """Commits what became of records, with an entry in their trail for each one delivered."""
    rows = [
        {
            "hour": move.row.hour.isoformat(),
            "identifier": move.row.identifier,
            "state": move.state,
            "at": move.at.isoformat(),
            "parked": move.parked,
            "error": move.error,
            "answer": move.answer,
            "next_attempt_at": move.next_attempt_at and move.next_attempt_at.isoformat(),
        }
        for move in moves
    ]
    with ledger.transaction() as connection:
        # One JSON text: as eight arrays it takes the driver several times as long.
        connection.execute(_WRITE_MOVES, {"moves": json.dumps(rows), "run_id": run_id})


_WRITE_MOVES = text("""
WITH moved AS (
    UPDATE usage_records u
    SET state = m.state, parked = m.parked, error = m.error, next_attempt_at = m.next_attempt_at,
        answer = coalesce(CAST(m.answer AS jsonb), u.answer),
        settled_at = CASE WHEN m.state IN ('delivered', 'rejected') THEN m.at END
    FROM json_to_recordset(CAST(:moves AS json)) AS m (
        hour timestamptz, identifier text, state text, at timestamptz, parked text, error text, answer text,
        next_attempt_at timestamptz
    )
    WHERE u.hour = m.hour AND u.identifier = m.identifier AND u.state <> 'delivered'
    RETURNING u.*
)
INSERT INTO usage_record_trail (hour, identifier, at, kind, tenant_id, detail)
SELECT hour, identifier, settled_at, 'usage_record.created', tenant_id, jsonb_build_object(
    'value', value::text, 'run_id', CAST(:run_id AS text)
)
FROM moved WHERE state = 'delivered'
""")


def delivered_before(ledger: Ledger, row: OutboxRow) -> Decimal:
    """The sum of the values that earlier revisions of the row's window have delivered."""
    given = {
        "hour": row.hour,
        "customer_id": row.customer_id,
        "meter": row.meter,
        "window_start": row.window_start,
        "revision": row.revision,
    }
    with ledger.transaction() as connection:
        return Decimal(connection.scalar(_DELIVERED_BEFORE, given) or 0)


_DELIVERED_BEFORE = text("""
SELECT sum(value) FROM usage_records
WHERE hour = :hour AND customer_id = :customer_id AND meter = :meter AND window_start = :window_start
  AND revision < :revision AND state = 'delivered'
""")


def take_rejections(ledger: Ledger, now: datetime) -> int:
    """Marks delivered records that Stripe named as rejected later, and parks what their lane still holds if the
    customer or the meter is the reason. Returns how many were marked.

    Reports name samples only, and of a call with many records none: the rest is found by comparing totals.
    """
    with ledger.transaction() as connection:
        told = connection.execute(_TAKE_REJECTIONS, {"now": now}).all()
        hopeless = [row for row in told if row.code in _HOPELESS]
        if hopeless:
            given = {
                "customers": [row.customer_id for row in hopeless],
                "meters": [row.meter for row in hopeless],
                "codes": [_HOPELESS[row.code] for row in hopeless],
                "errors": [row.error for row in hopeless],
            }
            connection.execute(_PARK_LANES, given)
    return len(told)


#: Codes of Stripe's reports that hold for all of a lane, and why it is parked.
_HOPELESS = {
    "meter_event_customer_not_found": "no_such_customer",
    "archived_meter": "no_such_meter",
    "no_meter": "no_such_meter",
}

_TAKE_REJECTIONS = text("""
WITH told AS (
    SELECT DISTINCT ON (subject) subject, detail,
        CASE WHEN subject ~ '^[0-9]{8}T[0-9]{6}Z:' THEN
            date_trunc('hour', to_timestamp(left(subject, 15), 'YYYYMMDD"T"HH24MISS'))
        END AS hour
    FROM audit_trail WHERE kind = 'usage_record.rejected' ORDER BY subject, id DESC
)
UPDATE usage_records u
SET state = 'rejected', settled_at = :now, error = concat_ws(': ', told.detail->>'code', told.detail->>'message')
FROM told
WHERE u.hour = told.hour AND u.identifier = told.subject AND u.state = 'delivered'
RETURNING u.customer_id, u.meter, u.error, told.detail->>'code' AS code
""")
_PARK_LANES = text("""
UPDATE usage_records u SET parked = lane.code, error = lane.error
FROM (
    SELECT DISTINCT ON (customer_id, meter) * FROM unnest(
        CAST(:customers AS text[]), CAST(:meters AS text[]), CAST(:codes AS text[]), CAST(:errors AS text[])
    ) AS lane (customer_id, meter, code, error)
) AS lane
WHERE u.customer_id = lane.customer_id AND u.meter = lane.meter AND u.parked IS NULL
  AND u.state <> 'delivered' AND u.state IN ('planned', 'unknown')
""")
