"""Webhooks and events: signatures, retries, who gets what, and the list that fetches what was lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Receiver, Sandbox, receiving

SECRET = "whsec_of_the_test"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(SECRET) as running:
        yield running


def test_events_arrive_signed_with_the_given_secret(month: Sandbox, receiver: Receiver) -> None:
    account = month.account()
    account.register(receiver)
    customer = account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert account.flush() == {"delivered": 1, "failed": 0, "pending": 0}
    (event,) = receiver.events
    assert (event.type, event.created, event.livemode) == ("customer.created", month.now(), False)
    assert event.data.object.to_dict() == customer.to_dict()
    assert event.request.idempotency_key == "k"
    assert event.api_version == "2026-10-28.endive"
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(receiver.bodies[0], receiver.headers[0]["stripe-signature"], "whsec_other")


def test_an_endpoint_made_through_the_api_shows_its_secret_once_and_gets_what_it_asked_for(month: Sandbox) -> None:
    account, other = month.account(), month.account()
    with receiving("") as receiver:
        params = {"url": receiver.url, "enabled_events": ["customer.updated"]}
        endpoint = account.v1.webhook_endpoints.create(params)
        receiver.secret = endpoint.secret
        assert "secret" not in account.v1.webhook_endpoints.retrieve(endpoint.id)
        other.customer()
        customer = account.customer()
        account.v1.customers.update(customer, {"name": "B"})
        account.flush()
        (event,) = receiver.events
        assert (event.type, event.data.previous_attributes.to_dict()) == ("customer.updated", {"name": "Globex"})
        account.v1.webhook_endpoints.update(endpoint.id, {"disabled": True})
        account.v1.customers.update(customer, {"name": "C"})
        account.v1.webhook_endpoints.delete(endpoint.id)
        assert account.v1.webhook_endpoints.list().data == []
        account.flush()
        assert len(receiver.events) == 1
    with pytest.raises(stripe.InvalidRequestError):
        account.v1.webhook_endpoints.create({"url": "https://example.com", "enabled_events": ["no.such_event"]})


def test_whatever_is_not_2xx_is_tried_again(month: Sandbox, receiver: Receiver) -> None:
    account = month.account()
    account.register(receiver)
    account.set(webhook_retry_seconds=0.05)
    answers = iter([500, 302, 404])
    done = threading.Event()

    def answer() -> int:
        status = next(answers, 200)
        if status == 200:
            done.set()
        return status

    receiver.answer = answer
    account.customer()
    assert done.wait(20)
    assert account.flush() == {"delivered": 1, "failed": 0, "pending": 0}
    assert len(receiver.bodies) == 4
    assert len(receiver.events) == 1


def test_what_an_outage_lost_waits_and_is_in_the_list(month: Sandbox, receiver: Receiver) -> None:
    account = month.account()
    account.register(receiver)
    account.set(webhook_retry_seconds=3600)
    receiver.answer = lambda: 503
    account.customer()
    assert account.flush() == {"delivered": 0, "failed": 0, "pending": 1}
    (event,) = account.v1.events.list({"delivery_success": False}).data
    assert event.pending_webhooks == 1
    receiver.answer = lambda: 200
    assert account.flush() == {"delivered": 1, "failed": 0, "pending": 0}
    assert account.v1.events.list({"delivery_success": False}).data == []
    assert account.v1.events.retrieve(event.id).pending_webhooks == 0


def test_several_endpoints_get_each_event(month: Sandbox) -> None:
    account = month.account()
    with ExitStack() as stack:
        receivers = [stack.enter_context(receiving(SECRET)) for _ in range(2)]
        for receiver in receivers:
            account.register(receiver)
            account.register(receiver)  # again: the same endpoint, not a second one
        account.customer()
        assert account.flush()["delivered"] == 2
        assert [receiver.types for receiver in receivers] == [["customer.created"]] * 2


def test_events_are_listed_by_type_and_time_newest_first(month: Sandbox) -> None:
    account = month.account()
    start = month.now()
    account.meter()
    customers = [account.customer() for _ in range(3)][::-1]
    month.move_to(start + HOUR)
    account.v1.customers.update(customers[0], {"name": "B"})
    events = account.v1.events
    assert [e.data.object.id for e in events.list({"type": "customer.created"}).data] == customers
    assert len(events.list({"type": "customer.*"}).data) == 4
    assert len(events.list({"types": ["customer.updated", "billing.meter.created"]}).data) == 2
    assert [e.type for e in events.list({"created": {"gte": start + HOUR}}).data] == ["customer.updated"]
    assert len(list(events.list({"limit": 2}).auto_paging_iter())) == 5
    for params in ({"type": "a", "types": ["b"]}, {"types": ["a"] * 21}, {"starting_after": "evt_no"}):
        with pytest.raises(stripe.InvalidRequestError):
            events.list(params)


def test_events_reach_back_30_days(month: Sandbox) -> None:
    account = month.account()
    account.customer()
    (event,) = account.v1.events.list().data
    month.move_to(month.now() + 30 * DAY)
    assert len(account.v1.events.list().data) == 1
    month.move_to(month.now() + 1)
    assert account.v1.events.list().data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such event"):
        account.v1.events.retrieve(event.id)


def test_duplicates_and_disorder_are_on_request_and_the_same_each_time(month: Sandbox, receiver: Receiver) -> None:
    account = month.account()
    account.register(receiver)
    account.set(webhook_duplicates=1.0, webhook_shuffle_seconds=3600)
    made = [account.customer() for _ in range(12)]
    assert account.flush() == {"delivered": 24, "failed": 0, "pending": 0}
    assert sorted(event.data.object.id for event in receiver.events) == sorted(made * 2)
    assert len({event.id for event in receiver.events}) == 12
    seen = [event.data.object.id for event in receiver.events]
    assert list(dict.fromkeys(seen)) != made
