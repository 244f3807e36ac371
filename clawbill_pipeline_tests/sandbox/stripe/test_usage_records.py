"""Legacy usage records: the old API version alone, set and increment, on the invoice of their period."""

from __future__ import annotations

import json
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox

LEGACY = "2025-02-24.acacia"


class Legacy:
    """A customer on a price without a meter, a cent a unit, from the start of a month."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.account = account = sandbox.account()
        price = account.v1.prices.create(
            {
                "currency": "usd",
                "unit_amount": 1,
                "product_data": {"name": "Legacy"},
                "recurring": {"interval": "month", "usage_type": "metered"},
            },
            {"stripe_version": LEGACY},
        )
        params = {"customer": account.customer(), "items": [{"price": price.id}]}
        self.subscription = account.v1.subscriptions.create(params)
        self.item = self.subscription["items"].data[0].id
        self.start, self.end = sandbox.now(), sandbox.now() + 31 * DAY

    def record(self, quantity: int, timestamp: int | str, version: str = LEGACY, **params: Any) -> Any:
        path = f"/v1/subscription_items/{self.item}/usage_records"
        params = {"quantity": quantity, "timestamp": timestamp, "action": "set", **params}
        answer = self.account.client.raw_request("post", path, stripe_version=version, **params)
        return json.loads(answer.body)

    def totals(self) -> list[tuple[str | None, int]]:
        path = f"/v1/subscription_items/{self.item}/usage_record_summaries"
        answer = json.loads(self.account.client.raw_request("get", path, stripe_version=LEGACY).body)
        return [(summary["invoice"], summary["total_usage"]) for summary in answer["data"]]


def test_set_puts_and_increment_adds(month: Sandbox) -> None:
    legacy = Legacy(month)
    record = legacy.record(5, legacy.start)
    assert (record["object"], record["quantity"], record["timestamp"]) == ("usage_record", 5, legacy.start)
    assert legacy.record(7, legacy.start)["id"] == record["id"]
    assert legacy.record(2, legacy.start, action="increment")["quantity"] == 9
    legacy.record(1, "now", action="increment")
    assert legacy.totals() == [(None, 10)]


def test_the_invoice_bills_the_period_and_late_records_until_it_is_final(month: Sandbox) -> None:
    legacy = Legacy(month)
    legacy.record(5, legacy.start)
    month.move_to(legacy.end + HOUR // 2)
    legacy.record(3, legacy.end - 1)
    legacy.record(100, legacy.end)
    month.move_to(legacy.end + HOUR)
    (invoice,) = legacy.account.v1.invoices.list().data
    assert (invoice.status, invoice.total) == ("paid", 8)
    assert legacy.totals() == [(None, 100), (invoice.id, 8)]
    with pytest.raises(stripe.InvalidRequestError, match="outside of the open periods"):
        legacy.record(1, legacy.end - 1)


def test_the_call_is_gone_from_the_current_version(month: Sandbox) -> None:
    legacy = Legacy(month)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        legacy.record(5, legacy.start, version="2026-10-28.endive")
    assert caught.value.http_status == 404
    assert legacy.totals() == [(None, 0)]


def test_what_is_refused(month: Sandbox) -> None:
    legacy = Legacy(month)
    for quantity, timestamp, params in (
        (-1, legacy.start, {}),
        (1, legacy.start - 1, {}),
        (1, legacy.start + 301, {}),
        (1, "yesterday", {}),
        (1, legacy.start, {"action": "clear"}),
        (1, legacy.start, {"value": 1}),
    ):
        with pytest.raises(stripe.InvalidRequestError):
            legacy.record(quantity, timestamp, **params)
    assert legacy.totals() == [(None, 0)]


def test_a_price_with_a_meter_takes_none(account: Account) -> None:
    price = account.price(account.meter().id)
    made = account.v1.subscriptions.create({"customer": account.customer(), "items": [{"price": price.id}]})
    path = f"/v1/subscription_items/{made['items'].data[0].id}/usage_records"
    with pytest.raises(stripe.InvalidRequestError, match="backed by a meter"):
        account.client.raw_request("post", path, quantity=1, stripe_version=LEGACY)
