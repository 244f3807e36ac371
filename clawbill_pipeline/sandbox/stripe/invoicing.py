"""An invoice's life: drafted with its lines, finalised after the grace, charged. Calls on it are in ``invoices``.

A draft shows the usage there was when it was made; finalising counts again, so usage of the ended period that arrives
within the grace is billed, and what comes later is on no invoice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from clawbill_pipeline.sandbox.stripe.balance_transactions import balance_of, change_balance
from clawbill_pipeline.sandbox.stripe.core import VIEWS, Call, Document, list_of, public, shown
from clawbill_pipeline.sandbox.stripe.credit_grants import apply_credits
from clawbill_pipeline.sandbox.stripe.discounts import apply_discounts, for_invoice
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.invoice_lines import Advance, Segment, advance_lines, item_line, usage_lines
from clawbill_pipeline.sandbox.stripe.payments import charge, settle
from clawbill_pipeline.sandbox.stripe.taxes import apply_taxes, tax_of

#: Stripe's default; the account setting takes 0 to 72 hours.
DEFAULT_GRACE_SECONDS = 3_600
_DAY = 86_400


def bill_subscription(
    call: Call,
    subscription: Document,
    segments: list[Segment],
    period: tuple[int, int],
    reason: str,
    advances: Sequence[Advance] = (),
) -> Document:
    """Drafts the invoice for ``segments`` of usage and ``advances``; it finalises by itself after the grace."""
    customer = call.find("customer", subscription["customer"])
    invoice = new_invoice(call, customer, subscription["currency"], reason, period)
    invoice |= {
        "collection_method": subscription["collection_method"],
        "default_tax_rates": subscription["default_tax_rates"],
        "discounts": for_invoice(call, subscription),
        "parent": {
            "quote_details": None,
            "subscription_details": {"metadata": subscription["metadata"], "subscription": subscription["id"]},
            "type": "subscription_details",
        },
        "_parent": subscription["id"],
        "_days_until_due": subscription["days_until_due"],
        "_segments": [asdict(segment) for segment in segments],
        "_advances": [asdict(advance) for advance in advances],
    }
    advance_at(call, invoice, call.now + grace_seconds(call))
    take_pending_items(call, invoice, subscription["id"])
    count_again(call, invoice)
    call.put("invoice", invoice)
    subscription["latest_invoice"] = invoice["id"]
    call.put("subscription", subscription)
    emit(call, "invoice.created", "invoice", invoice)
    return invoice


def new_invoice(call: Call, customer: Document, currency: str, reason: str, period: tuple[int, int]) -> Document:
    """An empty draft, not kept yet."""
    return {
        "id": call.new_id("in"),
        "object": "invoice",
        "account_country": "US",
        "account_name": "clawbill sandbox",
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": reason,
        "collection_method": "charge_automatically",
        "created": call.now,
        "currency": currency,
        "custom_fields": None,
        "customer": customer["id"],
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "customer_shipping": customer["shipping"],
        "customer_tax_exempt": customer["tax_exempt"],
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": None,
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": period[1],
        "period_start": period[0],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": None,
        "threshold_reason": None,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": None,
        "_parent": None,
        "_days_until_due": None,
        "_segments": [],
        "_advances": [],
    }


def grace_seconds(call: Call) -> int:
    """How long the account's drafts wait before they finalise."""
    return int(call.store.setting(call.account, "invoice_grace_seconds", DEFAULT_GRACE_SECONDS))


def take_pending_items(call: Call, invoice: Document, subscription: str | None = None) -> None:
    """Puts the customer's waiting invoice items on the draft, save those for another subscription."""
    for item in call.store.select(call.account, "invoiceitem", customer=invoice["customer"]):
        theirs = item["parent"] and item["parent"]["subscription_details"]["subscription"]
        if item["invoice"] is None and item["currency"] == invoice["currency"] and theirs in (None, subscription):
            call.put("invoiceitem", {**item, "invoice": invoice["id"], "_parent": invoice["id"]})


def editable_draft(call: Call, identifier: str, param: str) -> Document:
    """The invoice, if it is a draft. Raises ApiError (400) for another."""
    invoice = call.find("invoice", identifier, param=param)
    if invoice["status"] != "draft":
        message = "This invoice is no longer a draft; its items cannot be changed."
        raise invalid(message, param, "invoice_not_editable")
    return invoice


def add_item_lines(call: Call, identifier: str) -> None:
    """Counts a draft again whose invoice items changed."""
    invoice = call.find("invoice", identifier)
    before = shown(call, "invoice", invoice)
    count_again(call, invoice)
    call.put("invoice", invoice)
    emit(call, "invoice.updated", "invoice", invoice, before)


def advance_at(call: Call, invoice: Document, at: int | None) -> None:
    """Sets when the draft finalises by itself; None holds it as a draft."""
    call.store.unschedule(call.account, "invoice_finalize", invoice["id"])
    invoice["auto_advance"], invoice["automatically_finalizes_at"] = at is not None, at
    if at is not None:
        call.store.schedule(at, call.account, "invoice_finalize", invoice["id"])


