"""What time does to a subscription: a trial ends, a period ends and is billed, a planned cancellation comes true."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.core import Call, Document, shown
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.invoicing import bill_subscription
from clawbill_pipeline.sandbox.stripe.item_changes import items_of
from clawbill_pipeline.sandbox.stripe.periods import Cycle
from clawbill_pipeline.sandbox.stripe.subscriptions import end, in_advance, open_segments, reschedule


def due(call: Call, identifier: str) -> None:
    """The moment that ``subscriptions.reschedule`` noted has come."""
    subscription = call.store.get(call.account, "subscription", identifier)
    if subscription is None or subscription["status"] == "canceled":
        return
    if subscription["cancel_at"] is not None and subscription["cancel_at"] <= call.now:
        # The end of the last period is billed like every other.
        end(
            call,
            subscription,
            invoice_now=subscription["status"] != "trialing",
            prorate_unused=subscription["_cancel_prorates"],
        )
    elif subscription["_period"][1] <= call.now:
        _next_period(call, subscription)
        reschedule(call, subscription)


def _next_period(call: Call, subscription: Document) -> None:
    before = shown(call, "subscription", subscription)
    start, boundary = subscription["_period"]
    segments = open_segments(call, subscription, boundary)
    if subscription["status"] == "trialing":
        subscription["status"] = "active"  # What was used in the trial is free.
    subscription["_period"] = [boundary, Cycle(**subscription["_cycle"]).containing(boundary)[1]]
    subscription["_pending"] = []
    call.put("subscription", subscription)
    for item in items_of(call, subscription):
        call.put("subscription_item", {**item, "_from": boundary})
    advances = in_advance(call, subscription, tuple(subscription["_period"]))
    if segments or advances:
        bill_subscription(call, subscription, segments, (start, boundary), "subscription_cycle", advances)
    emit(call, "customer.subscription.updated", "subscription", subscription, before)
