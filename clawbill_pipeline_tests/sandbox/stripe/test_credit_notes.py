"""Credit notes and invoice items: changes of a bill by a person."""

from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox
from clawbill_pipeline_tests.sandbox.stripe.test_invoices import Billed


def paid(month: Sandbox) -> Billed:
    billed = Billed(month)
    month.move_to(billed.end + HOUR)
    return billed


def test_a_note_on_a_paid_invoice_goes_to_the_balance_and_onto_the_next_invoice(month: Sandbox) -> None:
    billed = paid(month)
    account = billed.account
    note = account.v1.credit_notes.create({"invoice": billed.invoice.id, "amount": 30, "credit_amount": 30})
    assert (note.status, note.type, note.total, note.post_payment_amount) == ("issued", "post_payment", 30, 30)
    invoice = billed.invoice
    assert (invoice.status, invoice.total, invoice.post_payment_credit_notes_amount) == ("paid", 100, 30)
    assert account.v1.customers.retrieve(billed.customer).balance == -30
    assert "credit_note.created" in account.event_types()
    account.use(billed.customer, 50, month.now())
    month.move_to(billed.end + 31 * DAY + HOUR)
    following = account.v1.invoices.list().data[0]
    assert (following.total, following.starting_balance, following.amount_due, following.ending_balance) == (
        50,
        -30,
        20,
        0,
    )
    assert account.v1.customers.retrieve(billed.customer).balance == 0


def test_a_note_by_lines(month: Sandbox) -> None:
    billed = paid(month)
    (line,) = billed.invoice.lines.data
    note = billed.account.v1.credit_notes.create(
        {
            "invoice": billed.invoice.id,
            "lines": [
                {"type": "invoice_line_item", "invoice_line_item": line.id, "quantity": 10},
                {"type": "custom_line_item", "description": "Goodwill", "quantity": 2, "unit_amount_decimal": "2.5"},
            ],
            "refund_amount": 15,
            "reason": "order_change",
            "memo": "wrong hour",
        }
    )
    lines = list(billed.account.v1.credit_notes.line_items.list(note.id, {"limit": 1}).auto_paging_iter())
    assert [(entry.amount, entry.quantity, entry.invoice_line_item) for entry in lines] == [
        (10, 10, line.id),
        (5, 2, None),
    ]
    assert (note.total, note.reason, note.number) == (15, "order_change", f"{billed.invoice.number}-CN-01")
    assert [n.id for n in billed.account.v1.credit_notes.list({"invoice": billed.invoice.id}).data] == [note.id]


def test_a_note_on_an_open_invoice_lowers_what_remains_and_in_full_pays_it(month: Sandbox) -> None:
    billed = Billed(month, collection_method="send_invoice", days_until_due=7)
    month.move_to(billed.end + HOUR)
    create = billed.account.v1.credit_notes.create
    note = create({"invoice": billed.invoice.id, "amount": 40})
    assert (note.type, billed.invoice.amount_remaining, billed.invoice.amount_due) == ("pre_payment", 60, 60)
    billed.account.v1.credit_notes.void_credit_note(note.id)
    assert (billed.invoice.amount_remaining, billed.invoice.pre_payment_credit_notes_amount) == (100, 0)
    create({"invoice": billed.invoice.id, "amount": 100})
    assert (billed.invoice.status, billed.invoice.amount_remaining) == ("paid", 0)


def test_a_voided_note_takes_its_credit_back(month: Sandbox) -> None:
    billed = paid(month)
    note = billed.account.v1.credit_notes.create({"invoice": billed.invoice.id, "amount": 30, "credit_amount": 30})
    voided = billed.account.v1.credit_notes.void_credit_note(note.id)
    assert (voided.status, voided.voided_at) == ("void", month.now())
    assert billed.account.v1.customers.retrieve(billed.customer).balance == 0
    assert billed.invoice.post_payment_credit_notes_amount == 0
    with pytest.raises(stripe.InvalidRequestError, match="already void"):
        billed.account.v1.credit_notes.void_credit_note(note.id)