def count_again(call: Call, invoice: Document, *, final: bool = False) -> None:
    """Makes the draft's lines and totals anew, from the usage and the invoice items there are now.

    Discounts come first, then billing credits (when it is ``final``), then tax; the customer's balance pays last.
    """
    call.store.db.execute(
        "DELETE FROM objects WHERE account = ? AND kind = 'line_item' AND parent = ?", (call.account, invoice["id"])
    )
    lines: list[Document] = []
    for index, segment in enumerate(invoice["_segments"]):
        lines += usage_lines(call, invoice, index, Segment(**segment))
    for index, advance in enumerate(invoice["_advances"]):
        lines += advance_lines(call, invoice, index, Advance(**advance))
    for item in call.store.select(call.account, "invoiceitem", parent=invoice["id"]):
        lines.append(item_line(call, invoice, item))
    apply_discounts(call, invoice, lines)
    if final:
        apply_credits(call, invoice, lines)
    apply_taxes(call, invoice, lines)
    for line in lines:
        call.put("line_item", line)
    _sum_up(invoice, lines)
    total = invoice["total"]
    balance = balance_of(call.find("customer", invoice["customer"]), invoice["currency"])
    invoice["starting_balance"] = balance
    invoice["amount_due"] = invoice["amount_remaining"] = max(0, total + balance) if total > 0 else 0


def _sum_up(invoice: Document, lines: list[Document]) -> None:
    credits: dict[tuple[str, str], Document] = {}
    for line in lines:
        for credit in line["pretax_credit_amounts"]:
            key = (credit["type"], credit["discount"] or credit["credit_balance_transaction"])
            same = credits.setdefault(key, {**credit, "amount": 0})
            same["amount"] += credit["amount"]
    taxes = invoice["total_taxes"]
    inclusive, exclusive = tax_of(taxes, "inclusive"), tax_of(taxes, "exclusive")
    subtotal = sum(line["amount"] for line in lines)
    total = subtotal - sum(credit["amount"] for credit in credits.values()) + exclusive
    invoice |= {
        "subtotal": subtotal,
        "subtotal_excluding_tax": subtotal - inclusive,
        "total": total,
        "total_excluding_tax": total - inclusive - exclusive,
        "total_pretax_credit_amounts": list(credits.values()),
    }


def finalize(call: Call, invoice: Document) -> None:
    """Draft to open, with its last count, its number and the customer's balance applied; then the first charge."""
    if invoice["status"] != "draft":
        raise invalid("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    before = shown(call, "invoice", invoice)
    count_again(call, invoice, final=True)
    customer = call.find("customer", invoice["customer"])
    change = invoice["total"] - invoice["amount_due"] if invoice["total"] else 0
    if change:
        change_balance(call, customer, change, invoice["currency"], "applied_to_invoice", {}, invoice=invoice["id"])
    invoice["ending_balance"] = balance_of(customer, invoice["currency"])
    invoice["number"] = f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04d}"
    customer["next_invoice_sequence"] += 1
    call.put("customer", customer)
    call.store.unschedule(call.account, "invoice_finalize", invoice["id"])
    invoice |= {
        "status": "open",
        "automatically_finalizes_at": None,
        "effective_at": call.now,
        "hosted_invoice_url": f"https://invoice.stripe.com/i/{call.account}/test_{invoice['id'][3:]}",
        "invoice_pdf": f"https://pay.stripe.com/invoice/{call.account}/test_{invoice['id'][3:]}/pdf",
    }
    invoice["status_transitions"]["finalized_at"] = call.now
    if invoice["collection_method"] == "send_invoice":
        invoice["due_date"] = call.now + (invoice["_days_until_due"] or 30) * _DAY
    call.put("invoice", invoice)
    emit(call, "invoice.updated", "invoice", invoice, before)
    emit(call, "invoice.finalized", "invoice", invoice)
    if invoice["amount_due"] == 0:
        settle(call, invoice)
    elif invoice["auto_advance"]:
        if invoice["collection_method"] == "charge_automatically":
            charge(call, invoice)
        else:
            emit(call, "invoice.sent", "invoice", invoice)
            call.store.schedule(invoice["due_date"], call.account, "invoice_overdue", invoice["id"])


def _view(call: Call, invoice: Document) -> Document:
    lines = [public(line) for line in call.store.select(call.account, "line_item", parent=invoice["id"])]
    # An embedded list is a first page of ten; the rest is behind its URL.
    return {**public(invoice), "lines": list_of(lines[:10], f"/v1/invoices/{invoice['id']}/lines", len(lines) > 10)}


def finalize_due(call: Call, identifier: str) -> None:
    """The grace of a draft is over."""
    invoice = call.store.get(call.account, "invoice", identifier)
    if invoice is None or invoice["status"] != "draft" or not invoice["auto_advance"]:
        return
    if call.store.get(call.account, "customer", invoice["customer"]) is not None:  # A deleted one's draft stays one.
        finalize(call, invoice)


VIEWS["invoice"] = _view
