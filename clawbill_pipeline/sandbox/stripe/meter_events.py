"""Meter events, v1: ``POST /v1/billing/meter_events``. The busiest call: it writes one row and nothing else.

Checked at once: identifier, time limits, the value's form. Found out later, after the 200 (``rejections``): an event
name without a meter, a customer that does not exist, a payload without customer or value.
"""

from __future__ import annotations

import re
import secrets

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.meters import active_meter

PAST_SECONDS = 35 * 86_400
FUTURE_SECONDS = 300
#: Identifiers are unique over a rolling day.
UNIQUE_SECONDS = 86_400
_WHOLE = re.compile(r"[+-]?[0-9]+")


def create(call: Call, params: Document) -> Document:
    name, payload = params["event_name"], params["payload"]
    identifier = params.get("identifier") or secrets.token_hex(16)
    timestamp = params.get("timestamp", call.now)
    if len(identifier) > 100:
        raise invalid("Invalid identifier: must be at most 100 characters.", "identifier")
    if not name or len(name) > 100:
        raise invalid("Invalid event_name: must have 1 to 100 characters.", "event_name")
    if timestamp < call.now - PAST_SECONDS:
        message = "Invalid timestamp: must be within the past 35 calendar days."
        raise invalid(message, "timestamp", "timestamp_too_far_in_past")
    if timestamp > call.now + FUTURE_SECONDS:
        message = "Invalid timestamp: must be at most 5 minutes in the future."
        raise invalid(message, "timestamp", "timestamp_in_future")
    meter = active_meter(call, name)
    value_key = meter["value_settings"]["event_payload_key"] if meter else "value"
    if value_key in payload:
        whole_value(payload[value_key], f"payload[{value_key}]")
    if already_there(call, identifier):
        raise invalid(f"An event already exists with identifier {identifier}.", "identifier", "duplicate_meter_event")
    record(call, meter, name, identifier, payload, timestamp)
    return {
        "object": "billing.meter_event",
        "created": call.now,
        "event_name": name,
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": timestamp,
    }


def whole_value(text: str, param: str) -> int:
    """The value as a number. Raises ApiError (400) for what is not whole or has more than 15 significant digits."""
    if not _WHOLE.fullmatch(text):
        raise invalid(f"Invalid value: {text}. It must be a whole number.", param, "meter_event_invalid_value")
    if len(text.lstrip("+-").strip("0")) > 15 or len(text) > 18:
        message = f"Invalid value: {text}. It has more than 15 significant digits."
        raise invalid(message, param, "meter_event_value_too_many_digits")
    return int(text)


def already_there(call: Call, identifier: str) -> bool:
    """Whether an event with this identifier came in the last day."""
    sql = "SELECT 1 FROM meter_events WHERE account = ? AND identifier = ? AND received > ? LIMIT 1"
    values = (call.account, identifier, call.now - UNIQUE_SECONDS)
    return call.store.db.execute(sql, values).fetchone() is not None


def record(
    call: Call, meter: Document | None, name: str, identifier: str, payload: dict[str, str], timestamp: int
) -> None:
    """Writes the event, accepted or with the code of its later rejection."""
    customer, value, state = None, None, "accepted"
    if meter is None:
        state = "no_meter"
    else:
        customer = payload.get(meter["customer_mapping"]["event_payload_key"])
        text = payload.get(meter["value_settings"]["event_payload_key"])
        if not customer:
            state = "meter_event_no_customer_defined"
        elif call.store.get(call.account, "customer", customer) is None:
            state = "meter_event_customer_not_found"
        elif text is None and meter["default_aggregation"]["formula"] != "count":
            state = "meter_event_invalid_value"
        value = None if text is None else int(text)
    call.store.db.execute(
        "INSERT INTO meter_events"
        " (account, identifier, event_name, customer, value, timestamp, received, state, request)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (call.account, identifier, name, customer, value, timestamp, call.now, state, call.idempotency_key),
    )


ROUTES = [
    Route(
        "POST",
        "/v1/billing/meter_events",
        Contract("billing.MeterEventCreateParams", "event_name identifier payload timestamp"),
        create,
    )
]
