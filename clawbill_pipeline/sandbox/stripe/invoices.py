"""Invoices: ``/v1/invoices``. Reading, holding, finalising, paying, voiding; the rules are in ``invoicing``."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, shown
from clawbill_pipeline.sandbox.stripe.credit_grants import give_back
from clawbill_pipeline.sandbox.stripe.discounts import redeem
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.invoicing import (
    advance_at,
    count_again,
    grace_seconds,
    new_invoice,
    take_pending_items,
)
from clawbill_pipeline.sandbox.stripe.invoicing import finalize as finalize_invoice
from clawbill_pipeline.sandbox.stripe.payments import charge, declined, settle
from clawbill_pipeline.sandbox.stripe.tax_rates import checked_rates


def create(call: Call, params: Document) -> Document:
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = call.find("customer", params["customer"], param="customer")
    currency = params.get("currency") or customer["currency"]
    if currency is None:
        raise invalid("Missing required param: currency.", "currency", "parameter_missing")
    invoice = new_invoice(call, customer, currency, "manual", (call.now, call.now))
    sent = params.get("collection_method") == "send_invoice"
    if sent != ("days_until_due" in params):
        raise invalid(
            "`days_until_due` goes with `collection_method=send_invoice`, and only with it.", "days_until_due"
        )
    invoice |= {
        "collection_method": params.get("collection_method", "charge_automatically"),
        "description": params.get("description"),
        "footer": params.get("footer"),
        "metadata": merged_metadata({}, params.get("metadata")),
        "_days_until_due": params.get("days_until_due"),
    }
    _set_terms(call, invoice, params)
    if params.get("auto_advance"):
        advance_at(call, invoice, call.now + grace_seconds(call))
    if params.get("pending_invoice_items_behavior") == "include":
        take_pending_items(call, invoice)
    count_again(call, invoice)
    call.put("invoice", invoice)
    emit(call, "invoice.created", "invoice", invoice)
    return shown(call, "invoice", invoice)


def delete(call: Call, params: Document, id: str) -> Document:
    invoice = call.find("invoice", id)
    if invoice["status"] != "draft" or invoice["parent"] is not None:
        raise invalid("You can only delete draft invoices that no subscription made.", code="invoice_not_editable")
    call.store.unschedule(call.account, "invoice_finalize", id)
    for item in call.store.select(call.account, "invoiceitem", parent=id):
        call.store.drop(call.account, "invoiceitem", item["id"])
    emit(call, "invoice.deleted", "invoice", invoice)
    call.store.drop(call.account, "invoice", id)
    return {"id": id, "object": "invoice", "deleted": True}


def retrieve(call: Call, params: Document, id: str) -> Document:
    return shown(call, "invoice", call.find("invoice", id))


def list_all(call: Call, params: Document) -> Document:
    method = params.get("collection_method")
    keep = (lambda invoice: invoice["collection_method"] == method) if method else None
    where = {name: params.get(name) for name in ("customer", "status")} | {"parent": params.get("subscription")}
    return page(call, "invoice", params, "/v1/invoices", where=where, keep=keep)


def list_lines(call: Call, params: Document, id: str) -> Document:
    call.find("invoice", id)
    url = f"/v1/invoices/{id}/lines"
    return page(call, "line_item", params, url, where={"parent": id}, noun="invoice line item", oldest_first=True)


def update(call: Call, params: Document, id: str) -> Document:
    invoice = call.find("invoice", id)
    before = shown(call, "invoice", invoice)
    if invoice["status"] != "draft" and set(params) - {"metadata", "auto_advance", "expand"}:
        raise invalid("Finalized invoices can't be updated in this way.", code="invoice_not_editable")
    invoice["metadata"] = merged_metadata(invoice["metadata"], params.get("metadata"))
    for name in ("description", "footer"):
        if name in params:
            invoice[name] = params[name] or None
    if "default_tax_rates" in params or "discounts" in params:
        _set_terms(call, invoice, params)
        count_again(call, invoice)
    if invoice["status"] == "draft" and ("auto_advance" in params or "automatically_finalizes_at" in params):
        at = params.get("automatically_finalizes_at", call.now + grace_seconds(call))
        if at < call.now:
            raise invalid("`automatically_finalizes_at` must be in the future.", "automatically_finalizes_at")
        advance_at(call, invoice, at if params.get("auto_advance", True) else None)
    elif "auto_advance" in params:
        invoice["auto_advance"] = params["auto_advance"]
    call.put("invoice", invoice)
    if shown(call, "invoice", invoice) != before:
        emit(call, "invoice.updated", "invoice", invoice, before)
    return shown(call, "invoice", invoice)


def _set_terms(call: Call, invoice: Document, params: Document) -> None:
    if "default_tax_rates" in params:
        invoice["default_tax_rates"] = checked_rates(call, params["default_tax_rates"], "default_tax_rates")
    if "discounts" in params:
        invoice["discounts"] = redeem(call, params["discounts"], invoice["customer"], invoice=invoice["id"])


def finalize(call: Call, params: Document, id: str) -> Document:
    invoice = call.find("invoice", id)
    invoice["auto_advance"] = params.get("auto_advance", invoice["auto_advance"])
    finalize_invoice(call, invoice)
    return shown(call, "invoice", call.find("invoice", id))


def pay(call: Call, params: Document, id: str) -> Document:
    invoice = call.find("invoice", id)
    if invoice["status"] == "draft":
        finalize_invoice(call, {**invoice, "auto_advance": False})
        invoice = call.find("invoice", id)
    if invoice["status"] == "paid":
        if invoice["amount_due"] == 0:
            return shown(call, "invoice", invoice)
        raise invalid("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] not in ("open", "uncollectible"):
        raise invalid(f"This invoice is {invoice['status']} and can't be paid.")
    if params.get("paid_out_of_band"):
        settle(call, invoice)
    elif not charge(call, invoice):
        raise declined()
    return shown(call, "invoice", call.find("invoice", id))


def void(call: Call, params: Document, id: str) -> Document:
    invoice = call.find("invoice", id)
    if invoice["status"] not in ("open", "uncollectible"):
        raise invalid(f"You can only pass in open or uncollectible invoices. This invoice is {invoice['status']}.")
    give_back(call, invoice)
    return _closed(call, invoice, "void", "voided_at", "invoice.voided")


def mark_uncollectible(call: Call, params: Document, id: str) -> Document:
    invoice = call.find("invoice", id)
    if invoice["status"] != "open":
        raise invalid(f"You can only mark open invoices as uncollectible. This invoice is {invoice['status']}.")
    return _closed(call, invoice, "uncollectible", "marked_uncollectible_at", "invoice.marked_uncollectible")


def _closed(call: Call, invoice: Document, status: str, moment: str, event: str) -> Document:
    before = shown(call, "invoice", invoice)
    invoice |= {"status": status, "auto_advance": False, "next_payment_attempt": None}
    invoice["status_transitions"][moment] = call.now
    call.put("invoice", invoice)
    emit(call, "invoice.updated", "invoice", invoice, before)
    emit(call, event, "invoice", invoice)
    return shown(call, "invoice", invoice)


_PATH = "/v1/invoices"
_PAGING = "ending_before limit starting_after"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract(
            "InvoiceCreateParams",
            "auto_advance collection_method currency customer days_until_due default_tax_rates description discounts"
            " footer metadata pending_invoice_items_behavior",
        ),
        create,
    ),
    Route("DELETE", _PATH + "/{id}", Contract("InvoiceDeleteParams"), delete),
    Route(
        "GET",
        _PATH,
        Contract("InvoiceListParams", f"{_PAGING} collection_method created customer status subscription"),
        list_all,
    ),
    Route("GET", _PATH + "/{id}", Contract("InvoiceRetrieveParams"), retrieve),
    Route("GET", _PATH + "/{id}/lines", Contract("InvoiceLineItemListParams", _PAGING), list_lines),
    Route(
        "POST",
        _PATH + "/{id}",
        Contract(
            "InvoiceUpdateParams",
            "auto_advance automatically_finalizes_at default_tax_rates description discounts footer metadata",
        ),
        update,
    ),
    Route("POST", _PATH + "/{id}/finalize", Contract("InvoiceFinalizeInvoiceParams", "auto_advance"), finalize),
    Route("POST", _PATH + "/{id}/pay", Contract("InvoicePayParams", "paid_out_of_band"), pay),
    Route("POST", _PATH + "/{id}/void", Contract("InvoiceVoidInvoiceParams"), void),
    Route("POST", _PATH + "/{id}/mark_uncollectible", Contract("InvoiceMarkUncollectibleParams"), mark_uncollectible),
]
