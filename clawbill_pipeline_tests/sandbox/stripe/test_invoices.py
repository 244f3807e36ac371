"""Invoices: drafted at the period's end, counted again when the grace is over, paid; held, paid and voided by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Sandbox


class Billed:
    """A customer whose month is over, in a sandbox of its own."""

    def __init__(
        self,
        sandbox: Sandbox,
        quantity: int = 100,
        price: dict[str, Any] | None = None,
        grace: int = HOUR,
        **params: Any,
    ) -> None:
        self.sandbox = sandbox
        self.account = account = sandbox.account()
        if grace != HOUR:
            account.set(invoice_grace_seconds=grace)
        self.meter = account.meter().id
        self.customer = account.customer(email="a@b.c")
        self.price = account.price(self.meter, **(price or {}))
        params = {"customer": self.customer, "items": [{"price": self.price.id}], **params}
        self.subscription = account.v1.subscriptions.create(params)
        item = self.subscription["items"].data[0]
        self.start, self.end = item.current_period_start, item.current_period_end
        account.use(self.customer, quantity, self.start)
        sandbox.move_to(self.end)

    @property
    def invoice(self) -> Any:
        return self.account.v1.invoices.list({"subscription": self.subscription.id}).data[-1]


def test_the_life_of_an_invoice(month: Sandbox) -> None:
    billed = Billed(month, metadata={"tenant": "globex"})
    draft = billed.invoice
    assert (draft.status, draft.billing_reason, draft.auto_advance) == ("draft", "subscription_cycle", True)
    assert (draft.period_start, draft.period_end, draft.created) == (billed.start, billed.end, billed.end)
    assert draft.automatically_finalizes_at == billed.end + HOUR
    assert (draft.total, draft.amount_due, draft.number) == (100, 100, None)
    details = draft.parent.subscription_details
    assert (details.subscription, details.metadata.to_dict()) == (billed.subscription.id, {"tenant": "globex"})

    month.move_to(billed.end + HOUR - 1)
    assert billed.invoice.status == "draft"
    month.move_to(billed.end + HOUR)
    paid = billed.invoice
    assert (paid.status, paid.amount_paid, paid.amount_remaining, paid.attempt_count) == ("paid", 100, 0, 1)
    assert paid.number.endswith("-0001")
    assert paid.status_transitions.finalized_at == paid.status_transitions.paid_at == billed.end + HOUR
    assert billed.account.v1.subscriptions.retrieve(billed.subscription.id).latest_invoice == paid.id
    types = billed.account.event_types()
    assert types[types.index("invoice.created") :] == [
        "invoice.created",
        "customer.subscription.updated",
        "invoice.updated",
        "invoice.finalized",
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]


def test_a_line_belongs_to_usage(month: Sandbox) -> None:
    billed = Billed(month, 1_500_000, {"unit_amount_decimal": "0.0001"})
    (line,) = billed.account.v1.invoices.line_items.list(billed.invoice.id).data
    details = line.parent.subscription_item_details
    assert (details.subscription_item, details.subscription, details.proration) == (
        billed.subscription["items"].data[0].id,
        billed.subscription.id,
        False,
    )
    assert (line.pricing.price_details.price, line.pricing.price_details.product) == (
        billed.price.id,
        billed.price.product,
    )
    assert line.pricing.unit_amount_decimal == Decimal("0.0001")
    assert (line.quantity_decimal, line.amount, line.subtotal) == (Decimal(1_500_000), 150, 150)
    assert (line.period.start, line.period.end) == (billed.start, billed.end)


def test_usage_of_the_ended_period_counts_until_the_invoice_finalises(month: Sandbox) -> None:
    billed = Billed(month)
    billed.account.use(billed.customer, 11, billed.end - 1)
    billed.account.use(billed.customer, 1000, billed.end)  # of the new period
    month.move_to(billed.end + HOUR)
    assert billed.invoice.total == 111
    billed.account.use(billed.customer, 500, billed.end - 1)  # too late: on no invoice
    month.move_to(billed.end + 31 * DAY + HOUR)
    totals = [i.total for i in billed.account.v1.invoices.list({"customer": billed.customer}).data]
    assert totals == [1000, 111]


@pytest.mark.parametrize("hours", [0, 72])
def test_the_grace_is_the_accounts(month: Sandbox, hours: int) -> None:
    billed = Billed(month, grace=hours * HOUR)
    month.move_to(billed.end + max(hours * HOUR - 1, 0))
    assert billed.invoice.status == ("draft" if hours else "paid")
    month.move_to(billed.end + hours * HOUR)
    assert billed.invoice.status == "paid"


def test_an_invoice_over_nothing_is_paid_without_a_charge(month: Sandbox) -> None:
    billed = Billed(month, 0)
    month.move_to(billed.end + HOUR)
    assert (billed.invoice.status, billed.invoice.total, billed.invoice.attempt_count) == ("paid", 0, 0)


def test_a_negative_period_bills_as_nothing(month: Sandbox) -> None:
    billed = Billed(month, -5)
    month.move_to(billed.end + HOUR)
    assert (billed.invoice.total, int(billed.invoice.lines.data[0].quantity_decimal)) == (0, 0)


def test_tiers_make_several_lines_of_one_item_and_lines_are_paged(month: Sandbox) -> None:
    tiers = [{"up_to": n * 10, "unit_amount": 20 - n} for n in range(1, 14)] + [{"up_to": "inf", "unit_amount": 1}]
    billed = Billed(month, 137, {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers})
    invoice = billed.invoice
    assert (len(invoice.lines.data), invoice.lines.has_more) == (10, True)
    first = billed.account.v1.invoices.line_items.list(invoice.id)
    assert (len(first.data), first.has_more) == (10, True)
    lines = list(billed.account.v1.invoices.line_items.list(invoice.id, {"limit": 4}).auto_paging_iter())
    assert [line.id for line in lines[:10]] == [line.id for line in invoice.lines.data]
    assert sum(int(line.quantity_decimal) for line in lines) == 137
    assert sum(line.amount for line in lines) == invoice.total == sum(10 * (20 - n) for n in range(1, 14)) + 7


def test_a_held_draft_stays_one_until_it_is_released(month: Sandbox) -> None:
    billed = Billed(month)
    invoice = billed.invoice.id
    held = billed.account.v1.invoices.update(invoice, {"auto_advance": False})
    assert (held.auto_advance, held.automatically_finalizes_at) == (False, None)
    month.move_to(billed.end + 2 * DAY)
    assert billed.invoice.status == "draft"
    billed.account.use(billed.customer, 9, billed.end - 1)
    released = billed.account.v1.invoices.finalize_invoice(invoice, {"auto_advance": True})
    assert (released.status, released.total) == ("paid", 109)
    with pytest.raises(stripe.InvalidRequestError, match="already finalized"):
        billed.account.v1.invoices.finalize_invoice(invoice)


def test_finalised_by_hand_without_advance_it_stays_open_until_paid(month: Sandbox) -> None:
    billed = Billed(month)
    invoice = billed.invoice.id
    billed.account.v1.invoices.update(invoice, {"auto_advance": False})
    opened = billed.account.v1.invoices.finalize_invoice(invoice)
    assert (opened.status, opened.amount_remaining) == ("open", 100)
    assert billed.account.v1.invoices.pay(invoice).status == "paid"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        billed.account.v1.invoices.pay(invoice)


def test_void_and_uncollectible(month: Sandbox) -> None:
    billed = Billed(month, collection_method="send_invoice", days_until_due=14)
    with pytest.raises(stripe.InvalidRequestError, match="draft"):
        billed.account.v1.invoices.void_invoice(billed.invoice.id)
    month.move_to(billed.end + HOUR)
    invoice = billed.invoice
    assert (invoice.status, invoice.due_date) == ("open", billed.end + HOUR + 14 * DAY)
    assert billed.account.v1.invoices.mark_uncollectible(invoice.id).status == "uncollectible"
    voided = billed.account.v1.invoices.void_invoice(invoice.id)
    assert (voided.status, voided.status_transitions.voided_at) == ("void", month.now())
    types = billed.account.event_types()
    assert {"invoice.sent", "invoice.marked_uncollectible", "invoice.voided"} <= set(types)


def test_lists_by_status_customer_and_subscription(month: Sandbox) -> None:
    billed = Billed(month)
    lists = billed.account.v1.invoices.list
    assert [i.id for i in lists({"status": "draft", "customer": billed.customer}).data] == [billed.invoice.id]
    assert lists({"status": "paid"}).data == []
    assert lists({"created": {"gt": billed.end}}).data == []
    assert lists({"subscription": "sub_no"}).data == []
