"""Changing what a subscription bills: items added, moved to another price, removed, by either of Stripe's ways.

Metered usage up to a change stays with the old price and goes on the next invoice (``_pending`` of the subscription).
Licensed items are prorated (``prorations``).
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, shown
from clawbill_pipeline.sandbox.stripe.errors import invalid, unsupported
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.invoicing import bill_subscription, finalize
from clawbill_pipeline.sandbox.stripe.prorations import Licence, licence_of, moment, prorate
from clawbill_pipeline.sandbox.stripe.subscription_items import new_item, set_terms


def items_of(call: Call, subscription: Document) -> list[Document]:
    """The items that are on the subscription now, oldest first."""
    return call.store.select(call.account, "subscription_item", parent=subscription["id"])


def checked_prices(
    call: Call, identifiers: list[str | None], param: str = "items", kept: frozenset[str] = frozenset()
) -> list[Document]:
    """The prices, where a subscription may have them together; those it has already (``kept``) may be archived.

    Raises ApiError (400) that names the place.
    """
    if not identifiers:
        raise invalid("Missing required param: items.", param, "parameter_missing")
    if len(identifiers) > 20:
        raise invalid("A subscription has at most 20 items.", param)
    prices = []
    for index, identifier in enumerate(identifiers):
        place = f"{param}[{index}][price]"
        if identifier is None:
            raise invalid(f"Missing required param: {place}.", place, "parameter_missing")
        price = call.find("price", identifier, param=place)
        if not price["active"] and identifier not in kept:
            raise invalid("The price specified is inactive. This field only accepts active prices.", place)
        prices.append(price)
    if len(set(identifiers)) < len(identifiers):
        raise invalid("Cannot add multiple subscription items with the same price.", param)
    if len({price["currency"] for price in prices}) > 1:
        raise invalid("All prices on a subscription must have the same currency.", param)
    if len({(p["recurring"]["interval"], p["recurring"]["interval_count"]) for p in prices}) > 1:
        raise unsupported("subscriptions whose prices differ in `recurring.interval`", param)
    return prices


def change_items(call: Call, subscription: Document, changes: list[Document], how: Document) -> None:
    """Adds, changes and removes items. Metered usage up to the change stays with the old price, on the next invoice.

    ``how`` is the request: its ``proration_behavior`` and ``proration_date`` say what becomes of licensed items.
    """
    behaviour = how.get("proration_behavior", "create_prorations")
    at = moment(call, subscription, how) if behaviour != "none" else call.now
    before = licences(call, subscription)
    _change(call, subscription, changes)
    if behaviour == "none":
        return
    prorated = prorate(call, subscription, before, licences(call, subscription), at)
    if prorated and behaviour == "always_invoice":
        call.put("subscription", subscription)
        finalize(call, bill_subscription(call, subscription, [], (at, call.now), "subscription_update"))


def licences(call: Call, subscription: Document) -> list[Licence]:
    """What the subscription's licensed items are billed by in advance."""
    found = (licence_of(call, item) for item in items_of(call, subscription))
    return [licence for licence in found if licence is not None]


def _change(call: Call, subscription: Document, changes: list[Document]) -> None:
    items = {item["id"]: item for item in items_of(call, subscription)}
    kept = frozenset(item["price"] for item in items.values())
    terms: list[tuple[Document, Document, str]] = []
    for index, change in enumerate(changes):
        place = f"items[{index}]"
        if "id" not in change:
            price = checked_prices(call, [change.get("price")], place)[0]
            metadata = merged_metadata({}, change.get("metadata"))
            item = new_item(call, subscription["id"], price["id"], metadata, call.now, change)
            items[item["id"]] = item
            continue
        if change["id"] not in items:
            raise invalid(f"No such subscription item: '{change['id']}'", f"{place}[id]", "resource_missing")
        item = items[change["id"]]
        if change.get("deleted"):
            if not change.get("clear_usage"):
                _leave_behind(call, subscription, item)
            call.store.drop(call.account, "subscription_item", item["id"])
            del items[item["id"]]
            continue
        item["metadata"] = merged_metadata(item["metadata"], change.get("metadata"))
        if change.get("price", item["price"]) != item["price"]:
            _leave_behind(call, subscription, item)
            item["price"], item["_from"] = change["price"], call.now
            item["quantity"] = 1  # Stripe's rule where the price changes and no quantity is given
        terms.append((item, change, place))
    checked_prices(call, [item["price"] for item in items.values()], kept=kept)
    for item, change, place in terms:
        set_terms(call, item, change, place)
    for item in items.values():
        call.put("subscription_item", item)


def _leave_behind(call: Call, subscription: Document, item: Document) -> None:
    metered = call.find("price", item["price"])["recurring"]["usage_type"] == "metered"
    if metered and call.now > item["_from"] and subscription["status"] != "trialing":
        segment = {"item": item["id"], "price": item["price"], "start": item["_from"], "end": call.now}
        subscription["_pending"].append(segment)


def create(call: Call, params: Document) -> Document:
    if "price" not in params:
        raise invalid("Missing required param: price.", "price", "parameter_missing")
    subscription = _live(call, params["subscription"], "subscription")
    known = {item["id"] for item in items_of(call, subscription)}
    _apply(call, subscription, {name: params[name] for name in _TERMS if name in params}, params)
    return next(shown(call, "subscription_item", i) for i in items_of(call, subscription) if i["id"] not in known)


def update(call: Call, params: Document, id: str) -> Document:
    subscription = _live(call, call.find("subscription_item", id)["subscription"], "id")
    _apply(call, subscription, {"id": id, **{name: params[name] for name in _TERMS if name in params}}, params)
    return shown(call, "subscription_item", call.find("subscription_item", id))


def delete(call: Call, params: Document, id: str) -> Document:
    subscription = _live(call, call.find("subscription_item", id)["subscription"], "id")
    change = {"id": id, "deleted": True, "clear_usage": params.get("clear_usage", False)}
    _apply(call, subscription, change, params)
    return {"id": id, "object": "subscription_item", "deleted": True}


def _live(call: Call, identifier: str, param: str) -> Document:
    subscription = call.find("subscription", identifier, param=param)
    if subscription["status"] == "canceled":
        raise invalid("The items of a canceled subscription cannot be changed.", param)
    return subscription


def _apply(call: Call, subscription: Document, change: Document, how: Document) -> None:
    before = shown(call, "subscription", subscription)
    change_items(call, subscription, [change], how)
    call.put("subscription", subscription)
    emit(call, "customer.subscription.updated", "subscription", subscription, before)


_TERMS = ("price", "metadata", "quantity", "tax_rates")
_HOW = "proration_behavior proration_date"
_PATH = "/v1/subscription_items"
ROUTES = [
    Route("POST", _PATH, Contract("SubscriptionItemCreateParams", f"{' '.join(_TERMS)} subscription {_HOW}"), create),
    Route("POST", _PATH + "/{id}", Contract("SubscriptionItemUpdateParams", f"{' '.join(_TERMS)} {_HOW}"), update),
    Route("DELETE", _PATH + "/{id}", Contract("SubscriptionItemDeleteParams", f"clear_usage {_HOW}"), delete),
]
