"""Subscription items: how they are shown and read (``/v1/subscription_items``). Changes are in ``item_changes``.

``_from`` is since when the item's usage in the current period is its own (its adding, or the last change of price).
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import VIEWS, Call, Document, Route, page, public, shown
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.prices import plan_of
from clawbill_pipeline.sandbox.stripe.tax_rates import checked_rates


def new_item(
    call: Call, subscription: str, price: str, metadata: Document, since: int, given: Document | None = None
) -> Document:
    """An item of ``subscription`` whose usage counts from ``since`` on; ``given`` has its quantity and tax rates."""
    item: Document = {
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
    set_terms(call, item, given or {}, "items")
    return item


def set_terms(call: Call, item: Document, given: Document, place: str) -> None:
    """Sets quantity and tax rates; a metered item has no quantity. Raises ApiError (400)."""
    if "tax_rates" in given:
        item["tax_rates"] = checked_rates(call, given["tax_rates"], f"{place}[tax_rates]")
    if call.find("price", item["price"])["recurring"]["usage_type"] == "metered":
        if "quantity" in given:
            raise invalid("`quantity` can't be set for metered items: their usage is what is billed.", place)
        item.pop("quantity", None)
        return
    item["quantity"] = given.get("quantity", item.get("quantity", 1))
    if item["quantity"] < 0:
        raise invalid("`quantity` must not be negative.", place)


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
