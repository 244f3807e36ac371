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
from clawbill_pipeline.sandbox.stripe.rejections import schedule_report

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
    meter = active_meter(call, name)
    fault = timestamp_fault(call, timestamp)
    if fault:
        raise invalid(fault[1], "timestamp", fault[0])
    fault = value_fault(meter, payload)
    if fault:
        raise invalid(fault[1], f"payload[{_value_key(meter)}]", fault[0])
    if already_there(call, identifier):
        raise invalid(f"An event already exists with identifier {identifier}.", "identifier")
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


def timestamp_fault(call: Call, timestamp: int) -> tuple[str, str] | None:
    """Code and message for a time out of bounds."""
    if timestamp < call.now - PAST_SECONDS:
        return "timestamp_too_far_in_past", "Invalid timestamp: must be within the past 35 calendar days."
    if timestamp > call.now + FUTURE_SECONDS:
        return "timestamp_in_future", "Invalid timestamp: must be at most 5 minutes in the future."
    return None


def value_fault(meter: Document | None, payload: dict[str, str]) -> tuple[str, str] | None:
    """Code and message for a value that is not whole or has more than 15 significant digits."""
    text = payload.get(_value_key(meter), "0")
    if not _WHOLE.fullmatch(text):
        return "meter_event_invalid_value", f"Invalid value: {text}. It must be a whole number."
    if len(text.lstrip("+-").strip("0")) > 15 or len(text) > 18:
        return "meter_event_value_too_many_digits", f"Invalid value: {text}. It has more than 15 significant digits."
    return None


def _value_key(meter: Document | None) -> str:
    return str(meter["value_settings"]["event_payload_key"]) if meter else "value"


def already_there(call: Call, identifier: str) -> bool:
    """Whether an event with this identifier came in the last day."""
    sql = "SELECT 1 FROM meter_events WHERE account = ? AND identifier = ? AND received > ? LIMIT 1"
    values = (call.account, identifier, call.now - UNIQUE_SECONDS)
    return call.store.db.execute(sql, values).fetchone() is not None


def record(
    call: Call,
    meter: Document | None,
    name: str,
    identifier: str,
    payload: dict[str, str],
    timestamp: int,
    state: str | None = None,
) -> None:
    """Writes the event: accepted, or with the code of its later rejection (``state``, where one is known already)."""
    customer, value = None, None
    archived = None if meter else call.store.select(call.account, "meter", lookup=name)
    if meter is None:
        state = state or ("archived_meter" if archived else "no_meter")
    else:
        customer = payload.get(meter["customer_mapping"]["event_payload_key"])
        text = payload.get(meter["value_settings"]["event_payload_key"])
        if state is None and not customer:
            state = "meter_event_no_customer_defined"
        elif state is None and not call.store.has(call.account, "customer", str(customer)):
            state = "meter_event_customer_not_found"
        elif state is None and text is None and meter["default_aggregation"]["formula"] != "count":
            state = "meter_event_invalid_value"
        value = int(text) if state is None and text is not None else None
    rejected = state is not None and state != "duplicate"
    place = meter["id"] if meter else archived[-1]["id"] if archived else ""
    call.store.db.execute(
        "INSERT INTO meter_events (account, identifier, event_name, customer, value, timestamp, received, state,"
        " request, meter, reported) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            call.account,
            identifier,
            name,
            customer,
            value,
            timestamp,
            call.now,
            state or "accepted",
            call.idempotency_key,
            place,
            0 if rejected else None,
        ),
    )
    if rejected:
        schedule_report(call, place)


def _alone(params: Document) -> tuple[str, ...]:
    """Stripe takes one call at a time for each customer and meter."""
    return params["event_name"], params["payload"].get("stripe_customer_id", "")


ROUTES = [
    Route(
        "POST",
        "/v1/billing/meter_events",
        Contract("billing.MeterEventCreateParams", "event_name identifier payload timestamp"),
        create,
        alone=_alone,
        lean=True,
    )
]
