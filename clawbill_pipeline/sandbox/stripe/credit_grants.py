"""Billing credits: ``/v1/billing/credit_grants`` and their balance. They pay for metered lines before tax.

Applied when an invoice is finalised, after discounts: by priority, then what expires first, promotional before paid,
then the oldest (docs.stripe.com/billing/subscriptions/usage-based/billing-credits). Voiding gives them back.
"""

from __future__ import annotations

from typing import Any

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.discounts import left_of
from clawbill_pipeline.sandbox.stripe.errors import invalid

_PRIORITY = 50


def create(call: Call, params: Document) -> Document:
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = call.find("customer", params["customer"], param="customer")
    amount = params["amount"].get("monetary")
    if amount is None or amount["value"] <= 0:
        raise invalid("`amount[monetary][value]` must be a positive integer.", "amount[monetary][value]")
    scope = params["applicability_config"]["scope"]
    if ("price_type" in scope) == ("prices" in scope):
        raise invalid("Give `price_type` or `prices`.", "applicability_config[scope]")
    for entry in scope.get("prices", []):
        price = call.find("price", entry["id"], param="applicability_config[scope][prices]")
        if price["recurring"]["meter"] is None:
            raise invalid("Credit grants apply to prices with a billing meter only.", "applicability_config[scope]")
    priority = params.get("priority", _PRIORITY)
    if not 0 <= priority <= 100:
        raise invalid("`priority` must be between 0 and 100.", "priority")
    grant: Document = {
        "id": call.new_id("credgr"),
        "object": "billing.credit_grant",
        "amount": {"custom_pricing_unit": None, **params["amount"]},
        "applicability_config": params["applicability_config"],
        "category": params.get("category", "paid"),
        "created": call.now,
        "customer": customer["id"],
        "effective_at": params.get("effective_at", call.now),
        "expires_at": params.get("expires_at"),
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata")),
        "name": params.get("name"),
        "priority": priority,
        "test_clock": None,
        "updated": call.now,
        "voided_at": None,
    }
    call.put("credit_grant", grant)
    _book(
        call, grant, "credit", amount["value"], {"credits_application_invoice_voided": None, "type": "credits_granted"}
    )
    return public(grant)


def retrieve(call: Call, params: Document, id: str) -> Document:
    return public(call.find("credit_grant", id))


def update(call: Call, params: Document, id: str) -> Document:
    grant = call.find("credit_grant", id)
    grant["metadata"] = merged_metadata(grant["metadata"], params.get("metadata"))
    if "expires_at" in params:
        grant["expires_at"] = params["expires_at"] or None
    return public(call.put("credit_grant", grant | {"updated": call.now}))


def expire(call: Call, params: Document, id: str) -> Document:
    grant = call.find("credit_grant", id)
    if not _holds(call, grant):
        raise invalid("Only an effective credit grant can be expired.")
    return public(call.put("credit_grant", grant | {"expires_at": call.now, "updated": call.now}))


def void(call: Call, params: Document, id: str) -> Document:
    grant = call.find("credit_grant", id)
    if grant["voided_at"] is not None or _balance(call, grant) != grant["amount"]["monetary"]["value"]:
        raise invalid("A credit grant that was applied, or is void, can't be voided.")
    return public(call.put("credit_grant", grant | {"voided_at": call.now, "updated": call.now}))


def list_all(call: Call, params: Document) -> Document:
    where = {"customer": params.get("customer")}
    return page(call, "credit_grant", params, "/v1/billing/credit_grants", where=where)


def list_transactions(call: Call, params: Document) -> Document:
    where = {"customer": params.get("customer"), "parent": params.get("credit_grant")}
    return page(call, "credit_balance_transaction", params, "/v1/billing/credit_balance_transactions", where=where)


def summary(call: Call, params: Document) -> Document:
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = call.find("customer", params["customer"], param="customer")["id"]
    wanted = params["filter"].get("credit_grant")
    scope = params["filter"].get("applicability_scope")
    totals: dict[str, int] = {}
    for grant in call.store.select(call.account, "credit_grant", customer=customer):
        fits = grant["id"] == wanted if wanted else grant["applicability_config"]["scope"] == scope
        if fits and _holds(call, grant):
            currency = grant["amount"]["monetary"]["currency"]
            totals[currency] = totals.get(currency, 0) + _balance(call, grant)
    balances = []
    for currency, value in sorted(totals.items()):
        amount = {"custom_pricing_unit": None, "monetary": {"currency": currency, "value": value}, "type": "monetary"}
        balances.append({"available_balance": amount, "ledger_balance": amount})
    return {"object": "billing.credit_balance_summary", "balances": balances, "customer": customer, "livemode": False}


