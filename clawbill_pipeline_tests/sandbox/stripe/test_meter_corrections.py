"""Meter event adjustments, rejections that come after the 200, and one call at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.limits import Limiter
from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Receiver, Sandbox, receiving


def cancel(account: Account, identifier: str, event_name: str = "tokens") -> Any:
    params = {"event_name": event_name, "type": "cancel", "cancel": {"identifier": identifier}}
    return account.v1.billing.meter_event_adjustments.create(params)


def test_a_cancelled_event_counts_nowhere(account: Account) -> None:
    meter, customer, now = account.meter(), account.customer(), account.sandbox.now()
    account.use(customer, 5, now, identifier="a")
    account.use(customer, 2, now, identifier="b")
    assert cancel(account, "a").status == "pending"
    assert account.held(meter.id, customer, now, now + 60) == [(now, 2.0)]
    with pytest.raises(stripe.InvalidRequestError, match="already been cancelled"):
        cancel(account, "a")
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        account.use(customer, 5, now, identifier="a")


def test_in_a_window_the_event_before_counts_again(account: Account) -> None:
    meter = account.meter(event_time_window="hour")
    customer, start = account.customer(), account.sandbox.now() // HOUR * HOUR
    account.use(customer, 5, start, identifier="a")
    account.use(customer, 7, start + 1, identifier="b")
    cancel(account, "b")
    assert account.held(meter.id, customer, start, start + HOUR) == [(start, 5.0)]


def test_what_cannot_be_cancelled(month: Sandbox) -> None:
    account = month.account()
    account.meter()
    account.use(account.customer(), 5, identifier="a")
    for identifier, event_name in (("no", "tokens"), ("a", "other")):
        with pytest.raises(stripe.InvalidRequestError, match="No such meter event"):
            cancel(account, identifier, event_name)
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param"):
        account.v1.billing.meter_event_adjustments.create({"event_name": "tokens", "type": "cancel"})
    month.move_to(month.now() + DAY + 1)
    with pytest.raises(stripe.InvalidRequestError, match="within 24 hours"):
        cancel(account, "a")


def test_a_final_invoice_stays_as_it_is(month: Sandbox) -> None:
    account = month.account()
    account.set(invoice_grace_seconds=0)
    meter, customer = account.meter().id, account.customer()
    account.v1.subscriptions.create({"customer": customer, "items": [{"price": account.price(meter).id}]})
    end = month.now() + 31 * DAY
    month.move_to(end - HOUR)
    account.use(customer, 5, identifier="a")
    month.move_to(end)
    cancel(account, "a")
    assert [invoice.total for invoice in account.v1.invoices.list().data] == [5]


@pytest.fixture
def thin() -> Iterator[Receiver]:
    with receiving("whsec_thin") as running:
        yield running


def test_rejections_are_reported_as_thin_events_with_counts_and_samples(month: Sandbox, thin: Receiver) -> None:
    account = month.account()
    account.register(thin, thin=True)
    meter, start = account.meter(), month.now()
    for index in range(7):
        params = {
            "event_name": "tokens",
            "identifier": f"i{index}",
            "payload": {"stripe_customer_id": "no", "value": "1"},
        }
        account.v1.billing.meter_events.create(params, {"idempotency_key": f"k{index}"})
    account.v1.billing.meter_events.create(
        {"event_name": "tokens", "payload": {"value": "1"}}, {"idempotency_key": "nobody"}
    )
    account.v1.billing.meter_events.create(
        {"event_name": "unknown", "identifier": "u", "payload": {"value": "1"}}, {"idempotency_key": "no meter"}
    )
    assert account.flush()["delivered"] == 0
    month.move_to(start + 60)
    assert account.flush() == {"delivered": 2, "failed": 0, "pending": 0}

    found = {}
    for body, headers in zip(thin.bodies, thin.headers, strict=True):
        note = account.client.parse_event_notification(body, headers["stripe-signature"], "whsec_thin")
        with pytest.raises(ValueError, match="thin"):
            stripe.Webhook.construct_event(body, headers["stripe-signature"], "whsec_thin")
        found[note.type] = note
    report = found["v1.billing.meter.error_report_triggered"]
    assert report.related_object.id == report.fetch_related_object().id == meter.id
    data = report.fetch_event().data
    assert data.reason.error_count == 8
    kinds = {kind.code: kind for kind in data.reason.error_types}
    assert {code: kind.error_count for code, kind in kinds.items()} == {
        "meter_event_customer_not_found": 7,
        "meter_event_no_customer_defined": 1,
    }
    named = [s.request.identifier for s in kinds["meter_event_customer_not_found"].sample_errors]
    assert named == ["k0", "k1", "k2", "k3", "k4"]  # a sample, not all
    lost = found["v1.billing.meter.no_meter_found"].fetch_event().data
    assert [s.request.identifier for s in lost.reason.error_types[0].sample_errors] == ["no meter"]

    events = account.client.v2.core.events
    since = {"created": {"gte": report.created}, "types": list(found)}
    assert len(list(events.list({"limit": 1, **since}).auto_paging_iter())) == 2
    assert events.list({"created": {"gt": report.created}}).data == []
    assert [event.type for event in events.list({"types": [report.type]}).data] == [report.type]
    with pytest.raises(stripe.InvalidRequestError, match="RFC 3339"):
        events.list({"created": {"gte": "yesterday"}})
    assert [e.type for e in account.client.v2.core.events.list({"object_id": meter.id}).data] == [report.type]
    assert account.v1.events.list({"type": "v1.*"}).data == []


def test_each_rejection_is_reported_once(month: Sandbox) -> None:
    account = month.account()
    account.set(rejection_delay_seconds=10)
    account.meter()
    for _ in range(2):
        account.use("cus_no", 1)
        month.move_to(month.now() + 10)
    reports = account.client.v2.core.events.list().data
    assert [report.data.reason.error_count for report in reports] == [1, 1]


def test_an_archived_meter_is_told_from_none(month: Sandbox) -> None:
    account = month.account()
    meter, customer = account.meter(), account.customer()
    account.v1.billing.meters.deactivate(meter.id)
    account.use(customer, 1)
    month.move_to(month.now() + 60)
    (report,) = account.client.v2.core.events.list().data
    assert (report.type, report.data.reason.error_types[0].code) == (
        "v1.billing.meter.error_report_triggered",
        "archived_meter",
    )


def test_one_call_at_a_time_for_a_customer_and_meter(account: Account) -> None:
    account.meter()
    customer, other = account.customer(), account.customer()
    fault = {"kind": "slow", "seconds": 0.5, "path": "/v1/billing/meter_events"}
    account.sandbox.control.post("/_sandbox/faults", json=fault, headers=account.auth)
    first = threading.Thread(target=account.use, args=(customer, 1))
    first.start()
    while not account.sandbox.control.get("/_sandbox/faults", headers=account.auth).json()["faults"][0]["struck"]:
        time.sleep(0.005)
    account.use(other, 1)
    with pytest.raises(stripe.RateLimitError) as caught:
        account.use(customer, 1)
    assert caught.value.http_status == 429
    assert caught.value.headers["stripe-rate-limited-reason"] == "resource-specific"
    first.join()
    account.use(customer, 1)
    assert account.stats()["meter_events"] == {"accepted": 3}


def test_the_rate_of_meter_calls_can_be_limited(account: Account) -> None:
    account.meter()
    account.set(meter_calls_per_second=1000)
    account.use(account.customer(), 1)

    limiter = Limiter()
    for _ in range(3):
        limiter.take("acct_1", 3, now=10.0)
    with pytest.raises(ApiError) as caught:
        limiter.take("acct_1", 3, now=10.2)
    assert (caught.value.status, caught.value.headers["stripe-rate-limited-reason"]) == (429, "endpoint-rate")
    limiter.take("acct_2", 3, now=10.2)
    limiter.take("acct_1", 3, now=10.34)
