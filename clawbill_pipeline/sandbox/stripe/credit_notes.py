"""Credit notes: ``/v1/credit_notes``. They take back part of a final invoice, whose own lines stay as they are.

On an open invoice a note lowers what remains to be paid. On a paid one its amount goes to the customer's balance
(``credit_amount``), is refunded (``refund_amount``) or was settled elsewhere (``out_of_band_amount``).
"""

from __future__ import annotations

from decimal import Decimal

from clawbill_pipeline.money import plain
from clawbill_pipeline.sandbox.stripe.balance_transactions import change_balance
from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import (
    VIEWS,
    Call,
    Document,
    Route,
    list_of,
    merged_metadata,
    page,
    public,
    shown,
)
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.payments import settle
from clawbill_pipeline.sandbox.stripe.pricing import minor_amount
from clawbill_pipeline.sandbox.stripe.store import scrambled

_WAYS = ("credit_amount", "refund_amount", "out_of_band_amount")


def create(call: Call, params: Document) -> Document:
    invoice = call.find("invoice", params["invoice"], param="invoice")
    if invoice["status"] not in ("open", "paid"):
        message = f"Credit notes are for open or paid invoices. This invoice is {invoice['status']}."
        raise invalid(message, "invoice")
    identifier = call.new_id("cn")
    lines = _lines(call, invoice, identifier, params)
    total = sum(line["amount"] for line in lines)
    if total <= 0:
        raise invalid("The credit note amount must be positive.", "amount")
    if params.get("amount", total) != total:
        raise invalid("`amount` must be the sum of `lines`.", "amount")
    was_open = invoice["status"] == "open"
    left = invoice["amount_remaining"] if was_open else invoice["total"] - _credited(invoice)
    if total > left:
        raise invalid(f"The credit note's total of {total} is above the {left} that can be credited.", "amount")
    ways = {way: params.get(way, 0) for way in _WAYS}
    if sum(ways.values()) != (0 if was_open else total):
        message = (
            f"The sum of credit amount, refund amount and out of band amount ({sum(ways.values())}) must equal the"
            f" credit note amount ({total}); on an open invoice there is none."
        )
        raise invalid(message, "credit_amount")
    note: Document = {
        "id": identifier,
        "object": "credit_note",
        "amount": total,
        "amount_shipping": 0,
        "created": call.now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": call.now,
        "invoice": invoice["id"],
        "livemode": False,
        "memo": params.get("memo"),
        "metadata": merged_metadata({}, params.get("metadata")),
        "number": f"{invoice['number']}-CN-{_count(call, invoice) + 1:02d}",
        "out_of_band_amount": ways["out_of_band_amount"] or None,
        "pdf": f"https://pay.stripe.com/credit_notes/{call.account}/test_{identifier[3:]}/pdf",
        "post_payment_amount": 0 if was_open else total,
        "pre_payment_amount": total if was_open else 0,
        "pretax_credit_amounts": [],
        "reason": params.get("reason"),
        "refunds": [],
        "shipping_cost": None,
        "status": "issued",
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "total": total,
        "total_excluding_tax": total,
        "total_taxes": [],
        "type": "pre_payment" if was_open else "post_payment",
        "voided_at": None,
        "_parent": invoice["id"],
        "_credited_to_balance": ways["credit_amount"],
    }
    call.put("credit_note", note)
    for line in lines:
        call.put("credit_note_line_item", line)
    _change_balance(call, note, -ways["credit_amount"])
    emit(call, "credit_note.created", "credit_note", note)
    _apply(call, invoice, note, total)
    return shown(call, "credit_note", note)


def void(call: Call, params: Document, id: str) -> Document:
    note = call.find("credit_note", id)
    invoice = call.find("invoice", note["invoice"])
    if note["status"] == "void":
        raise invalid("This credit note is already void.")
    if note["type"] == "pre_payment" and invoice["status"] != "open":
        raise invalid("A credit note on an invoice that was open can be voided while the invoice is open only.")
    before = shown(call, "credit_note", note)
    note |= {"status": "void", "voided_at": call.now}
    call.put("credit_note", note)
    _change_balance(call, note, note["_credited_to_balance"])
    emit(call, "credit_note.voided", "credit_note", note, before)
    _apply(call, invoice, note, -note["total"])
    return shown(call, "credit_note", note)


def retrieve(call: Call, params: Document, id: str) -> Document:
    return shown(call, "credit_note", call.find("credit_note", id))


def list_all(call: Call, params: Document) -> Document:
    where = {"customer": params.get("customer"), "parent": params.get("invoice")}
    return page(call, "credit_note", params, "/v1/credit_notes", where=where)


def list_lines(call: Call, params: Document, id: str) -> Document:
    call.find("credit_note", id)
    url = f"/v1/credit_notes/{id}/lines"
    return page(call, "credit_note_line_item", params, url, where={"parent": id}, oldest_first=True)


