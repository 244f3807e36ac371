"""Licensed items are paid in advance, and a change in a period moves money by the second; usage is never prorated."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox


def base_fee(account: Account, unit_amount: int, interval: str = "month", count: int = 1) -> str:
    recurring = {"interval": interval, "interval_count": count}
    product = account.v1.products.create({"name": f"Plan of {unit_amount}"}).id
    terms = {"currency": "usd", "product": product, "recurring": recurring, "unit_amount": unit_amount}
    return str(account.v1.prices.create(terms).id)


def subscribed(account: Account, *prices: str, **params: Any) -> Any:
    items = [{"price": price} for price in prices]
    return account.v1.subscriptions.create({"customer": account.customer(), "items": items, **params})


def lines_of(account: Account, subscription: str, number: int = 0) -> list[tuple[int, bool]]:
    """Amount of each line of the subscription's newest invoice (or an older one), and whether it is a proration."""
    invoice = account.v1.invoices.list({"subscription": subscription}).data[number]
    found = []
    for line in invoice.lines.data:
        details = line.parent.subscription_item_details or line.parent.invoice_item_details
        found.append((line.amount, details.proration))
    return found


def test_a_licence_is_paid_at_once_and_usage_when_the_period_is_over(account: Account, month: Sandbox) -> None:
    usage = account.price(account.meter().id, unit_amount=2).id
    subscription = subscribed(account, base_fee(account, 1000), usage)
    assert [item.to_dict().get("quantity") for item in subscription["items"].data] == [1, None]
    (first,) = account.v1.invoices.list({"subscription": subscription.id}).data
    assert (first.status, first.total, first.billing_reason) == ("paid", 1000, "subscription_create")
    account.use(subscription.customer, 7, month.now() + HOUR - HOUR)
    month.move_to(subscription["items"].data[0].current_period_end)
    (line, advance) = account.v1.invoices.list({"subscription": subscription.id}).data[0].lines.data
    assert (line.amount, advance.amount) == (14, 1000)
    assert line.period.end == advance.period.start, "usage of the period that ended, the licence of the next"


@pytest.mark.parametrize(("days", "in_february"), [(15, False), (14, True)])
def test_peers_13_an_upgrade_moves_the_real_length_of_the_period(fresh: Sandbox, days: int, in_february: bool) -> None:
    """The denominator is the period's own length (lago-api#6194): 31 days in March, 28 in February."""
    account = fresh.account()
    if in_february:
        fresh.move_to(1_801_440_000)  # 2027-02-01
    small, large = base_fee(account, 1000), base_fee(account, 3000)
    subscription = subscribed(account, small)
    item = subscription["items"].data[0]
    length = item.current_period_end - item.current_period_start
    assert length == (28 if in_february else 31) * DAY
    fresh.move_to(item.current_period_start + days * DAY)
    account.v1.subscriptions.update(subscription.id, {"items": [{"id": item.id, "price": large}]})
    pending = account.v1.invoice_items.list({"customer": subscription.customer, "pending": True}).data
    left = Decimal(length - days * DAY) / length
    expected = [int((amount * left).quantize(Decimal(1), ROUND_HALF_UP)) for amount in (3000, 1000)]
    assert [entry.amount for entry in pending] == [expected[0], -expected[1]]
    assert {(entry.period.start, entry.period.end) for entry in pending} == {(fresh.now(), item.current_period_end)}
    fresh.move_to(item.current_period_end)
    assert sorted(lines_of(account, subscription.id)) == sorted(
        [(3000, False), (expected[0], True), (-expected[1], True)]
    )