def apply_credits(call: Call, invoice: Document, lines: list[Document]) -> None:
    """Pays for what is left of the metered lines with the customer's credits in the invoice's currency."""
    grants = call.store.select(call.account, "credit_grant", customer=invoice["customer"])
    for grant in sorted(grants, key=_order):
        if not _holds(call, grant) or grant["amount"]["monetary"]["currency"] != invoice["currency"]:
            continue
        balance, used, paid = _balance(call, grant), 0, []
        for line in lines:
            amount = min(balance - used, left_of(line)) if _applies(call, grant, line) else 0
            if amount > 0:
                paid.append((line, amount))
                used += amount
        if used:
            application = {"invoice": invoice["id"], "invoice_line_item": None}
            detail = {"credits_applied": application, "type": "credits_applied"}
            transaction = _book(call, grant, "debit", used, detail)["id"]
            for line, amount in paid:
                credit = {"amount": amount, "credit_balance_transaction": transaction, "discount": None}
                credit["type"] = "credit_balance_transaction"
                line["pretax_credit_amounts"] = [*line["pretax_credit_amounts"], credit]


def give_back(call: Call, invoice: Document) -> None:
    """The invoice is void: credits that paid for it are the customer's again."""
    for credit in invoice["total_pretax_credit_amounts"]:
        if credit["type"] == "credit_balance_transaction":
            booked = call.find("credit_balance_transaction", credit["credit_balance_transaction"])
            grant = call.find("credit_grant", booked["credit_grant"])
            voided = {"invoice": invoice["id"], "invoice_line_item": None}
            detail = {"credits_application_invoice_voided": voided, "type": "credits_application_invoice_voided"}
            _book(call, grant, "credit", credit["amount"], detail)


def _order(grant: Document) -> tuple[Any, ...]:
    expires = grant["expires_at"] if grant["expires_at"] is not None else float("inf")
    return grant["priority"], expires, grant["category"] == "paid", grant["effective_at"], grant["created"]


def _holds(call: Call, grant: Document) -> bool:
    is_over = grant["expires_at"] is not None and grant["expires_at"] <= call.now
    return grant["voided_at"] is None and not is_over and grant["effective_at"] <= call.now


def _applies(call: Call, grant: Document, line: Document) -> bool:
    price = ((line["pricing"] or {}).get("price_details") or {}).get("price")
    if price is None or call.find("price", price)["recurring"]["meter"] is None:
        return False
    prices = grant["applicability_config"]["scope"].get("prices")
    return prices is None or any(entry["id"] == price for entry in prices)


def _balance(call: Call, grant: Document) -> int:
    booked = call.store.select(call.account, "credit_balance_transaction", parent=grant["id"])
    return sum(each["_value"] for each in booked)


def _book(call: Call, grant: Document, kind: str, value: int, detail: Document) -> Document:
    currency = grant["amount"]["monetary"]["currency"]
    amount = {"custom_pricing_unit": None, "monetary": {"currency": currency, "value": value}, "type": "monetary"}
    transaction: Document = {
        "id": call.new_id("cbtxn"),
        "object": "billing.credit_balance_transaction",
        "created": call.now,
        "credit": None,
        "credit_grant": grant["id"],
        "debit": None,
        "effective_at": call.now,
        "livemode": False,
        "test_clock": None,
        "type": kind,
        kind: {"amount": amount, **detail},
        "customer": grant["customer"],
        "_parent": grant["id"],
        "_value": value if kind == "credit" else -value,
    }
    return call.put("credit_balance_transaction", transaction)


_PATH = "/v1/billing/credit_grants"
_PAGING = "ending_before limit starting_after"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract(
            "billing.CreditGrantCreateParams",
            "amount applicability_config category customer effective_at expires_at metadata name priority",
        ),
        create,
    ),
    Route("GET", _PATH, Contract("billing.CreditGrantListParams", f"{_PAGING} customer"), list_all),
    Route("GET", _PATH + "/{id}", Contract("billing.CreditGrantRetrieveParams"), retrieve),
    Route("POST", _PATH + "/{id}", Contract("billing.CreditGrantUpdateParams", "expires_at metadata"), update),
    Route("POST", _PATH + "/{id}/expire", Contract("billing.CreditGrantExpireParams"), expire),
    Route("POST", _PATH + "/{id}/void", Contract("billing.CreditGrantVoidGrantParams"), void),
    Route(
        "GET",
        "/v1/billing/credit_balance_summary",
        Contract("billing.CreditBalanceSummaryRetrieveParams", "customer filter"),
        summary,
    ),
    Route(
        "GET",
        "/v1/billing/credit_balance_transactions",
        Contract("billing.CreditBalanceTransactionListParams", f"{_PAGING} credit_grant customer"),
        list_transactions,
    ),
]
