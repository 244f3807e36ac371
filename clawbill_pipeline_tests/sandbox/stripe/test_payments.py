"""Charges that fail: retries, the subscription's standing, recovery; invoices sent and overdue."""

from __future__ import annotations

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Sandbox
from clawbill_pipeline_tests.sandbox.stripe.test_invoices import Billed


def payments(billed: Billed, outcome: str) -> None:
    body = {"customer": billed.customer, "outcome": outcome}
    answer = billed.sandbox.control.post("/_sandbox/payments", json=body, headers=billed.account.auth)
    assert answer.status_code == 200


def failed(month: Sandbox, **settings: object) -> Billed:
    billed = Billed(month)
    billed.account.set(**settings)
    payments(billed, "fail")
    month.move_to(billed.end + HOUR)
    return billed


def standing(billed: Billed) -> tuple[str, bool]:
    subscription = billed.account.v1.subscriptions.retrieve(billed.subscription.id)
    return subscription.status, billed.account.v1.customers.retrieve(billed.customer).delinquent


def test_a_failed_charge_leaves_the_invoice_open_and_the_subscription_past_due(month: Sandbox) -> None:
    billed = failed(month)
    invoice = billed.invoice
    assert (invoice.status, invoice.attempted, invoice.attempt_count, invoice.amount_remaining) == (
        "open",
        True,
        1,
        100,
    )
    assert invoice.next_payment_attempt == month.now() + 3 * DAY
    assert standing(billed) == ("past_due", True)
    types = billed.account.event_types()
    assert "invoice.payment_failed" in types
    assert "invoice.paid" not in types


def test_a_retry_that_succeeds_brings_everything_back(month: Sandbox) -> None:
    billed = failed(month)
    payments(billed, "succeed")
    month.move_to(billed.end + HOUR + 3 * DAY)
    assert (billed.invoice.status, billed.invoice.attempt_count) == ("paid", 2)
    assert standing(billed) == ("active", False)


@pytest.mark.parametrize("after", ["past_due", "unpaid", "canceled"])
def test_after_the_last_retry_the_account_decides(month: Sandbox, after: str) -> None:
    billed = failed(month, after_failed_payments=after)
    month.move_to(billed.end + HOUR + 15 * DAY)
    assert (billed.invoice.attempt_count, billed.invoice.next_payment_attempt) == (4, None)
    assert billed.invoice.status == "open"
    assert standing(billed) == (after, True)
    assert billed.account.event_types().count("invoice.payment_failed") == 4


def test_paying_by_hand(month: Sandbox) -> None:
    billed = failed(month)
    invoice = billed.invoice.id
    with pytest.raises(stripe.CardError) as caught:
        billed.account.v1.invoices.pay(invoice, {}, {"idempotency_key": "k"})
    assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
    assert billed.invoice.attempt_count == 2  # what the attempt did stays
    with pytest.raises(stripe.CardError):
        billed.account.v1.invoices.pay(invoice, {}, {"idempotency_key": "k"})
    assert billed.invoice.attempt_count == 2
    assert billed.account.v1.invoices.pay(invoice, {"paid_out_of_band": True}).status == "paid"
    assert standing(billed) == ("active", False)


def test_a_sent_invoice_is_overdue_after_its_due_date(month: Sandbox) -> None:
    billed = Billed(month, collection_method="send_invoice", days_until_due=7)
    month.move_to(billed.end + HOUR + 7 * DAY)
    assert billed.invoice.status == "open"
    assert standing(billed) == ("past_due", True)
    assert "invoice.overdue" in billed.account.event_types()
    billed.account.v1.invoices.pay(billed.invoice.id)
    assert standing(billed) == ("active", False)
