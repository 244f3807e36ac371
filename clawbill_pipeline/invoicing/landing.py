"""How a Stripe event lands: its envelope and the one insert that the webhook and the sweep share. Not what it means.

A raw body stays as it was signed. Nothing here verifies a signature: that is the webhook's (``web``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection

from clawbill_pipeline.ledger.database import lock_key
from clawbill_pipeline.ledger.tables import SCHEMA

Via = Literal["webhook", "sweep"]

_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
_TYPE = re.compile(r"[\x21-\x7e]{1,255}")


class NotAnEvent(ValueError):
    """The body is no event of the account that this ledger keeps. ``reason`` is a short code, counted by it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Envelope:
    """What is known of an event without knowing its type. ``created`` is Stripe's time, to the second if not thin."""

    event_id: str
    type: str
    object_id: str | None
    api_version: str | None
    livemode: bool
    created: datetime


def read_envelope(body: str) -> Envelope:
    """The envelope of a snapshot event (``object: event``) or a thin one (``v2.core.event``).

    Raises NotAnEvent for anything else, and for an event of another account: a platform's events of a connected
    account bear ``account``, thin ones ``context``.
    """
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise NotAnEvent("not_json", "the body is not JSON") from None
    if not isinstance(event, dict) or event.get("object") not in ("event", "v2.core.event"):
        raise NotAnEvent("not_an_event", "the body is not a Stripe event: object is neither event nor v2.core.event")
    if event.get("account") or event.get("context"):
        raise NotAnEvent("other_account", "the event is another account's: list only your own account's events here")
    livemode = event.get("livemode")
    if not isinstance(livemode, bool):
        raise NotAnEvent("not_an_event", "livemode is neither true nor false")
    thin = event["object"] == "v2.core.event"
    return Envelope(
        event_id=_text(event, "id", _ID),
        type=_text(event, "type", _TYPE),
        object_id=_object_id(event, thin=thin),
        api_version=_text(event, "api_version", _TYPE) if event.get("api_version") else None,
        livemode=livemode,
        created=_created(event.get("created"), thin=thin),
    )


def _text(event: Mapping[str, Any], field: str, allowed: re.Pattern[str]) -> str:
    value = event.get(field)
    if not isinstance(value, str) or not allowed.fullmatch(value):
        raise NotAnEvent("not_an_event", f"{field} is missing or not what Stripe writes there")
    return value


def _object_id(event: Mapping[str, Any], *, thin: bool) -> str | None:
    about = event.get("related_object") if thin else (event.get("data") or {})
    if not thin:
        about = about.get("object") if isinstance(about, dict) else None
        if not isinstance(about, dict):
            raise NotAnEvent("not_an_event", "data.object is missing")
    # Some objects have no id (a balance, an upcoming invoice).
    value = about.get("id") if isinstance(about, dict) else None
    return value if isinstance(value, str) and _TYPE.fullmatch(value) else None


def _created(value: object, *, thin: bool) -> datetime:
    try:
        if thin:
            instant = datetime.fromisoformat(str(value))
            if instant.tzinfo is None:
                raise ValueError("no time zone")
            return instant.astimezone(UTC)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("not whole seconds")
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise NotAnEvent("not_an_event", "created is not a time") from None


@dataclass(frozen=True)
class Landed:
    """A row of the inbox before it has its number."""

    envelope: Envelope
    body: str
    headers: Mapping[str, str]
    via: Via
    received_at: datetime


# Numbers are given out under a lock that is held until the commit: what follows the inbox by its numbers never sees
# a higher one before a lower one, however many processes land events.
INSERT = f"""
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock({lock_key("stripe inbox numbers")}))
INSERT INTO {SCHEMA}.stripe_events
    (event_id, type, object_id, api_version, livemode, created, body, headers, via, received_at)
SELECT landed.*
FROM turn, unnest(
    %(event_id)s::text[], %(type)s::text[], %(object_id)s::text[], %(api_version)s::text[], %(livemode)s::boolean[],
    %(created)s::timestamptz[], %(body)s::text[], %(headers)s::jsonb[], %(via)s::text[], %(received_at)s::timestamptz[]
) AS landed
ON CONFLICT (event_id) DO NOTHING
"""  # noqa: S608 -- a constant of ours


def insert_values(rows: Sequence[Landed]) -> dict[str, list[Any]]:
    """The parameters with which INSERT, run by psycopg, lands ``rows``; its row count is how many were new."""
    return {
        "event_id": [row.envelope.event_id for row in rows],
        "type": [row.envelope.type for row in rows],
        "object_id": [row.envelope.object_id for row in rows],
        "api_version": [row.envelope.api_version for row in rows],
        "livemode": [row.envelope.livemode for row in rows],
        "created": [row.envelope.created for row in rows],
        "body": [row.body for row in rows],
        "headers": [json.dumps(dict(row.headers)) for row in rows],
        "via": [row.via for row in rows],
        "received_at": [row.received_at for row in rows],
    }


def land(connection: Connection, rows: Sequence[Landed]) -> int:
    """Lands ``rows`` in the caller's transaction; returns how many were new."""
    return connection.exec_driver_sql(INSERT, insert_values(rows)).rowcount
