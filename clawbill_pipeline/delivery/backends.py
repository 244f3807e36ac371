"""The ways to put usage on Stripe, behind one protocol, and the choice between them. No retries and no database here.

Which one serves a meter follows from what Stripe says the meter is (``backend_of_meter``): nobody configures it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import stripe

from clawbill_pipeline.delivery.errors import SessionLapsed
from clawbill_pipeline.money import plain
from clawbill_pipeline.stripe_api import LEGACY_VERSION

#: Keys of a meter event's payload, Stripe's defaults.
CUSTOMER_KEY, VALUE_KEY = "stripe_customer_id", "value"
#: Stripe's own limits of a meter event.
MOST_DIGITS = 15
OLDEST = timedelta(days=35)
FURTHEST_AHEAD = timedelta(minutes=5)
LONGEST_IDENTIFIER = 100
V1_CALLS_PER_SECOND = 1_000
#: A correction is stamped one second later than the one before; the shortest window is a quarter of an hour.
MOST_REVISIONS = 899
#: Why a record is parked for good whose value Stripe would never take; only a correction helps.
UNSENDABLE = "invalid_value"


class MeterMismatch(ValueError):
    """A meter is not what the catalogue needs. The message says what it is, what is needed and what can be done."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a backend makes a request of. ``value`` is whole: all units of the window, or a signed difference."""

    identifier: str
    customer_id: str
    subscription_item_id: str
    meter: str
    value: Decimal
    window_start: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Intent:
    """A request on record: what is sent under which identifier."""

    identifier: str
    params: Mapping[str, Any]


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

    @property
    def most(self) -> int:
        """How many records one call takes."""
        ...

    @property
    def totals(self) -> bool:
        """Whether Stripe's total of a window can be read. Where not, sending again is harmless at any time."""
        ...

    def event_timestamp(self, window_start: datetime, revision: int) -> datetime:
        """The moment that Stripe counts a record at."""
        ...

    def hindrance(self, value: Decimal) -> str | None:
        """Why Stripe would never take ``value``; None if it does."""
        ...

    def params(self, record: Record) -> dict[str, Any]:
        """Exactly what will be sent: the request's parameters, as JSON values."""
        ...

    async def send(self, session: Session, intents: Sequence[Intent]) -> str:
        """Makes the one call for up to ``most`` intents. Stripe's answer as JSON text; raises StripeError."""
        ...