def _lines(call: Call, invoice: Document, note: str, params: Document) -> list[Document]:
    if "lines" not in params:
        if "amount" not in params:
            raise invalid("Give `amount` or `lines`.", "amount", "parameter_missing")
        amount = params["amount"]
        return [_line(call, note, 0, {"type": "custom_line_item", "description": "Credit"}, amount, 1, Decimal(amount))]
    lines = []
    for index, given in enumerate(params["lines"]):
        place = f"lines[{index}]"
        quantity = given.get("quantity")
        unit = given.get("unit_amount_decimal", given.get("unit_amount"))
        if given["type"] == "invoice_line_item":
            billed = call.find("line_item", given.get("invoice_line_item", ""), param=f"{place}[invoice_line_item]")
            if billed["invoice"] != invoice["id"]:
                raise invalid("The line is of another invoice.", f"{place}[invoice_line_item]")
            unit = Decimal(billed["pricing"]["unit_amount_decimal"]) if unit is None else Decimal(unit)
        elif quantity is None or unit is None:
            raise invalid("A custom line needs `quantity` and `unit_amount`.", place, "parameter_missing")
        if ("amount" in given) == (quantity is not None):
            raise invalid("Give either `amount` or `quantity`.", f"{place}[amount]")
        unit = None if unit is None else Decimal(unit)
        amount = given.get("amount") if quantity is None else minor_amount(quantity * (unit or 0), invoice["currency"])
        lines.append(_line(call, note, index, given, int(amount or 0), quantity, unit))
    return lines


def _line(
    call: Call, note: str, index: int, given: Document, amount: int, quantity: int | None, unit: Decimal | None
) -> Document:
    return {
        "id": f"cnli_{scrambled(call.account, note, index)}",
        "object": "credit_note_line_item",
        "amount": amount,
        "description": given.get("description"),
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice_line_item": given.get("invoice_line_item"),
        "livemode": False,
        "metadata": merged_metadata({}, given.get("metadata")),
        "pretax_credit_amounts": [],
        "quantity": quantity,
        "tax_rates": [],
        "taxes": [],
        "type": given["type"],
        "unit_amount": int(unit) if unit is not None and unit == unit.to_integral_value() else None,
        "unit_amount_decimal": None if unit is None else plain(unit),
        "_parent": note,
    }


def _credited(invoice: Document) -> int:
    return int(invoice["pre_payment_credit_notes_amount"] + invoice["post_payment_credit_notes_amount"])


def _count(call: Call, invoice: Document) -> int:
    return len(call.store.select(call.account, "credit_note", parent=invoice["id"]))


def _change_balance(call: Call, note: Document, change: int) -> None:
    if change:
        customer = call.find("customer", note["customer"])
        before = shown(call, "customer", customer)
        change_balance(call, customer, change, note["currency"], "credit_note", {}, credit_note=note["id"])
        emit(call, "customer.updated", "customer", customer, before)


def _apply(call: Call, invoice: Document, note: Document, amount: int) -> None:
    """What the invoice shows of its notes; one that is credited in full is paid."""
    before = shown(call, "invoice", invoice)
    if note["type"] == "pre_payment":
        invoice["pre_payment_credit_notes_amount"] += amount
        invoice["amount_due"] -= amount
        invoice["amount_remaining"] -= amount
    else:
        invoice["post_payment_credit_notes_amount"] += amount
    call.put("invoice", invoice)
    emit(call, "invoice.updated", "invoice", invoice, before)
    if invoice["status"] == "open" and invoice["amount_remaining"] == 0:
        settle(call, invoice)


def _view(call: Call, note: Document) -> Document:
    lines = [public(line) for line in call.store.select(call.account, "credit_note_line_item", parent=note["id"])]
    return {**public(note), "lines": list_of(lines[:10], f"/v1/credit_notes/{note['id']}/lines", len(lines) > 10)}


VIEWS["credit_note"] = _view

_PATH = "/v1/credit_notes"
_PAGING = "ending_before limit starting_after"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract(
            "CreditNoteCreateParams",
            "amount credit_amount invoice lines.amount lines.description lines.invoice_line_item lines.metadata"
            " lines.quantity lines.type lines.unit_amount lines.unit_amount_decimal memo metadata out_of_band_amount"
            " reason refund_amount",
        ),
        create,
    ),
    Route("GET", _PATH, Contract("CreditNoteListParams", f"{_PAGING} created customer invoice"), list_all),
    Route("GET", _PATH + "/{id}", Contract("CreditNoteRetrieveParams"), retrieve),
    Route("GET", _PATH + "/{id}/lines", Contract("CreditNoteLineItemListParams", _PAGING), list_lines),
    Route("POST", _PATH + "/{id}/void", Contract("CreditNoteVoidCreditNoteParams"), void),
]
