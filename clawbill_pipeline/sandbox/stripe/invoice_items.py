"""Invoice items: ``/v1/invoiceitems``. An amount that a person adds: to a draft, or to the customer's next invoice."""

from __future__ import annotations

from decimal import Decimal

from clawbill_pipeline.money import plain
from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.errors import invalid, unsupported
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.invoicing import add_item_lines, editable_draft
from clawbill_pipeline.sandbox.stripe.pricing import minor_amount
from clawbill_pipeline.sandbox.stripe.tax_rates import checked_rates


def create(call: Call, params: Document) -> Document:
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = call.find("customer", params["customer"], param="customer")
    currency = params.get("currency") or customer["currency"]
    if currency is None:
        raise invalid("Missing required param: currency.", "currency", "parameter_missing")
    subscription = params.get("subscription")
    if subscription is not None:
        call.find("subscription", subscription, param="subscription")
    item: Document = {
        "id": call.new_id("ii"),
        "object": "invoiceitem",
        "currency": currency,
        "customer": customer["id"],
        "date": call.now,
        "created": call.now,
        "description": None,
        "discountable": False,  # Until its amount is known.
        "discounts": [],
        "invoice": params.get("invoice"),
        "livemode": False,
        "metadata": {},
        "parent": _parent(subscription),
        "period": {"end": call.now, "start": call.now},
        "proration": False,
        "proration_details": None,
        "tax_rates": [],
        "test_clock": None,
    }
    _price(item, params, 1)
    item["discountable"] = params.get("discountable", item["amount"] >= 0)
    _apply(call, item, params)
    if item["invoice"] is not None:
        draft = editable_draft(call, item["invoice"], "invoice")
        if draft["customer"] != customer["id"] or draft["currency"] != currency:
            raise invalid("The invoice is of another customer or currency.", "invoice")
    _keep(call, item)
    emit(call, "invoiceitem.created", "invoiceitem", item)
    return _shown(item)


def retrieve(call: Call, params: Document, id: str) -> Document:
    return _shown(call.find("invoiceitem", id))


def update(call: Call, params: Document, id: str) -> Document:
    item = call.find("invoiceitem", id)
    if item["invoice"] is not None:
        editable_draft(call, item["invoice"], "id")
    if {"amount", "quantity", "unit_amount_decimal"} & set(params):
        _price(item, params, item["quantity"])
    _apply(call, item, params)
    _keep(call, item)
    return _shown(item)


def delete(call: Call, params: Document, id: str) -> Document:
    item = call.find("invoiceitem", id)
    if item["invoice"] is not None:
        editable_draft(call, item["invoice"], "id")
    call.store.drop(call.account, "invoiceitem", id)
    if item["invoice"] is not None:
        add_item_lines(call, item["invoice"])
    emit(call, "invoiceitem.deleted", "invoiceitem", item)
    return {"id": id, "object": "invoiceitem", "deleted": True}


def list_all(call: Call, params: Document) -> Document:
    pending = params.get("pending")
    keep = (lambda item: (item["invoice"] is None) == pending) if pending is not None else None
    where = {"customer": params.get("customer"), "parent": params.get("invoice")}
    answer = page(call, "invoiceitem", params, "/v1/invoiceitems", where=where, keep=keep)
    return {**answer, "data": [_shown(item) for item in answer["data"]]}


def _parent(subscription: str | None) -> Document | None:
    if subscription is None:
        return None
    details = {"subscription": subscription, "subscription_item": None}
    return {"subscription_details": details, "type": "subscription_details"}


def _price(item: Document, params: Document, quantity: int) -> None:
    if "amount" in params:
        if "quantity" in params or "unit_amount_decimal" in params:
            raise invalid("Give either `amount`, or `quantity` and `unit_amount_decimal`.", "amount")
        quantity, unit = 1, Decimal(params["amount"])
    else:
        quantity = params.get("quantity", quantity)
        kept = item.get("pricing", {}).get("unit_amount_decimal")
        given = params.get("unit_amount_decimal", kept)
        if given is None:
            raise invalid("Give `amount`, or `quantity` and `unit_amount_decimal`.", "amount", "parameter_missing")
        unit = Decimal(given)
    amount = minor_amount(quantity * unit, item["currency"])
    item |= {"amount": amount, "net_amount": amount, "quantity": quantity, "quantity_decimal": str(quantity)}
    item["pricing"] = {"price_details": None, "type": "price_details", "unit_amount_decimal": plain(unit)}


def _apply(call: Call, item: Document, params: Document) -> None:
    item["description"] = params.get("description", item["description"])
    item["metadata"] = merged_metadata(item["metadata"], params.get("metadata"))
    item["period"] = params.get("period", item["period"])
    item["discountable"] = params.get("discountable", item["discountable"])
    if "tax_rates" in params:
        item["tax_rates"] = checked_rates(call, params["tax_rates"], "tax_rates")
    if item["period"]["start"] > item["period"]["end"]:
        raise invalid("`period[start]` must not be after `period[end]`.", "period[start]")
    if "pricing" in params:
        raise unsupported("invoice items by a price; give `amount` or `unit_amount_decimal`", "pricing")


def _keep(call: Call, item: Document) -> None:
    call.put("invoiceitem", {**item, "_parent": item["invoice"]})
    if item["invoice"] is not None:
        add_item_lines(call, item["invoice"])


def _shown(item: Document) -> Document:
    return {name: value for name, value in public(item).items() if name != "created"}


_PATH = "/v1/invoiceitems"
_COMMON = "amount description discountable metadata period pricing quantity tax_rates unit_amount_decimal"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract("InvoiceItemCreateParams", f"{_COMMON} currency customer invoice subscription"),
        create,
    ),
    Route(
        "GET",
        _PATH,
        Contract("InvoiceItemListParams", "created customer ending_before invoice limit pending starting_after"),
        list_all,
    ),
    Route("GET", _PATH + "/{id}", Contract("InvoiceItemRetrieveParams"), retrieve),
    Route("POST", _PATH + "/{id}", Contract("InvoiceItemUpdateParams", _COMMON), update),
    Route("DELETE", _PATH + "/{id}", Contract("InvoiceItemDeleteParams"), delete),
]