def test_who_asks_for_it_gets_the_proration_at_once_or_none(account: Account, month: Sandbox) -> None:
    small, large = base_fee(account, 1000), base_fee(account, 3000)
    subscription = subscribed(account, small)
    item = subscription["items"].data[0]
    start, end = item.current_period_start, item.current_period_end
    month.move_to(start + (end - start) // 2)
    change = {"items": [{"id": item.id, "quantity": 3}], "proration_behavior": "always_invoice"}
    account.v1.subscriptions.update(subscription.id, change)
    assert sorted(lines_of(account, subscription.id)) == [(-500, True), (1500, True)]
    assert account.v1.invoices.list({"subscription": subscription.id}).data[0].status == "paid"
    free = {"price": large, "proration_behavior": "none"}
    account.v1.subscription_items.update(item.id, free)
    assert account.v1.invoice_items.list({"customer": subscription.customer, "pending": True}).data == []
    with pytest.raises(stripe.InvalidRequestError, match="proration_date"):
        account.v1.subscription_items.update(item.id, {"quantity": 2, "proration_date": end})
    account.v1.subscription_items.update(item.id, {"quantity": 2, "proration_date": start})
    pending = account.v1.invoice_items.list({"customer": subscription.customer, "pending": True}).data
    assert [entry.amount for entry in pending] == [6000, -3000], "the whole period, as if changed at its beginning"


def test_a_cancellation_in_the_period_gives_back_what_was_not_used(account: Account, month: Sandbox) -> None:
    usage = account.price(account.meter().id, unit_amount=2).id
    subscription = subscribed(account, base_fee(account, 1000), usage)
    item = subscription["items"].data[0]
    account.use(subscription.customer, 100, month.now())
    month.move_to(item.current_period_start + (item.current_period_end - item.current_period_start) * 3 // 4)
    account.v1.subscriptions.cancel(subscription.id, {"prorate": True, "invoice_now": True})
    assert sorted(lines_of(account, subscription.id)) == [(-250, True), (200, False)]
    month.move_to(month.now() + 2 * HOUR)
    invoice = account.v1.invoices.list({"subscription": subscription.id}).data[0]
    assert (invoice.total, invoice.status, invoice.amount_due) == (-50, "paid", 0)
    assert account.v1.customers.retrieve(subscription.customer).balance == -50, "credit for the next invoice"


def test_a_short_first_period_costs_its_part(account: Account, month: Sandbox) -> None:
    start = month.now()
    price = base_fee(account, 3100)
    subscription = subscribed(account, price, billing_cycle_anchor=start + 10 * DAY)
    cycle = subscription["items"].data[0]
    ((amount, is_proration),) = lines_of(account, subscription.id)
    assert is_proration
    assert cycle.current_period_end == start + 10 * DAY
    assert 1000 <= amount <= 1107, "ten days of a month of 28 to 31"
    free = subscribed(account, price, billing_cycle_anchor=start + 10 * DAY, proration_behavior="none")
    assert account.v1.invoices.list({"subscription": free.id}).data == []


def test_a_trial_is_free_and_the_licence_is_paid_when_it_ends(account: Account, month: Sandbox) -> None:
    subscription = subscribed(account, base_fee(account, 1000), trial_period_days=7)
    assert account.v1.invoices.list({"subscription": subscription.id}).data == []
    month.move_to(month.now() + 7 * DAY)
    assert lines_of(account, subscription.id) == [(1000, False)]


@pytest.mark.parametrize(("interval", "count", "days"), [("day", 10, 10), ("week", 2, 14), ("year", 1, 365)])
def test_periods_of_other_intervals(account: Account, month: Sandbox, interval: str, count: int, days: int) -> None:
    subscription = subscribed(account, base_fee(account, 500, interval, count))
    item = subscription["items"].data[0]
    length = (item.current_period_end - item.current_period_start) // DAY
    assert length == days or (interval == "year" and length == 366)


def test_a_metered_item_has_no_quantity(account: Account) -> None:
    usage = account.price(account.meter().id).id
    items = [{"price": usage, "quantity": 2}]
    with pytest.raises(stripe.InvalidRequestError, match="metered"):
        account.v1.subscriptions.create({"customer": account.customer(), "items": items})
