"""Subscriptions: periods and anchors, backdating, trials, changes of items, cancelling."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox


def unix(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def subscribed(account: Account, **params: Any) -> tuple[Any, str, str]:
    """A subscription to one metered price of a cent a unit, its customer, its meter."""
    meter = account.meter().id
    customer = account.customer()
    price = account.price(meter)
    made = account.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}], **params})
    return made, customer, meter


def period(subscription: Any) -> tuple[int, int]:
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


def invoices(account: Account, subscription: Any) -> list[Any]:
    found = account.v1.invoices.list({"subscription": subscription.id, "limit": 100})
    return list(found.auto_paging_iter())[::-1]


def billed(invoice: Any) -> list[tuple[int, int, int]]:
    """(period start, period end, quantity) of the lines."""
    return [(line.period.start, line.period.end, int(line.quantity_decimal)) for line in invoice.lines.data]


def test_a_metered_subscription_starts_now_without_an_invoice(account: Account) -> None:
    subscription, customer, meter = subscribed(account, metadata={"tenant": "globex"})
    now = account.sandbox.now()
    assert (subscription.status, subscription.start_date, subscription.billing_cycle_anchor) == ("active", now, now)
    assert subscription.latest_invoice is None
    item = subscription["items"].data[0]
    assert (item.price.recurring.meter, item.plan.meter, item.subscription) == (meter, meter, subscription.id)
    assert [i.id for i in account.v1.subscription_items.list({"subscription": subscription.id}).data] == [item.id]
    assert account.v1.subscription_items.retrieve(item.id).to_dict() == item.to_dict()
    assert [s.id for s in account.v1.subscriptions.list({"customer": customer}).data] == [subscription.id]
    assert account.v1.customers.retrieve(customer).currency == "usd"


def test_periods_anchored_on_the_31st_tile(fresh: Sandbox) -> None:
    fresh.move_to(unix("2026-03-31T10:00"))
    account = fresh.account()
    subscription, _, _ = subscribed(account)
    seen = [period(subscription)]
    for _ in range(4):
        fresh.move_to(seen[-1][1])
        seen.append(period(account.v1.subscriptions.retrieve(subscription.id)))
    ends = ["2026-04-30T10:00", "2026-05-31T10:00", "2026-06-30T10:00", "2026-07-31T10:00", "2026-08-31T10:00"]
    assert [end for _, end in seen] == [unix(end) for end in ends]
    assert all(before[1] == after[0] for before, after in pairwise(seen))
    assert [(i.period_start, i.period_end) for i in invoices(account, subscription)] == seen[:4]


def test_an_anchor_ahead_makes_a_short_first_period(account: Account) -> None:
    now = account.sandbox.now()
    subscription, _, _ = subscribed(account, billing_cycle_anchor=now + 10 * DAY)
    assert period(subscription) == (now, now + 10 * DAY)


def test_an_anchor_by_its_parts(month: Sandbox) -> None:
    account = month.account()
    config = {"day_of_month": 31, "hour": 0, "minute": 0, "second": 0}
    subscription, _, _ = subscribed(account, billing_cycle_anchor_config=config)
    assert period(subscription) == (month.now(), month.now() + 30 * DAY)


def test_backdated_to_the_start_of_the_month_all_usage_is_on_one_invoice(month: Sandbox) -> None:
    start = month.now()
    end = start + 31 * DAY
    month.move_to(start + 9 * DAY)
    account = month.account()
    subscription, customer, _ = subscribed(account, backdate_start_date=start, billing_cycle_anchor=end)
    assert (subscription.start_date, period(subscription)) == (start, (start, end))
    account.use(customer, 40, start)
    account.use(customer, 2, month.now())
    month.move_to(end)
    assert billed(invoices(account, subscription)[0]) == [(start, end, 42)]


def test_backdated_over_whole_periods_those_are_billed_at_once(month: Sandbox) -> None:
    first = month.now()
    month.move_to(first + 10 * DAY)
    account = month.account()
    meter, customer = account.meter().id, account.customer()
    account.use(customer, 3, first - 5 * DAY)
    account.use(customer, 4, first + 3 * DAY)
    subscription = account.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": account.price(meter).id}],
            "backdate_start_date": first - 5 * DAY,
            "billing_cycle_anchor": first + 31 * DAY,
        }
    )
    (invoice,) = invoices(account, subscription)
    assert (invoice.status, invoice.billing_reason) == ("paid", "subscription_create")
    assert billed(invoice) == [(first - 5 * DAY, first, 3)]
    assert period(subscription) == (first, first + 31 * DAY)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"billing_cycle_anchor": -DAY}, "billing_cycle_anchor"),
        ({"billing_cycle_anchor": 40 * DAY}, "billing_cycle_anchor"),
        ({"backdate_start_date": DAY}, "backdate_start_date"),
        ({"trial_end": -DAY}, "trial_end"),
        ({"trial_end": 10**15}, "trial_end"),
        ({"cancel_at": 10**15}, "cancel_at"),
        ({"backdate_start_date": -30 * 365 * DAY}, "backdate_start_date"),
        ({"cancel_at": -DAY}, "cancel_at"),
    ],
)
def test_moments_that_stripe_would_refuse(account: Account, params: dict[str, int], param: str) -> None:
    now = account.sandbox.now()
    with pytest.raises(stripe.InvalidRequestError) as caught:
        subscribed(account, **{name: now + offset for name, offset in params.items()})
    assert caught.value.param == param
    assert account.v1.subscriptions.list({"status": "all"}).data == []


def test_items_that_stripe_would_refuse(account: Account) -> None:
    customer, meter = account.customer(), account.meter().id
    month, euro = account.price(meter), account.price(meter, currency="eur")
    day = account.price(meter, recurring={"interval": "day"})
    old = account.price(meter, active=False)
    for prices, message in (
        ([], "items"),
        ([month, month], "same price"),
        ([month, euro], "same currency"),
        ([month, day], "interval"),
        ([old], "inactive"),
    ):
        with pytest.raises(stripe.InvalidRequestError, match=message):
            account.v1.subscriptions.create({"customer": customer, "items": [{"price": p.id} for p in prices]})
    with pytest.raises(stripe.InvalidRequestError, match="No such customer") as caught:
        account.v1.subscriptions.create({"customer": "cus_no", "items": [{"price": month.id}]})
    assert caught.value.http_status == 400


def test_usage_in_a_trial_is_free_and_the_anchor_is_its_end(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, _ = subscribed(account, trial_period_days=7)
    now = month.now()
    trial_end = now + 7 * DAY
    assert (subscription.status, period(subscription)) == ("trialing", (now, trial_end))
    account.use(customer, 100, now)
    month.move_to(trial_end)
    subscription = account.v1.subscriptions.retrieve(subscription.id)
    assert (subscription.status, period(subscription)[0]) == ("active", trial_end)
    account.use(customer, 5, trial_end)
    month.move_to(period(subscription)[1])
    assert [billed(i) for i in invoices(account, subscription)] == [[(*period(subscription), 5)]]


def test_cancelled_now_nothing_is_billed_unless_asked_for(month: Sandbox) -> None:
    account = month.account()
    kept, customer, _ = subscribed(account)
    start = month.now()
    account.use(customer, 5, start)
    month.move_to(start + HOUR + 1800)
    ended = account.v1.subscriptions.cancel(kept.id)
    assert (ended.status, ended.ended_at) == ("canceled", month.now())
    assert invoices(account, kept) == []
    assert account.v1.subscriptions.list({"customer": customer}).data == []
    assert len(account.v1.subscriptions.list({"customer": customer, "status": "all"}).data) == 1
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        account.v1.subscriptions.cancel(kept.id)


def test_cancelled_in_mid_hour_with_invoice_now_what_was_used_is_billed(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, _ = subscribed(account)
    start = month.now()
    account.use(customer, 5, start)
    month.move_to(start + HOUR + 1800)
    account.use(customer, 7, start + HOUR)
    account.v1.subscriptions.cancel(subscription.id, {"invoice_now": True})
    (invoice,) = invoices(account, subscription)
    assert billed(invoice) == [(start, start + HOUR + 1800, 12)]


def test_cancelled_at_the_end_of_the_period_the_period_is_billed(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, _ = subscribed(account)
    account.use(customer, 5, month.now())
    changed = account.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    assert (changed.cancel_at, changed.status) == (period(subscription)[1], "active")
    month.move_to(period(subscription)[1])
    assert account.v1.subscriptions.retrieve(subscription.id).status == "canceled"
    (invoice,) = invoices(account, subscription)
    assert billed(invoice) == [(*period(subscription), 5)]
    assert "customer.subscription.deleted" in account.event_types()


def test_a_planned_cancellation_can_be_taken_back(month: Sandbox) -> None:
    account = month.account()
    subscription, _, _ = subscribed(account, cancel_at=month.now() + 3 * DAY)
    account.v1.subscriptions.update(subscription.id, {"cancel_at": ""})
    month.move_to(month.now() + 4 * DAY)
    assert account.v1.subscriptions.retrieve(subscription.id).status == "active"


def test_a_change_of_price_bills_each_part_by_its_price(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, meter = subscribed(account)
    start, end = period(subscription)
    item = subscription["items"].data[0]
    account.use(customer, 100, start)
    change = start + 10 * DAY
    month.move_to(change)
    dearer = account.price(meter, unit_amount=3)
    account.v1.subscriptions.update(subscription.id, {"items": [{"id": item.id, "price": dearer.id}]})
    account.use(customer, 10, change)
    month.move_to(end + HOUR)
    (invoice,) = invoices(account, subscription)
    assert billed(invoice) == [(start, change, 100), (change, end, 10)]
    assert [line.amount for line in invoice.lines.data] == [100, 30]


def test_an_item_that_is_removed_leaves_its_usage_and_one_that_is_added_counts_from_then(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, meter = subscribed(account)
    start, end = period(subscription)
    item = subscription["items"].data[0]
    account.use(customer, 100, start)
    change = start + 10 * DAY
    month.move_to(change)
    other = account.price(meter, unit_amount=3)
    changes = [{"id": item.id, "deleted": True}, {"price": other.id}]
    changed = account.v1.subscriptions.update(subscription.id, {"items": changes})
    assert [i.price.id for i in changed["items"].data] == [other.id]
    account.use(customer, 10, change)
    month.move_to(end + HOUR)
    (invoice,) = invoices(account, subscription)
    assert [line.amount for line in invoice.lines.data] == [100, 30]


def test_an_item_that_is_removed_with_its_usage_leaves_none(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, meter = subscribed(account)
    end = period(subscription)[1]
    account.use(customer, 100, month.now())
    month.move_to(month.now() + DAY)
    item = subscription["items"].data[0].id
    gone = {"id": item, "deleted": True, "clear_usage": True}
    other = account.price(meter, unit_amount=3).id
    account.v1.subscriptions.update(subscription.id, {"items": [gone, {"price": other}]})
    month.move_to(end + HOUR)
    (invoice,) = invoices(account, subscription)
    assert invoice.total == 0


def test_an_embedded_list_of_items_is_a_first_page(account: Account) -> None:
    meter = account.meter().id
    product = account.v1.products.create({"name": "P"}).id
    prices = [account.price(meter, product=product).id for _ in range(12)]
    made = account.v1.subscriptions.create({"customer": account.customer(), "items": [{"price": p} for p in prices]})
    assert (len(made["items"].data), made["items"].has_more) == (10, True)
    items = account.v1.subscription_items.list({"subscription": made.id, "limit": 5}).auto_paging_iter()
    assert [item.price.id for item in items] == prices


def test_deleting_a_customer_ends_the_subscriptions(account: Account) -> None:
    subscription, customer, _ = subscribed(account)
    account.v1.customers.delete(customer)
    assert account.v1.subscriptions.retrieve(subscription.id).status == "canceled"


def test_items_may_be_changed_by_their_own_calls(month: Sandbox) -> None:
    account = month.account()
    subscription, customer, meter = subscribed(account)
    start, end = period(subscription)
    item = subscription["items"].data[0].id
    account.use(customer, 100, start)
    change = start + 10 * DAY
    month.move_to(change)
    items = account.v1.subscription_items
    dearer, other = account.price(meter, unit_amount=3), account.price(meter, unit_amount=5)
    account.v1.prices.update(subscription["items"].data[0].price.id, {"active": False})  # those in use may be archived
    added = items.create({"subscription": subscription.id, "price": dearer.id, "metadata": {"service": "x"}})
    assert (added.price.id, added.metadata.to_dict()) == (dearer.id, {"service": "x"})
    assert items.update(added.id, {"price": other.id}).price.id == other.id
    assert items.delete(item).deleted
    account.use(customer, 10, change)
    month.move_to(end + HOUR)
    (invoice,) = invoices(account, subscription)
    assert billed(invoice) == [(start, change, 100), (change, end, 10)]
    assert [line.amount for line in invoice.lines.data] == [100, 50]
    with pytest.raises(stripe.InvalidRequestError, match="items"):
        items.delete(added.id)  # a subscription keeps one item at least
    account.v1.subscriptions.cancel(subscription.id)
    with pytest.raises(stripe.InvalidRequestError, match="canceled"):
        items.update(added.id, {"metadata": {"a": "b"}})
