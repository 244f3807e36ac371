"""Subscriptions: ``/v1/subscriptions``. Creating, changing and ending them; what time brings about is in ``renewal``.

``_period`` is the current period, ``_cycle`` where periods begin, ``_pending`` usage that an item left behind (removed,
or its price changed) and that the next invoice bills.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import (
    VIEWS,
    Call,
    Document,
    Route,
    list_of,
    merged_metadata,
    page,
    public,
    shown,
)
from clawbill_pipeline.sandbox.stripe.discounts import redeem
from clawbill_pipeline.sandbox.stripe.errors import invalid, unsupported
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.invoice_lines import Advance, Segment
from clawbill_pipeline.sandbox.stripe.invoicing import bill_subscription, finalize
from clawbill_pipeline.sandbox.stripe.item_changes import change_items, checked_prices, items_of, licences
from clawbill_pipeline.sandbox.stripe.periods import Cycle, next_anchor
from clawbill_pipeline.sandbox.stripe.prorations import prorate
from clawbill_pipeline.sandbox.stripe.subscription_items import new_item
from clawbill_pipeline.sandbox.stripe.tax_rates import checked_rates

_DAY = 86_400
_LONGEST_TRIAL = 730 * _DAY
_FURTHEST_CANCEL = 5 * 366 * _DAY
_MOST_LINES = 250


def create(call: Call, params: Document) -> Document:
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = call.find("customer", params["customer"], param="customer")
    prices = checked_prices(call, [entry.get("price") for entry in params.get("items", [])])
    _check_one_currency(call, customer, prices[0]["currency"])
    start = params.get("backdate_start_date", call.now)
    if start > call.now:
        raise invalid("`backdate_start_date` must be in the past.", "backdate_start_date")
    trial_end = _trial_end(call, params)
    cycle = _cycle(call, params, prices[0], trial_end)
    period_start, period_end = (call.now, trial_end) if trial_end else cycle.containing(call.now)
    subscription = _new(call, params, customer["id"], prices[0]["currency"], start, cycle)
    subscription["_period"] = [max(start, period_start), period_end]
    if trial_end:
        subscription |= {"status": "trialing", "trial_start": call.now, "trial_end": trial_end}
    _set_ending(call, subscription, params)
    call.put("subscription", subscription)
    items = []
    for entry, price in zip(params["items"], prices, strict=True):
        metadata = merged_metadata({}, entry.get("metadata"))
        since = subscription["_period"][0]
        item = new_item(call, subscription["id"], price["id"], metadata, since, entry)
        items.append(call.put("subscription_item", item))
    subscription["default_tax_rates"] = checked_rates(call, params.get("default_tax_rates"), "default_tax_rates")
    subscription["discounts"] = redeem(call, params.get("discounts"), customer["id"], subscription=subscription["id"])
    call.put("subscription", subscription)
    if not customer["currency"]:
        customer["currency"] = prices[0]["currency"]
        call.put("customer", customer)
    emit(call, "customer.subscription.created", "subscription", subscription)
    elapsed = [(since, until) for since, until in cycle.pieces(start, max(start, period_start)) if not trial_end]
    if len(elapsed) * len(items) > _MOST_LINES:
        raise invalid(f"Backdating would make more than {_MOST_LINES} invoice lines.", "backdate_start_date")
    segments = [Segment(i["id"], i["price"], *span) for span in elapsed for i in items if "quantity" not in i]
    spans = [] if trial_end else [*elapsed, (subscription["_period"][0], period_end)]
    is_free = params.get("proration_behavior") == "none"
    advances = [
        advance
        for span in spans
        for advance in in_advance(call, subscription, span)
        if not (is_free and advance.end - advance.start < advance.length)
    ]
    if segments or advances:
        last = max(start, period_start)
        invoice = bill_subscription(call, subscription, segments, (start, last), "subscription_create", advances)
        finalize(call, invoice)
    reschedule(call, subscription)
    return shown(call, "subscription", call.find("subscription", subscription["id"]))


def retrieve(call: Call, params: Document, id: str) -> Document:
    return shown(call, "subscription", call.find("subscription", id))


def update(call: Call, params: Document, id: str) -> Document:
    subscription = call.find("subscription", id)
    before = shown(call, "subscription", subscription)
    if subscription["status"] == "canceled" and set(params) - {"metadata", "cancellation_details", "expand"}:
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")
    subscription["metadata"] = merged_metadata(subscription["metadata"], params.get("metadata"))
    for name in ("description", "collection_method", "days_until_due"):
        if name in params:
            subscription[name] = params[name] or None
    _check_collection(subscription)
    _set_ending(call, subscription, params)
    if "default_tax_rates" in params:
        given = params["default_tax_rates"]
        subscription["default_tax_rates"] = checked_rates(call, given, "default_tax_rates")
    if params.get("discounts") or params.get("discounts") == "":
        given = params["discounts"]
        subscription["discounts"] = redeem(call, given, subscription["customer"], subscription=id)
    if "items" in params:
        change_items(call, subscription, params["items"], params)
    call.put("subscription", subscription)
    reschedule(call, subscription)
    if shown(call, "subscription", subscription) != before:
        emit(call, "customer.subscription.updated", "subscription", subscription, before)
    return shown(call, "subscription", subscription)


def cancel(call: Call, params: Document, id: str) -> Document:
    subscription = call.find("subscription", id)
    if subscription["status"] == "canceled":
        raise invalid(f"No such subscription: '{id}'", "id", "resource_missing")
    subscription["cancellation_details"]["reason"] = "cancellation_requested"
    subscription["cancellation_details"] |= params.get("cancellation_details", {})
    end(call, subscription, invoice_now=params.get("invoice_now", False), prorate_unused=params.get("prorate", False))
    return shown(call, "subscription", call.find("subscription", id))


def end(call: Call, subscription: Document, *, invoice_now: bool, prorate_unused: bool = False) -> None:
    """Cancels at once. Metered usage not invoiced yet is billed with ``invoice_now`` only, as with Stripe.

    ``prorate_unused`` credits what licensed items were paid for in advance.
    """
    before = shown(call, "subscription", subscription)
    if prorate_unused:
        prorate(call, subscription, licences(call, subscription), [], call.now)
    if invoice_now:
        segments = open_segments(call, subscription, call.now)
        start = subscription["_period"][0]
        bill_subscription(call, subscription, segments, (start, call.now), "subscription_cycle")
    subscription |= {"status": "canceled", "canceled_at": subscription["canceled_at"] or call.now}
    subscription |= {"ended_at": call.now, "_pending": []}
    call.put("subscription", subscription)
    call.store.unschedule(call.account, "subscription", subscription["id"])
    emit(call, "customer.subscription.deleted", "subscription", subscription, before)


def list_all(call: Call, params: Document) -> Document:
    status = params.get("status")

    def keep(subscription: Document) -> bool:
        if status is None and subscription["status"] == "canceled":
            return False
        if status == "ended" and subscription["status"] not in ("canceled", "incomplete_expired"):
            return False
        if params.get("collection_method", subscription["collection_method"]) != subscription["collection_method"]:
            return False
        return "price" not in params or any(i["price"] == params["price"] for i in items_of(call, subscription))

    where = {"customer": params.get("customer"), "status": None if status in (None, "all", "ended") else status}
    return page(call, "subscription", params, "/v1/subscriptions", where=where, keep=keep)


def open_segments(call: Call, subscription: Document, until: int) -> list[Segment]:
    """The usage that no invoice has billed: what items left behind, and each item's own up to ``until``."""
    if subscription["status"] == "trialing":
        return []
    metered = (item for item in items_of(call, subscription) if "quantity" not in item)
    own = [Segment(item["id"], item["price"], item["_from"], until) for item in metered]
    return [Segment(**pending) for pending in subscription["_pending"]] + own


