"""Customers: ``/v1/customers``. Attributes are kept as given; invoices and credit notes use the balance."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, shown
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.events import emit

_PLAIN = ("address", "balance", "description", "email", "name", "phone", "preferred_locales", "shipping", "tax_exempt")
_EMPTY: Document = {"balance": 0, "preferred_locales": [], "tax_exempt": "none"}


def create(call: Call, params: Document) -> Document:
    identifier = call.new_id("cus")
    customer: Document = {
        "id": identifier,
        "object": "customer",
        **dict.fromkeys(_PLAIN),
        **_EMPTY,
        "created": call.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "invoice_credit_balance": {},
        "invoice_prefix": identifier[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "next_invoice_sequence": 1,
        "test_clock": None,
        "_lookup": None,
    }
    _apply(customer, params)
    call.put("customer", customer)
    emit(call, "customer.created", "customer", customer)
    return shown(call, "customer", customer)


def retrieve(call: Call, params: Document, id: str) -> Document:
    gone = call.store.get(call.account, "deleted_customer", id)
    return gone or shown(call, "customer", call.find("customer", id))


def update(call: Call, params: Document, id: str) -> Document:
    customer = call.find("customer", id)
    before = shown(call, "customer", customer)
    _apply(customer, params)
    call.put("customer", customer)
    if shown(call, "customer", customer) != before:
        emit(call, "customer.updated", "customer", customer, before)
    return shown(call, "customer", customer)


def delete(call: Call, params: Document, id: str) -> Document:
    from clawbill_pipeline.sandbox.stripe.subscriptions import end

    customer = call.find("customer", id)
    for subscription in call.store.select(call.account, "subscription", customer=id):
        if subscription["status"] != "canceled":
            end(call, subscription, invoice_now=False)
    emit(call, "customer.deleted", "customer", customer)
    call.store.drop(call.account, "customer", id)
    gone = {"id": id, "object": "customer", "deleted": True}
    return call.put("deleted_customer", gone)


def list_all(call: Call, params: Document) -> Document:
    wanted = params.get("email")
    keep = (lambda customer: customer["email"] == wanted) if wanted is not None else None
    return page(call, "customer", params, "/v1/customers", keep=keep)


def _apply(customer: Document, params: Document) -> None:
    for name in _PLAIN:
        if name in params:
            customer[name] = params[name] if params[name] != "" else _EMPTY.get(name)
    if len(params.get("email") or "") > 512:
        raise invalid("Invalid email address.", "email", "email_invalid")
    customer["metadata"] = merged_metadata(customer["metadata"], params.get("metadata"))
    if "balance" in params and customer["currency"]:
        customer["invoice_credit_balance"] = {
            **customer["invoice_credit_balance"],
            customer["currency"]: customer["balance"],
        }


_FIELDS = " ".join(("metadata", *_PLAIN))
ROUTES = [
    Route("POST", "/v1/customers", Contract("CustomerCreateParams", _FIELDS), create),
    Route(
        "GET",
        "/v1/customers",
        Contract("CustomerListParams", "created email ending_before limit starting_after"),
        list_all,
    ),
    Route("GET", "/v1/customers/{id}", Contract("CustomerRetrieveParams"), retrieve),
    Route("POST", "/v1/customers/{id}", Contract("CustomerUpdateParams", _FIELDS), update),
    Route("DELETE", "/v1/customers/{id}", Contract("CustomerDeleteParams"), delete),
]
