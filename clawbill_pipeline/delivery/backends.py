"""The ways to put usage on Stripe, behind one protocol, and the choice between them. No retries and no database here.

Which one serves a meter follows from what Stripe says the meter is (``backend_of_meter``): nobody configures it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import stripe

from clawbill_pipeline.money import plain

#: Keys of a meter event's payload, Stripe's defaults.
CUSTOMER_KEY, VALUE_KEY = "stripe_customer_id", "value"
#: Stripe's own limits of a meter event.
MOST_DIGITS = 15
OLDEST = timedelta(days=35)
FURTHEST_AHEAD = timedelta(minutes=5)
LONGEST_IDENTIFIER = 100


class MeterMismatch(ValueError):
    """A meter is not what the catalogue needs. The message says what it is, what is needed and what can be done."""


class Backend(Protocol):
    """One way to send usage records. Stateless."""

    @property
    def name(self) -> str:
        """As in ``stripe_items.backend`` and ``usage_records.backend``."""
        ...

    @property
    def absolute(self) -> bool:
        """Whether a record carries the window's whole units (a later one replaces it), or the change since the last."""
        ...

    def params(self, record: Record) -> dict[str, Any]:
        """Exactly what will be sent: the request's parameters, as JSON values."""
        ...

    async def send(self, client: stripe.StripeClient, identifier: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the call, with ``identifier`` as idempotency key. Stripe's answer; raises StripeError."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """What a backend makes a request of. ``value`` is whole: all units of the window, or a signed difference."""

    identifier: str
    customer_id: str
    meter: str
    value: Decimal
    event_timestamp: datetime


@dataclass(frozen=True)
class MeterEvents:
    """v1 meter events, one a call."""

    name: str
    absolute: bool

    def params(self, record: Record) -> dict[str, Any]:
        return {
            "event_name": record.meter,
            "identifier": record.identifier,
            "timestamp": int(record.event_timestamp.timestamp()),
            "payload": {CUSTOMER_KEY: record.customer_id, VALUE_KEY: plain(record.value)},
        }

    async def send(self, client: stripe.StripeClient, identifier: str, params: Mapping[str, Any]) -> dict[str, Any]:
        answer = await client.v1.billing.meter_events.create_async(
            {**params},  # type: ignore[typeddict-item]
            {"idempotency_key": identifier},
        )
        return answer.to_dict(for_json=True)


#: An hourly meter keeps the newest event of a UTC hour: records are absolute, and the last one wins.
HOUR_METER = MeterEvents("hour_meter", absolute=True)
#: A plain sum meter adds all events up: records are signed differences.
SUM_METER = MeterEvents("sum_meter", absolute=False)

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (HOUR_METER, SUM_METER)}


def backend_of_meter(meter: Mapping[str, Any]) -> Backend:
    """The backend for a meter as Stripe describes it. Raises MeterMismatch for one that cannot hold usage records."""
    name = meter["event_name"]
    if meter["status"] != "active":
        raise MeterMismatch(f"meter {name!r} is deactivated; reactivate it in Stripe's dashboard")
    formula = meter["default_aggregation"]["formula"]
    keys = (meter["customer_mapping"]["event_payload_key"], meter["value_settings"]["event_payload_key"])
    if formula != "sum":
        raise _immutable(name, f"aggregates by {formula!r}", "'sum' is needed")
    if keys != (CUSTOMER_KEY, VALUE_KEY):
        raise _immutable(name, f"reads the payload keys {keys}", f"{(CUSTOMER_KEY, VALUE_KEY)} are needed")
    match meter.get("event_time_window"):
        case "hour":
            return HOUR_METER
        case None:
            return SUM_METER
        case window:
            raise _immutable(name, f"keeps one value a {window}", "usage is sent by the hour")


def _immutable(name: str, is_: str, needed: str) -> MeterMismatch:
    return MeterMismatch(
        f"meter {name!r} {is_}, but {needed}. A meter can't be changed: give the service another `meter:` name in the "
        "catalogue, or deactivate this one in Stripe's dashboard and provision again"
    )


def payload_hash(params: Mapping[str, Any]) -> str:
    """SHA-256 of the parameters as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(params, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