def in_advance(call: Call, subscription: Document, span: tuple[int, int]) -> list[Advance]:
    """What licensed items are billed for ``span``, at its beginning: in full, or by the part of a period that it is."""
    whole = Cycle(**subscription["_cycle"]).containing(span[0])
    length = max(whole[1] - whole[0], span[1] - span[0])
    return [Advance(**asdict(each), start=span[0], end=span[1], length=length) for each in licences(call, subscription)]


def reschedule(call: Call, subscription: Document) -> None:
    """Notes when time next does something to the subscription."""
    call.store.unschedule(call.account, "subscription", subscription["id"])
    if subscription["status"] != "canceled":
        moments = [subscription["_period"][1], subscription["cancel_at"]]
        at = min(moment for moment in moments if moment is not None)
        call.store.schedule(at, call.account, "subscription", subscription["id"])


def _new(call: Call, params: Document, customer: str, currency: str, start: int, cycle: Cycle) -> Document:
    subscription: Document = {
        "id": call.new_id("sub"),
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": cycle.anchor,
        "billing_cycle_anchor_config": params.get("billing_cycle_anchor_config"),
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible", "updated_at": call.now},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": params.get("collection_method", "charge_automatically"),
        "created": call.now,
        "currency": currency,
        "customer": customer,
        "days_until_due": params.get("days_until_due"),
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": params.get("description"),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "latest_invoice": None,
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata")),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": start,
        "status": "active",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_start": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "_cycle": {"anchor": cycle.anchor, "interval": cycle.interval, "count": cycle.count, "day": cycle.day},
        "_pending": [],
        "_cancel_prorates": False,
    }
    if currency != params.get("currency", currency):
        raise invalid(f"The prices are in {currency}, not in {params['currency']}.", "currency")
    _check_collection(subscription)
    return subscription


def _check_one_currency(call: Call, customer: Document, currency: str) -> None:
    """Stripe: invoices of a customer may differ in currency, active subscriptions may not."""
    for other in call.store.select(call.account, "subscription", customer=customer["id"]):
        if other["status"] != "canceled" and other["currency"] != currency:
            raise invalid(
                "You cannot combine currencies on a single customer. This customer has an active subscription with"
                f" currency {other['currency']}.",
                "customer",
            )