class Session:
    """Open connections to Stripe, and the token of the meter event stream while it lasts."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self.client = client
        self._token = ""
        self._lapses = 0.0
        self._renewing = asyncio.Lock()

    async def stream_token(self) -> str:
        """A token that is good for a while yet: renewed well before it lapses."""
        async with self._renewing:
            if time.monotonic() >= self._lapses:
                made = await self.client.v2.billing.meter_event_session.create_async()
                # By its length, not its end: the machine's clock need not agree with Stripe's.
                lasts = datetime.fromisoformat(made.expires_at) - datetime.fromisoformat(made.created)
                self._token = made.authentication_token
                self._lapses = time.monotonic() + lasts.total_seconds() * 0.8
            return self._token

    def forget_token(self) -> None:
        """The token was refused: the next call asks for a new one."""
        self._lapses = 0.0


@dataclass(frozen=True)
class _MeterEvents:
    """What v1 and v2 meter events share."""

    name: str
    absolute: bool
    totals: bool = True

    def event_timestamp(self, window_start: datetime, revision: int) -> datetime:
        # One second a revision: a correction is the latest by its time as well as by its arrival.
        return window_start + timedelta(seconds=min(revision, MOST_REVISIONS))

    def hindrance(self, value: Decimal) -> str | None:
        digits = len(str(abs(int(value))))
        return f"{value} has {digits} digits; Stripe takes {MOST_DIGITS}" if digits > MOST_DIGITS else None

    def _event(self, record: Record) -> dict[str, Any]:
        return {
            "event_name": record.meter,
            "identifier": record.identifier,
            "payload": {CUSTOMER_KEY: record.customer_id, VALUE_KEY: plain(record.value)},
        }


@dataclass(frozen=True)
class MeterEvents(_MeterEvents):
    """v1 meter events, one a call."""

    most: int = 1

    def params(self, record: Record) -> dict[str, Any]:
        at = self.event_timestamp(record.window_start, record.revision)
        return {**self._event(record), "timestamp": int(at.timestamp())}

    async def send(self, session: Session, intents: Sequence[Intent]) -> str:
        (intent,) = intents
        # The same request as v1.billing.meter_events.create, without making objects of an answer that is only kept:
        # that is a quarter of what a call costs.
        return await _raw(session, "/v1/billing/meter_events", intent.params, idempotency_key=intent.identifier)


@dataclass(frozen=True)
class MeterStream(_MeterEvents):
    """The v2 meter event stream, 100 events a call. It drops a repeated identifier without a word."""

    most: int = 100

    def params(self, record: Record) -> dict[str, Any]:
        at = self.event_timestamp(record.window_start, record.revision)
        return {**self._event(record), "timestamp": f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"}

    async def send(self, session: Session, intents: Sequence[Intent]) -> str:
        # Reports on rejected events name the request's key: it is kept with each record.
        names = "\n".join(intent.identifier for intent in intents)
        key = intents[0].identifier if len(intents) == 1 else hashlib.sha256(names.encode()).hexdigest()
        token = await session.stream_token()
        try:
            await session.client.v2.billing.meter_event_stream.create_async(
                {"events": [{**intent.params} for intent in intents]},  # type: ignore[typeddict-item]
                {"api_key": token, "idempotency_key": key},
            )
        except (stripe.TemporarySessionExpiredError, stripe.AuthenticationError) as error:
            session.forget_token()
            raise SessionLapsed("the meter event session lapsed") from error
        return json.dumps({"request": key})


@dataclass(frozen=True)
class UsageRecords:
    """Legacy usage records, for items whose price no meter backs: ``set`` replaces what a moment had."""

    name: str = "usage_record"
    absolute: bool = True
    totals: bool = False
    most: int = 1

    def event_timestamp(self, window_start: datetime, revision: int) -> datetime:
        # Always the same moment: ``set`` at another one would add to it.
        return window_start

    def hindrance(self, value: Decimal) -> str | None:
        return f"{value} is negative, and a usage record can't be" if value < 0 else None

    def params(self, record: Record) -> dict[str, Any]:
        return {
            "subscription_item": record.subscription_item_id,
            "quantity": int(record.value),
            "timestamp": int(record.window_start.timestamp()),
            "action": "set",
        }

    async def send(self, session: Session, intents: Sequence[Intent]) -> str:
        (intent,) = intents
        params = dict(intent.params)
        path = f"/v1/subscription_items/{params.pop('subscription_item')}/usage_records"
        return await _raw(session, path, params, stripe_version=LEGACY_VERSION, idempotency_key=intent.identifier)


async def _raw(session: Session, path: str, params: Mapping[str, Any], **options: str) -> str:
    answer = await session.client.raw_request_async("post", path, **params, **options)
    return str(answer.body)


#: An hourly meter keeps the newest event of a UTC hour: records are absolute, and the last one wins.
HOUR_METER = MeterEvents("hour_meter", absolute=True)
#: A plain sum meter adds all events up: records are signed differences.
SUM_METER = MeterEvents("sum_meter", absolute=False)
#: The same two meters, through the stream.
HOUR_METER_STREAM = MeterStream("hour_meter_stream", absolute=True)
SUM_METER_STREAM = MeterStream("sum_meter_stream", absolute=False)
USAGE_RECORD = UsageRecords()

_ALL: tuple[Backend, ...] = (HOUR_METER, SUM_METER, HOUR_METER_STREAM, SUM_METER_STREAM, USAGE_RECORD)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}


def backend_of_meter(meter: Mapping[str, Any], calls_per_second: int = 0) -> Backend:
    """The backend for a meter as Stripe describes it, at the rate that the catalogue wants.

    The stream is there in live mode only, and serves who needs more calls than v1 takes. Raises MeterMismatch for a
    meter that cannot hold usage records.
    """
    name = meter["event_name"]
    stream = bool(meter["livemode"]) and calls_per_second > V1_CALLS_PER_SECOND
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
            return HOUR_METER_STREAM if stream else HOUR_METER
        case None:
            return SUM_METER_STREAM if stream else SUM_METER
        case window:
            raise _immutable(name, f"keeps one value a {window}", "usage is sent by the hour")


def _immutable(name: str, is_: str, needed: str) -> MeterMismatch:
    return MeterMismatch(
        f"meter {name!r} {is_}, but {needed}. A meter can't be changed: give the service another `meter:` name in the "
        "catalogue, or deactivate this one in Stripe's dashboard and provision again"
    )


def canonical(params: Mapping[str, Any]) -> str:
    """The parameters as JSON text that is the same wherever it is made: sorted keys, no spaces."""
    return json.dumps(params, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def payload_hash(params: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON text of ``params``."""
    return hashlib.sha256(canonical(params).encode()).hexdigest()
