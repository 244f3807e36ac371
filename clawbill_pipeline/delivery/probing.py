"""Asks a Stripe test account what its documents leave open about meter events. For ``clawbill doctor``; bills nobody.

Makes meters and a customer of its own, sends a few events, waits for Stripe's totals, and puts away what it made.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import stripe

from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.delivery.backends import CUSTOMER_KEY, VALUE_KEY
from clawbill_pipeline.delivery.errors import said
from clawbill_pipeline.money import plain, total
from clawbill_pipeline.settings import SettingsError, is_live
from clawbill_pipeline.stripe_api import StripeApi


@dataclass(frozen=True)
class Answer:
    """What an account does. ``expected`` says whether delivery relies on it being so."""

    question: str
    answer: str
    expected: bool


def probe(
    api: StripeApi, *, now: datetime, settle_seconds: float = 90, sleep: Callable[[float], None] = time.sleep
) -> tuple[Answer, ...]:
    """The answers of the account that the key belongs to. ``settle_seconds`` is waited for Stripe's totals.

    Raises SettingsError for a live key, StripeError when Stripe can't be asked.
    """
    if is_live(api.key):
        raise SettingsError("the probe sends made-up usage: set STRIPE_SECRET_KEY to a test-mode key (sk_test_…)")
    asked = _Probe(api.client().v1, utc_hour(now))
    try:
        return asked.answers(lambda: sleep(settle_seconds))
    finally:
        asked.put_away()


class _Probe:
    """Each question has an hour of its own, so that none is in another's way."""

    def __init__(self, client: Any, hour: datetime) -> None:
        self._client = client
        self._hour = hour
        self._mark = secrets.token_hex(6)
        self._meters: dict[str, Any] = {}
        self._customer = client.customers.create({"name": "clawbill probe", "metadata": {"clawbill_probe": self._mark}})

    def answers(self, settle: Callable[[], None]) -> tuple[Answer, ...]:
        zero, order, decimal, negative, double = (self._hour - number * HOUR for number in range(2, 7))
        self._send("hour", zero, 1, "5")
        self._send("hour", zero, 2, "0")
        self._send("hour", order, 10, "7")
        self._send("hour", order, 5, "3")
        decimals = self._send("sum", decimal, 1, "1.5")
        negatives = self._send("sum", negative, 1, "-2")
        self._send("sum", double, 1, "4", identifier=f"{self._mark}-twice")
        twice = self._send("sum", double, 1, "4", identifier=f"{self._mark}-twice")
        settle()
        return (
            self._overwritten(self._held("hour", zero)),
            self._ordered(self._held("hour", order)),
            self._accepted("Is a value with decimals taken?", decimals, "sum", decimal, expected=True),
            self._accepted("Is a negative value taken?", negatives, "sum", negative, expected=negatives is None),
            self._repeated(twice, self._held("sum", double)),
        )

    def put_away(self) -> None:
        """Deactivates the probe's meters (they can't be deleted) and deletes its customer."""
        for meter in self._meters.values():
            self._client.billing.meters.deactivate(meter.id)
        self._client.customers.delete(self._customer.id)

    @staticmethod
    def _overwritten(held: Decimal) -> Answer:
        question = "Does a 0 overwrite an hourly meter's hour?"
        return Answer(question, "yes" if held == 0 else f"no: it still holds {plain(held)}", held == 0)

    @staticmethod
    def _ordered(held: Decimal) -> Answer:
        words = {Decimal(7): "the latest by time", Decimal(3): "the latest by arrival"}
        question = "Which event of an hour does an hourly meter keep?"
        return Answer(question, words.get(held, f"neither: it holds {plain(held)} of 7 and 3"), held in words)

    @staticmethod
    def _repeated(error: stripe.StripeError | None, held: Decimal) -> Answer:
        question = "What becomes of an identifier that is sent twice?"
        if error is None:
            return Answer(question, f"it is taken, and the total is {plain(held)} of 4", held == 4)
        known = error.http_status == 400 and "already exists with identifier" in str(error.user_message)
        return Answer(question, said(error), known and held == 4)

    def _accepted(
        self, question: str, error: stripe.StripeError | None, kind: str, hour: datetime, *, expected: bool
    ) -> Answer:
        if error is not None:
            return Answer(question, f"no: {said(error)}", expected)
        return Answer(question, f"yes: the total is {plain(self._held(kind, hour))}", expected)

    def _send(
        self, kind: str, hour: datetime, second: int, value: str, identifier: str | None = None
    ) -> stripe.StripeError | None:
        """Sends one event; what Stripe has against it, if anything. Raises StripeError for anything but a refusal."""
        event = {
            "event_name": self._meter(kind).event_name,
            "timestamp": int(hour.timestamp()) + second,
            "payload": {CUSTOMER_KEY: self._customer.id, VALUE_KEY: value},
            "identifier": identifier or f"{self._mark}-{secrets.token_hex(8)}",
        }
        try:
            # A key of its own for each call: the same one would only show Stripe's memory of the first answer.
            self._client.billing.meter_events.create(event, {"idempotency_key": secrets.token_hex(16)})
        except stripe.InvalidRequestError as error:
            return error
        return None

    def _meter(self, kind: str) -> Any:
        if kind not in self._meters:
            params: dict[str, Any] = {
                "display_name": f"clawbill probe ({kind})",
                "event_name": f"clawbill_probe_{kind}_{self._mark}",
                "default_aggregation": {"formula": "sum"},
            }
            if kind == "hour":
                params["event_time_window"] = "hour"
            self._meters[kind] = self._client.billing.meters.create(params)
        return self._meters[kind]

    def _held(self, kind: str, hour: datetime) -> Decimal:
        span = {"start_time": int(hour.timestamp()), "end_time": int((hour + HOUR).timestamp())}
        page = self._client.billing.meters.event_summaries.list(
            self._meter(kind).id, {"customer": self._customer.id, **span}
        )
        return total(Decimal(str(summary.aggregated_value)) for summary in page.data)
