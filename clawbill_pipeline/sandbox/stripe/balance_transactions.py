"""A customer's credit balance: ``/v1/customers/{customer}/balance_transactions``. Negative is credit.

There is a balance a currency; ``customer.balance`` is the one of the customer's own. An invoice takes the one of its
currency when it is finalised.
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.errors import invalid


def create(call: Call, params: Document, customer: str) -> Document:
    found = call.find("customer", customer)
    if params["amount"] == 0:
        raise invalid("`amount` must not be 0.", "amount")
    found["currency"] = found["currency"] or params["currency"]
    return public(change_balance(call, found, params["amount"], params["currency"], "adjustment", params))


def retrieve(call: Call, params: Document, customer: str, id: str) -> Document:
    call.find("customer", customer)
    return public(call.find("customer_balance_transaction", id))


def list_all(call: Call, params: Document, customer: str) -> Document:
    call.find("customer", customer)
    url = f"/v1/customers/{customer}/balance_transactions"
    return page(call, "customer_balance_transaction", params, url, where={"customer": customer})


def balance_of(customer: Document, currency: str) -> int:
    """The balance in ``currency``; negative is credit."""
    if customer["currency"] in (None, currency):
        return int(customer["balance"])
    return int(customer["invoice_credit_balance"].get(currency, 0))


def change_balance(
    call: Call, customer: Document, amount: int, currency: str, kind: str, given: Document, **of: str
) -> Document:
    """Adds ``amount`` to the customer's balance in ``currency``, and keeps why."""
    after = balance_of(customer, currency) + amount
    if customer["currency"] in (None, currency):
        customer["balance"] = after
    customer["invoice_credit_balance"] = {**customer["invoice_credit_balance"], currency: after}
    call.put("customer", customer)
    transaction: Document = {
        "id": call.new_id("cbtxn"),
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": call.now,
        "credit_note": None,
        "currency": currency,
        "customer": customer["id"],
        "description": given.get("description"),
        "ending_balance": after,
        "invoice": None,
        "livemode": False,
        "metadata": merged_metadata({}, given.get("metadata")),
        "type": kind,
        **of,
    }
    return call.put("customer_balance_transaction", transaction)


_PATH = "/v1/customers/{customer}/balance_transactions"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract("CustomerBalanceTransactionCreateParams", "amount currency description metadata"),
        create,
    ),
    Route(
        "GET",
        _PATH,
        Contract("CustomerBalanceTransactionListParams", "created ending_before limit starting_after"),
        list_all,
    ),
    Route("GET", _PATH + "/{id}", Contract("CustomerBalanceTransactionRetrieveParams"), retrieve),
]
