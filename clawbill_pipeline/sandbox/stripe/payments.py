"""Collecting an open invoice: a charge succeeds unless the customer is set to fail; retries, dunning, recovery.

The sandbox has no payment methods: ``/_sandbox/payments`` says how a customer's charges go. Retries come 3, 5 and 7
days apart (Stripe's are configurable); after the last one the subscription is what ``after_failed_payments`` says.
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.core import Call, Document, shown
from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.events import emit

_DAY = 86_400
_RETRY_DAYS = (3, 5, 7)
_DECLINED = "Your card was declined."


def charge(call: Call, invoice: Document) -> bool:
    """One attempt. Whether it succeeded; the invoice stays open where it did not."""
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    if call.store.setting(call.account, f"payments_of_{invoice['customer']}", "succeed") == "succeed":
        settle(call, invoice)
        return True
    _fail(call, invoice)
    return False


def declined() -> ApiError:
    """402, for the API call whose charge failed; what the failure changed stays."""
    return ApiError(402, _DECLINED, kind="card_error", code="card_declined", kept=True, effects_stay=True)


def charge_due(call: Call, identifier: str) -> None:
    """The time of a retry has come."""
    invoice = call.store.get(call.account, "invoice", identifier)
    if invoice is not None and invoice["status"] == "open" and invoice["next_payment_attempt"] == call.now:
        charge(call, invoice)


def overdue(call: Call, identifier: str) -> None:
    """The due date of a sent invoice has come."""
    invoice = call.store.get(call.account, "invoice", identifier)
    if invoice is not None and invoice["status"] == "open":
        emit(call, "invoice.overdue", "invoice", invoice)
        _set_standing(call, invoice, "past_due")


def settle(call: Call, invoice: Document) -> None:
    """Open to paid: nothing remains. A subscription that was behind is active again when nothing else is open."""
    before = shown(call, "invoice", invoice)
    invoice |= {"status": "paid", "amount_paid": invoice["amount_due"], "amount_remaining": 0, "attempted": True}
    invoice |= {"auto_advance": False, "next_payment_attempt": None}
    invoice["status_transitions"]["paid_at"] = call.now
    call.put("invoice", invoice)
    emit(call, "invoice.updated", "invoice", invoice, before)
    emit(call, "invoice.paid", "invoice", invoice)
    emit(call, "invoice.payment_succeeded", "invoice", invoice)
    if not _others_open(call, invoice):
        _set_standing(call, invoice, "active")


def _fail(call: Call, invoice: Document) -> None:
    before = shown(call, "invoice", call.find("invoice", invoice["id"]))
    retry = invoice["attempt_count"] - 1
    again = invoice["auto_advance"] and retry < len(_RETRY_DAYS)
    invoice["next_payment_attempt"] = call.now + _RETRY_DAYS[retry] * _DAY if again else None
    call.put("invoice", invoice)
    if again:
        call.store.schedule(invoice["next_payment_attempt"], call.account, "invoice_charge", invoice["id"])
    emit(call, "invoice.updated", "invoice", invoice, before)
    emit(call, "invoice.payment_failed", "invoice", invoice)
    final = "past_due" if again else call.store.setting(call.account, "after_failed_payments", "past_due")
    _set_standing(call, invoice, final)


def _set_standing(call: Call, invoice: Document, status: str) -> None:
    """Moves customer and subscription between in order and behind."""
    customer = call.store.get(call.account, "customer", invoice["customer"])
    behind = status != "active"
    if customer is not None and customer["delinquent"] != behind:
        before = shown(call, "customer", customer)
        customer["delinquent"] = behind
        call.put("customer", customer)
        emit(call, "customer.updated", "customer", customer, before)
    subscription = call.store.get(call.account, "subscription", invoice["_parent"] or "")
    if subscription is None or subscription["status"] not in ("active", "past_due", "unpaid"):
        return
    if status == "canceled":
        from clawbill_pipeline.sandbox.stripe.subscriptions import end

        subscription["cancellation_details"]["reason"] = "payment_failed"
        end(call, subscription, invoice_now=False)
    elif subscription["status"] != status:
        before = shown(call, "subscription", subscription)
        subscription["status"] = status
        call.put("subscription", subscription)
        emit(call, "customer.subscription.updated", "subscription", subscription, before)


def _others_open(call: Call, invoice: Document) -> bool:
    others = call.store.select(call.account, "invoice", customer=invoice["customer"], status="open")
    return any(other["attempted"] for other in others)
