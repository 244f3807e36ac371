"""The v2 stream: sessions and their tokens, batches, and validation after the answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, Account, Sandbox


def session(account: Account) -> Any:
    return account.client.v2.billing.meter_event_session.create()


def send(account: Account, token: str, events: list[dict[str, Any]], **options: Any) -> None:
    account.client.v2.billing.meter_event_stream.create({"events": events}, {"api_key": token, **options})


def event(customer: str, value: object, at: int, **fields: Any) -> dict[str, Any]:
    timestamp = datetime.fromtimestamp(at, UTC).isoformat()
    payload = {"stripe_customer_id": customer, "value": str(value)}
    return {"event_name": "tokens", "timestamp": timestamp, "payload": payload, **fields}


def test_a_batch_is_held(account: Account) -> None:
    meter, customer, now = account.meter(), account.customer(), account.sandbox.now()
    token = session(account).authentication_token
    send(account, token, [event(customer, index, now, identifier=f"i{index}") for index in range(100)])
    send(account, token, [{"event_name": "tokens", "payload": {"stripe_customer_id": customer, "value": "50"}}])
    assert account.held(meter.id, customer, now, now + 60) == [(now, 5000.0)]


def test_a_session_lives_15_minutes(month: Sandbox) -> None:
    account = month.account()
    account.meter()
    customer, made = account.customer(), session(account)
    lifetime = datetime.fromisoformat(made.expires_at) - datetime.fromisoformat(made.created)
    assert lifetime.total_seconds() == 900
    month.move_to(month.now() + 899)
    send(account, made.authentication_token, [event(customer, 1, month.now())])
    month.move_to(month.now() + 1)
    with pytest.raises(stripe.TemporarySessionExpiredError):
        send(account, made.authentication_token, [event(customer, 1, month.now())])
    assert account.stats()["meter_events"] == {"accepted": 1}


def test_the_stream_takes_a_sessions_token_only(account: Account) -> None:
    for key in (account.key, "mes_token_test_no"):
        with pytest.raises(stripe.AuthenticationError):
            send(account, key, [event("c", 1, account.sandbox.now())])


def test_at_most_100_events_of_the_right_shape(account: Account) -> None:
    token, now = session(account).authentication_token, account.sandbox.now()
    for events in ([], [event("c", 1, now)] * 101):
        with pytest.raises(stripe.InvalidRequestError, match="1 to 100"):
            send(account, token, events)
    for wrong in ({"timestamp": now}, {"payload": {"value": 1}}, {"name": "x"}):
        with pytest.raises(stripe.InvalidRequestError):
            send(account, token, [{**event("c", 1, now), **wrong}])


def test_what_v1_refuses_at_once_is_reported_later(month: Sandbox) -> None:
    account = month.account()
    meter, customer, now = account.meter(), account.customer(), month.now()
    token = session(account).authentication_token
    events = [
        event(customer, 1, now, identifier="good"),
        event(customer, 7, now, identifier="good"),  # a duplicate: dropped without a word
        event(customer, "1.5", now),
        event(customer, 10**15 + 1, now),
        event(customer, 1, now - 36 * DAY),
        event(customer, 1, now + 600),
        event("cus_no", 1, now),
    ]
    send(account, token, events, idempotency_key="batch")
    assert account.held(meter.id, customer, now, now + 60) == [(now, 1.0)]
    month.move_to(now + 60)
    (report,) = account.client.v2.core.events.list().data
    assert {kind.code: kind.error_count for kind in report.data.reason.error_types} == {
        "meter_event_customer_not_found": 1,
        "meter_event_invalid_value": 1,
        "meter_event_value_too_many_digits": 1,
        "timestamp_in_future": 1,
        "timestamp_too_far_in_past": 1,
    }
    assert report.data.reason.error_types[0].sample_errors[0].request.identifier == "batch"
