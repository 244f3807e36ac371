"""Reading events: amounts, quantities, periods, older API versions, and which of two objects of an invoice counts."""

from __future__ import annotations

import inspect
import itertools
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import stripe
import stripe.events._event_classes
import stripe.params._webhook_endpoint_create_params

from clawbill_pipeline.invoicing.events import (
    WATCHED,
    WATCHED_THIN,
    Invoice,
    Reference,
    Subscription,
    UnusableEvent,
    order,
    read_change,
)
from clawbill_pipeline_tests.invoicing.objects import END, START, event, invoice, line, subscription

AT = datetime(2026, 11, 1, tzinfo=UTC)


def read(obj: dict, event_type: str = "invoice.updated") -> Invoice:
    change = read_change(event_type, event("evt_1", event_type, obj, END))
    assert isinstance(change, Invoice)
    return change


def test_an_invoice_with_its_lines() -> None:
    change = read(invoice("paid"))
    assert (change.invoice_id, change.customer_id, change.subscription_id) == ("in_1", "cus_1", "sub_1")
    assert (change.status, change.number, change.currency) == ("paid", "ABC-0001", "USD")
    assert (change.subtotal, change.amount_paid) == (Decimal("12.34"), Decimal("12.34"))
    assert change.paid_at == datetime.fromtimestamp(END + 3600, UTC)
    assert "lines" not in change.object
    (only,) = change.lines
    assert (only.subscription_item_id, only.price_id) == ("si_1", "price_1")
    assert (only.quantity, only.amount) == (Decimal(12_340_000), Decimal("12.34"))
    assert only.period_start == datetime.fromtimestamp(START, UTC)
    assert only.period_end == datetime.fromtimestamp(END, UTC)


def test_the_fraction_of_a_quantity_is_kept() -> None:
    for written in ("0.123456789012", 0.5):
        (only,) = read(invoice(lines=[line(quantity=0, quantity_decimal=written)])).lines
        assert only.quantity == Decimal(str(written))
    (only,) = read(invoice(lines=[line(quantity=7, quantity_decimal=None)])).lines
    assert only.quantity == 7


@pytest.mark.parametrize(
    ("currency", "minor", "major"), [("jpy", 80, "80"), ("isk", 500, "5"), ("kwd", 1234, "1.234"), ("usd", -50, "-0.5")]
)
def test_minor_units_are_stripes(currency: str, minor: int, major: str) -> None:
    change = read(invoice(lines=[line(amount=minor, currency=currency)], currency=currency))
    assert change.lines[0].amount == change.total == Decimal(major)


def test_names_of_older_api_versions() -> None:
    old = line(parent=None, pricing=None, subscription_item="si_9", price={"id": "price_9"})
    change = read(invoice(lines=[old], parent=None, subscription="sub_9", customer={"id": "cus_9"}))
    assert (change.subscription_id, change.customer_id) == ("sub_9", "cus_9")
    assert (change.lines[0].subscription_item_id, change.lines[0].price_id) == ("si_9", "price_9")


def test_a_line_of_no_subscription() -> None:
    (only,) = read(invoice(lines=[line(parent=None, pricing=None)])).lines
    assert (only.subscription_item_id, only.price_id) == (None, None)


def test_numbers_are_stored_with_their_digits() -> None:
    change = read(invoice(tax_percent=0.1))
    assert json.loads(json.dumps(change.object))["tax_percent"] == "0.1"


def test_a_deleted_draft_has_no_lines() -> None:
    change = read(invoice(), "invoice.deleted")
    assert (change.status, change.lines) == ("deleted", ())


def test_a_subscription() -> None:
    body = event("evt_1", "customer.subscription.updated", subscription("past_due"), END)
    assert read_change("customer.subscription.updated", body) == Subscription("sub_1", "cus_1", "past_due")


def test_a_thin_event_refers_to_its_object() -> None:
    body = json.dumps({"object": "v2.core.event", "related_object": {"id": "in_7", "type": "invoice"}})
    assert read_change("v1.invoice.paid", body) == Reference("invoice", "in_7")


@pytest.mark.parametrize(
    "event_type", ["invoice.upcoming", "invoiceitem.created", "charge.succeeded", "invoice_payment.paid"]
)
def test_other_events_have_no_handler(event_type: str) -> None:
    assert read_change(event_type, event("evt_1", event_type, {"object": "x"}, END)) is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"currency": "dollars"}, "currency"),
        ({"customer": None}, "customer"),
        ({"total": 12.5}, "total"),
        ({"total": "1234"}, "total"),
        ({"created": "today"}, "created"),
        ({"status": None}, "status"),
        ({"lines": {"data": [line(period=None)]}}, "period"),
        ({"lines": {"data": [line(quantity_decimal="1.0000000000001")]}}, "quantity_decimal"),
        ({"lines": {"data": ["il_1"]}}, "invoice"),
        ({"lines": ["il_1"]}, "invoice"),
    ],
)
def test_what_cannot_be_read_names_the_field(changes: dict, field: str) -> None:
    with pytest.raises(UnusableEvent, match=field):
        read(invoice() | changes)


def test_a_status_only_goes_forward() -> None:
    path = ["draft", "open", "uncollectible", "paid"]
    for (i, known), (j, new) in itertools.product(enumerate(path), repeat=2):
        for seconds in (-1, 0, 1):
            expected = j - i or seconds
            answer = order(new, AT + timedelta(seconds=seconds), known, AT)
            assert answer == ("newer" if expected > 0 else "older" if expected < 0 else "same")


def test_every_watched_type_is_one_that_stripe_has() -> None:
    known = inspect.getsource(stripe.params._webhook_endpoint_create_params)
    assert [name for name in WATCHED if f'"{name}"' not in known] == []
    thin = inspect.getsource(stripe.events._event_classes)
    assert [name for name in WATCHED_THIN if f'"{name}"' not in thin] == []
    assert all(read_change(name, '{"object": "v2.core.event", "id": "evt_1", "type": "x"}') for name in WATCHED_THIN)
