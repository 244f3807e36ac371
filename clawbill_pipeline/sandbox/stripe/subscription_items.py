"""Subscription items: how they are shown and read (``/v1/subscription_items``). Changes are in ``item_changes``.

``_from`` is since when the item's usage in the current period is its own (its adding, or the last change of price).
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import VIEWS, Call, Document, Route, page, public, shown
from clawbill_pipeline.sandbox.stripe.prices import plan_of


def new_item(call: Call, subscription: str, price: str, metadata: Document, since: int) -> Document:
    """An item of ``subscription`` whose usage counts from ``since`` on."""
    return {
        "id": call.new_id("si"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": call.now,
        "discounts": [],
        "metadata": metadata,
        "price": price,
        "subscription": subscription,
        "tax_rates": [],
        "_parent": subscription,
        "_from": since,
    }


def _view(call: Call, item: Document) -> Document:
    price = call.find("price", item["price"])
    start, end = call.find("subscription", item["subscription"])["_period"]
    return {
        **public(item),
        "current_period_start": start,
        "current_period_end": end,
        "plan": plan_of(price),
        "price": public(price),
    }


VIEWS["subscription_item"] = _view


def retrieve(call: Call, params: Document, id: str) -> Document:
    return shown(call, "subscription_item", call.find("subscription_item", id))


def list_all(call: Call, params: Document) -> Document:
    subscription = call.find("subscription", params["subscription"], param="subscription")["id"]
    return page(
        call,
        "subscription_item",
        params,
        "/v1/subscription_items",
        where={"parent": subscription},
        oldest_first=True,
    )


ROUTES = [
    Route(
        "GET",
        "/v1/subscription_items",
        Contract("SubscriptionItemListParams", "ending_before limit starting_after subscription"),
        list_all,
    ),
    Route("GET", "/v1/subscription_items/{id}", Contract("SubscriptionItemRetrieveParams"), retrieve),
]