def test_notes_that_stripe_would_refuse(month: Sandbox) -> None:
    billed = Billed(month)
    create = billed.account.v1.credit_notes.create
    draft = billed.invoice.id
    with pytest.raises(stripe.InvalidRequestError, match="draft"):
        create({"invoice": draft, "amount": 1, "credit_amount": 1})
    month.move_to(billed.end + HOUR)
    for params, message in (
        ({"amount": 101, "credit_amount": 101}, "above"),
        ({"amount": 10, "credit_amount": 9}, "must equal"),
        ({"amount": 0}, "positive"),
        ({"credit_amount": 5}, "amount"),
        ({"amount": 5, "lines": [{"type": "custom_line_item", "quantity": 1, "unit_amount": 4}]}, "sum of `lines`"),
    ):
        with pytest.raises(stripe.InvalidRequestError, match=message):
            create({"invoice": draft, **params})
    create({"invoice": draft, "amount": 100, "out_of_band_amount": 100})
    with pytest.raises(stripe.InvalidRequestError, match="above the 0"):
        create({"invoice": draft, "amount": 1, "credit_amount": 1})


def test_a_waiting_item_goes_onto_the_next_invoice(month: Sandbox) -> None:
    billed = Billed(month)
    account = billed.account
    item = account.v1.invoice_items.create(
        {"customer": billed.customer, "amount": -30, "currency": "usd", "description": "Correction of March"}
    )
    assert item.invoice is None
    assert [i.id for i in account.v1.invoice_items.list({"pending": True}).data] == [item.id]
    month.move_to(billed.end + HOUR)
    assert billed.invoice.total == 100  # it was drafted before
    account.use(billed.customer, 50, month.now())
    month.move_to(billed.end + 31 * DAY)
    following = account.v1.invoices.list().data[0]
    assert following.total == 20
    (line,) = [entry for entry in following.lines.data if entry.parent.type == "invoice_item_details"]
    assert (line.amount, line.parent.invoice_item_details.invoice_item, line.description) == (
        -30,
        item.id,
        "Correction of March",
    )
    assert account.v1.invoice_items.retrieve(item.id).invoice == following.id


def test_an_item_on_a_draft_changes_it_until_it_is_final(month: Sandbox) -> None:
    billed = Billed(month)
    items = billed.account.v1.invoice_items
    params = {"customer": billed.customer, "invoice": billed.invoice.id, "unit_amount_decimal": "2.5", "quantity": 3}
    item = items.create(params)
    assert (item.amount, item.pricing.unit_amount_decimal, billed.invoice.total) == (8, Decimal("2.5"), 108)
    items.update(item.id, {"quantity": 4, "description": "Four"})
    assert (billed.invoice.total, billed.invoice.lines.data[-1].description) == (110, "Four")
    items.delete(item.id)
    assert billed.invoice.total == 100
    items.create(params)
    month.move_to(billed.end + HOUR)
    assert billed.invoice.total == 108
    with pytest.raises(stripe.InvalidRequestError) as caught:
        items.create(params)
    assert caught.value.code == "invoice_not_editable"


def test_an_invoice_by_hand(account: Account) -> None:
    customer = account.customer()
    account.v1.invoice_items.create({"customer": customer, "amount": 250, "currency": "usd"})
    empty = account.v1.invoices.create({"customer": customer, "currency": "usd"})
    assert (empty.total, empty.status, empty.billing_reason) == (0, "draft", "manual")
    assert account.v1.invoices.delete(empty.id).deleted
    params = {
        "customer": customer,
        "currency": "usd",
        "pending_invoice_items_behavior": "include",
        "auto_advance": True,
    }
    invoice = account.v1.invoices.create(params)
    assert (invoice.total, invoice.lines.data[0].parent.type) == (250, "invoice_item_details")
    account.sandbox.move_to(account.sandbox.now() + HOUR)
    assert account.v1.invoices.retrieve(invoice.id).status == "paid"


def test_a_negative_invoice_becomes_credit(account: Account) -> None:
    customer = account.customer()
    account.v1.invoice_items.create({"customer": customer, "amount": -250, "currency": "usd"})
    params = {"customer": customer, "currency": "usd", "pending_invoice_items_behavior": "include"}
    invoice = account.v1.invoices.create(params)
    final = account.v1.invoices.finalize_invoice(invoice.id)
    assert (final.status, final.amount_due, final.ending_balance) == ("paid", 0, -250)
    assert account.v1.customers.retrieve(customer).balance == -250
