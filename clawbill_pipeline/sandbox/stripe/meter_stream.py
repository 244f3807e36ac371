"""The meter event stream, v2: sessions of 15 minutes, and up to 100 events a call on a base address of its own.

Everything about an event is validated after the answer: what v1 refuses at once ends in a report here (``rejections``).
"""

from __future__ import annotations

import secrets

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, rfc3339, unix
from clawbill_pipeline.sandbox.stripe.errors import ApiError, invalid
from clawbill_pipeline.sandbox.stripe.meter_events import already_there, record, timestamp_fault, value_fault
from clawbill_pipeline.sandbox.stripe.meters import active_meter
from clawbill_pipeline.sandbox.stripe.store import Store

_SESSION_SECONDS = 900
_MOST_EVENTS = 100
_SESSIONS = "meter_event_session"


def create_session(call: Call, params: Document) -> Document:
    token = f"mes_token_test_{secrets.token_urlsafe(24)}"
    expires = call.now + _SESSION_SECONDS
    # Under no account: the token is all that the stream is told.
    call.store.put("", _SESSIONS, {"id": token, "created": call.now, "_account": call.account, "_expires": expires})
    return {
        "id": call.new_id("mes_test"),
        "object": "v2.billing.meter_event_session",
        "authentication_token": token,
        "created": rfc3339(call.now),
        "expires_at": rfc3339(expires),
        "livemode": False,
    }


def account_of_session(store: Store, token: str, now: int) -> str:
    """The account that a session's token stands for. Raises ApiError: 401 for an unknown one, 400 when it lapsed."""
    session = store.get("", _SESSIONS, token)
    if session is None:
        raise ApiError(401, "Invalid authentication token: create a meter event session.")
    if session["_expires"] <= now:
        raise ApiError(
            400,
            "The meter event session has expired. Create a new one.",
            kind="temporary_session_expired",
            code="billing_meter_event_session_expired",
        )
    return str(session["_account"])


def create_events(call: Call, params: Document) -> Document:
    if not 0 < len(params["events"]) <= _MOST_EVENTS:
        raise invalid(f"`events` must hold 1 to {_MOST_EVENTS} events.", "events")
    for event in params["events"]:
        _take(call, event)
    return {}


def _take(call: Call, event: Document) -> None:
    name, payload = event["event_name"], event["payload"]
    identifier = event.get("identifier") or secrets.token_hex(16)
    meter = active_meter(call, name)
    timestamp = unix(event["timestamp"]) if "timestamp" in event else call.now
    fault = None if timestamp is None else timestamp_fault(call, timestamp)
    fault = fault or value_fault(meter, payload)
    state = fault[0] if fault else None
    if timestamp is None:
        state, timestamp = "timestamp_too_far_in_past", 0
    if already_there(call, identifier):
        state = "duplicate"  # dropped, and in no report
    record(call, meter, name, identifier, payload, timestamp, state)


ROUTES = [
    Route(
        "POST",
        "/v2/billing/meter_event_stream",
        Contract("v2.billing.MeterEventStreamCreateParams", "events", form=False),
        create_events,
        by_session=True,
    ),
    Route(
        "POST",
        "/v2/billing/meter_event_session",
        Contract("v2.billing.MeterEventSessionCreateParams", form=False),
        create_session,
    ),
]
