"""What a person does with the outbox: look at it, try again, park. Nothing is sent from here (``sending``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.delivery.backends import UNSENDABLE
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import refuse_archived


class NotFound(LookupError):
    """No record of the outbox has that identifier."""


@dataclass(frozen=True)
class Which:
    """Records of the outbox: all conditions that are given hold. ``parked`` is a reason, or "any".

    A tenant's records are all that it has a part in: where tenants share a customer, a record is all of theirs.
    """

    identifiers: tuple[str, ...] = ()
    tenant_id: str | None = None
    service: str | None = None
    state: str | None = None
    parked: str | None = None


@dataclass(frozen=True)
class Listed:
    """A record in a list."""

    identifier: str
    tenant_id: str
    service: str
    window_start: datetime
    revision: int
    value: Decimal
    backend: str
    state: str
    parked: str | None
    attempts: int
    next_attempt_at: datetime | None
    error: str | None


@dataclass(frozen=True)
class Count:
    """How many records are in a state, and parked for a reason or not."""

    state: str
    parked: str | None
    records: int
    tenants: int
    oldest: datetime


def counts(ledger: Ledger, delivered_in: tuple[datetime, datetime] | None = None) -> list[Count]:
    """The outbox by state and reason: all that is not delivered, and what is, of the half-open hours if given."""
    since, until = delivered_in or (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 1, tzinfo=UTC))
    with ledger.transaction() as connection:
        return [Count(*row) for row in connection.execute(_COUNTS, {"since": since, "until": until})]


# Two questions to two indexes: nearly all that there is was delivered long ago.
_COUNTS = text("""
SELECT state, parked, count(*), count(DISTINCT tenant_id), min(window_start) FROM (
    SELECT state, parked, tenant_id, window_start FROM usage_records WHERE state <> 'delivered'
    UNION ALL
    SELECT state, parked, tenant_id, window_start FROM usage_records
    WHERE hour >= :since AND hour < :until AND state = 'delivered'
) records
GROUP BY state, parked ORDER BY state, parked NULLS FIRST
""")


def listed(ledger: Ledger, which: Which, limit: int = 100) -> list[Listed]:
    """The records that are meant, oldest window first; without a condition, those that are not delivered."""
    unsettled = "" if which != Which() else " AND (state <> 'delivered')"
    conditions, given = _conditions(which)
    query = f"""
        SELECT identifier, tenant_id, service, window_start, revision, value, backend, state, parked, attempts,
            next_attempt_at, error
        FROM usage_records WHERE {conditions}{unsettled}
        ORDER BY window_start, tenant_id, service, revision LIMIT :limit
    """  # noqa: S608 -- own text
    with ledger.transaction() as connection:
        return [Listed(*row) for row in connection.execute(text(query), given | {"limit": limit})]


def show(ledger: Ledger, identifier: str) -> dict[str, Any]:
    """All that is known of a record, with its trail. Raises NotFound, and ArchiveError where its month is archived."""
    hour = _hour(identifier)
    given = {"hour": hour, "identifier": identifier}
    with ledger.transaction() as connection:
        refuse_archived(connection, hour, hour + HOUR)
        row = connection.execute(_RECORD, given).one_or_none()
        if row is None:
            raise NotFound(f"no usage record {identifier!r}; `clawbill outbox list` shows identifiers")
        trail = connection.execute(_TRAIL, given).all()
    return row._asdict() | {"trail": [entry._asdict() for entry in trail]}


_RECORD = text("SELECT * FROM usage_records WHERE hour = :hour AND identifier = :identifier")
# What Stripe's reports said of it is in the audit trail, with the other things that webhooks told.
_TRAIL = text("""
SELECT at, kind, detail FROM (
    SELECT at, id, kind, detail FROM usage_record_trail WHERE hour = :hour AND identifier = :identifier
    UNION ALL
    SELECT at, id, kind, detail FROM audit_trail WHERE kind = 'usage_record.rejected' AND subject = :identifier
) entries ORDER BY at, id
""")


def retry(ledger: Ledger, which: Which, *, now: datetime, by: str) -> int:
    """Has records tried again at the next delivery; returns how many. ``by`` is who wants it.

    What is parked or waits flows again under its identifier. A rejected record keeps its state, since its identifier
    is used up: the next planning writes a new revision in its place. A value that Stripe never takes stays parked.
    """
    conditions, given = _conditions(which)
    query = f"""
        UPDATE usage_records
        SET parked = CASE WHEN state = 'rejected' THEN 'replan' END, next_attempt_at = NULL
        WHERE {conditions} AND state <> 'delivered' AND state <> 'sending'
          AND (parked IS NOT NULL OR next_attempt_at IS NOT NULL OR state = 'rejected')
          AND parked IS DISTINCT FROM 'replan' AND parked IS DISTINCT FROM :unsendable
        RETURNING hour, identifier, tenant_id
    """  # noqa: S608 -- own text
    with ledger.transaction() as connection:
        moved = connection.execute(text(query), given | {"unsendable": UNSENDABLE}).all()
        _note(connection, "usage_record.retried", moved, now, {"by": by})
    return len(moved)


def park(ledger: Ledger, which: Which, *, reason: str, now: datetime, by: str) -> int:
    """Holds records back until ``retry``; returns how many. What is being sent at this moment is not held back.

    Raises ValueError for ``Which()``: parking everything is never meant.
    """
    if which == Which():
        raise ValueError("say which records: by identifier, tenant, service or state")
    conditions, given = _conditions(which)
    query = f"""
        UPDATE usage_records SET parked = :reason
        WHERE {conditions} AND state IN ('planned', 'unknown') AND state <> 'delivered' AND parked IS NULL
        RETURNING hour, identifier, tenant_id
    """  # noqa: S608 -- own text
    with ledger.transaction() as connection:
        moved = connection.execute(text(query), given | {"reason": reason}).all()
        _note(connection, "usage_record.parked", moved, now, {"by": by, "reason": reason})
    return len(moved)


def _conditions(which: Which) -> tuple[str, dict[str, Any]]:
    conditions, given = ["true"], dict[str, Any]()
    if which.identifiers:
        # An identifier begins with its window: that names the partition, and makes it a look-up by primary key.
        conditions.append("hour = ANY(CAST(:hours AS timestamptz[])) AND identifier = ANY(:identifiers)")
        given |= {"hours": [_hour(name) for name in which.identifiers], "identifiers": list(which.identifiers)}
    if which.tenant_id is not None:
        conditions.append("(tenant_id = :tenant_id OR jsonb_exists(parts, :tenant_id))")
        given["tenant_id"] = which.tenant_id
    for name in ("service", "state"):
        if (value := getattr(which, name)) is not None:
            conditions.append(f"{name} = :{name}")
            given[name] = value
    if which.parked == "any":
        conditions.append("parked IS NOT NULL")
    elif which.parked is not None:
        conditions.append("parked = :parked")
        given["parked"] = which.parked
    return " AND ".join(conditions), given


def _hour(identifier: str) -> datetime:
    try:
        return datetime.strptime(identifier[:16], "%Y%m%dT%H%M%SZ").replace(minute=0, second=0, tzinfo=UTC)
    except ValueError:
        raise NotFound(
            f"{identifier!r} is no identifier of a usage record; `clawbill outbox list` shows them"
        ) from None


def _note(connection: Connection, kind: str, moved: Sequence[Any], now: datetime, detail: dict[str, Any]) -> None:
    rows = [{**row._asdict(), "at": now, "kind": kind, "detail": json.dumps(detail)} for row in moved]
    if rows:
        connection.execute(_NOTE, rows)


_NOTE = text("""
INSERT INTO usage_record_trail (hour, identifier, at, kind, tenant_id, detail)
VALUES (:hour, :identifier, :at, :kind, :tenant_id, CAST(:detail AS jsonb))
""")