def _check_collection(subscription: Document) -> None:
    if subscription["collection_method"] == "send_invoice":
        if subscription["days_until_due"] is None:
            raise invalid("If you set `send_invoice`, you must set `days_until_due`.", "days_until_due")
    elif subscription["days_until_due"] is not None:
        raise invalid("`days_until_due` goes with `collection_method=send_invoice` only.", "days_until_due")


def _trial_end(call: Call, params: Document) -> int | None:
    if "trial_end" in params and "trial_period_days" in params:
        raise invalid("You may only specify one of these parameters: trial_end, trial_period_days.", "trial_end")
    end = call.now + params["trial_period_days"] * _DAY if "trial_period_days" in params else params.get("trial_end")
    if end in (None, "now") or end == call.now:
        return None
    if end < call.now:
        raise invalid("Invalid timestamp: must be an integer Unix timestamp in the future.", "trial_end")
    if end > call.now + _LONGEST_TRIAL:
        raise invalid("Trials can be at most two years long.", "trial_end")
    if "backdate_start_date" in params:
        raise unsupported("a trial on a backdated subscription", "backdate_start_date")
    return int(end)


def _cycle(call: Call, params: Document, price: Document, trial_end: int | None) -> Cycle:
    interval, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    config = params.get("billing_cycle_anchor_config")
    start = trial_end or call.now
    if config is not None:
        if "billing_cycle_anchor" in params:
            message = "You may only specify one of these: billing_cycle_anchor, billing_cycle_anchor_config."
            raise invalid(message, "billing_cycle_anchor_config")
        if interval not in ("month", "year") or not 1 <= config["day_of_month"] <= 31:
            message = "`billing_cycle_anchor_config` goes with monthly and yearly prices, and days 1 to 31."
            raise invalid(message, "billing_cycle_anchor_config")
        return Cycle(next_anchor(start, config), interval, count, config["day_of_month"])
    anchor = params.get("billing_cycle_anchor", start)
    if anchor < call.now:
        message = "Invalid billing_cycle_anchor: must be a timestamp in the future."
        raise invalid(message, "billing_cycle_anchor")
    latest = Cycle(start, interval, count).boundary(1)
    if anchor > latest:
        message = f"billing_cycle_anchor cannot be later than next natural billing date ({latest}) for plan"
        raise invalid(message, "billing_cycle_anchor")
    return Cycle(anchor, interval, count)


def _set_ending(call: Call, subscription: Document, params: Document) -> None:
    if "cancel_at" in params and "cancel_at_period_end" in params:
        raise invalid("You may only specify one of these parameters: cancel_at, cancel_at_period_end.", "cancel_at")
    if "cancel_at_period_end" in params:
        at_end = params["cancel_at_period_end"]
        subscription["cancel_at_period_end"] = at_end
        subscription["cancel_at"] = subscription["_period"][1] if at_end else None
    elif "cancel_at" in params:
        at: Any = params["cancel_at"]
        if at == "max_billed_until":
            raise unsupported("cancel_at=max_billed_until", "cancel_at")
        at = subscription["_period"][1] if at in ("min_period_end", "max_period_end") else at or None
        if at is not None and at <= call.now:
            raise invalid("`cancel_at` must be in the future.", "cancel_at")
        if at is not None and at > call.now + _FURTHEST_CANCEL:
            raise invalid("`cancel_at` can be at most five years ahead.", "cancel_at")
        subscription["cancel_at"], subscription["cancel_at_period_end"] = at, False
        subscription["_cancel_prorates"] = params.get("proration_behavior") != "none"
    else:
        return
    ending = subscription["cancel_at"] is not None
    subscription["canceled_at"] = call.now if ending else None
    subscription["cancellation_details"]["reason"] = "cancellation_requested" if ending else None


def _view(call: Call, subscription: Document) -> Document:
    items = [shown(call, "subscription_item", item) for item in items_of(call, subscription)]
    url = f"/v1/subscription_items?subscription={subscription['id']}"
    # An embedded list is a first page of ten; the rest is behind its URL.
    return {**public(subscription), "items": list_of(items[:10], url, len(items) > 10)}


VIEWS["subscription"] = _view

_PATH = "/v1/subscriptions"
_COMMON = (
    "cancel_at cancel_at_period_end collection_method days_until_due default_tax_rates description discounts"
    " items.price items.metadata items.quantity items.tax_rates metadata proration_behavior"
)
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract(
            "SubscriptionCreateParams",
            f"{_COMMON} backdate_start_date billing_cycle_anchor billing_cycle_anchor_config currency customer"
            " trial_end trial_period_days",
        ),
        create,
    ),
    Route(
        "GET",
        _PATH,
        Contract(
            "SubscriptionListParams",
            "collection_method created customer ending_before limit price starting_after status",
        ),
        list_all,
    ),
    Route("GET", _PATH + "/{id}", Contract("SubscriptionRetrieveParams"), retrieve),
    Route(
        "POST",
        _PATH + "/{id}",
        Contract("SubscriptionUpdateParams", f"{_COMMON} items.id items.deleted items.clear_usage proration_date"),
        update,
    ),
    Route(
        "DELETE",
        _PATH + "/{id}",
        Contract("SubscriptionCancelParams", "cancellation_details invoice_now prorate"),
        cancel,
    ),
]
