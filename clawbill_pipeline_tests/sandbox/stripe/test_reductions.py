"""Discounts, billing credits, tax and the customer's balance on an invoice: in this order, to the last minor unit."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox


class Bill:
    """A subscription to two metered prices of a cent a unit, whose month has ended: 600 and 401 cents of usage."""

    def __init__(self, account: Account, month: Sandbox, customer: str | None = None, **params: Any) -> None:
        self.account, self.month = account, month
        self.customer = customer or account.customer()
        meters = [account.meter(name).id for name in ("tokens", "requests")]
        self.prices = [account.price(meter, unit_amount=1).id for meter in meters]
        given = {"customer": self.customer, "items": [{"price": price} for price in self.prices], **params}
        self.subscription = account.v1.subscriptions.create(given)
        self.month_passes()

    def month_passes(self) -> None:
        for name, value in (("tokens", "600"), ("requests", "401")):
            payload = {"stripe_customer_id": self.customer, "value": value}
            event = {"event_name": name, "payload": payload, "timestamp": self.month.now()}
            self.account.v1.billing.meter_events.create(event)
        found = self.account.v1.subscriptions.retrieve(self.subscription.id)
        self.month.move_to(found["items"].data[0].current_period_end)

    @property
    def invoice(self) -> Any:
        return self.account.v1.invoices.list({"subscription": self.subscription.id}).data[0]

    def final(self) -> Any:
        self.month.move_to(self.month.now() + HOUR)
        return self.invoice


def amounts(entries: Any) -> list[int]:
    return [entry.amount for entry in entries]


def test_tax_comes_on_top_or_is_part_of_the_amount(account: Account, month: Sandbox) -> None:
    vat = account.v1.tax_rates.create({"display_name": "VAT", "inclusive": False, "percentage": 19})
    bill = Bill(account, month, default_tax_rates=[vat.id])
    invoice = bill.invoice
    assert (invoice.subtotal, invoice.total, invoice.total_excluding_tax) == (1001, 1191, 1001)
    assert [amounts(line.taxes) for line in invoice.lines.data] == [[114], [76]]
    (tax,) = invoice.total_taxes
    assert (tax.amount, tax.tax_behavior, tax.tax_rate_details.tax_rate, tax.taxable_amount) == (
        190, "exclusive", vat.id, 1001,
    )  # fmt: skip
    gst = account.v1.tax_rates.create({"display_name": "GST", "inclusive": True, "percentage": 10})
    item = bill.subscription["items"].data[0].id
    account.v1.subscription_items.update(item, {"tax_rates": [gst.id]})
    bill.month_passes()
    invoice = bill.invoice
    assert [amounts(line.taxes) for line in invoice.lines.data] == [[55], [76]], "600 holds 54.55 of GST"
    assert (invoice.subtotal, invoice.subtotal_excluding_tax, invoice.total) == (1001, 946, 1077)
    assert invoice.total_excluding_tax == 946


def test_an_archived_rate_or_a_wrong_one_is_refused(account: Account) -> None:
    rate = account.v1.tax_rates.create({"display_name": "VAT", "inclusive": False, "percentage": 7.5})
    account.v1.tax_rates.update(rate.id, {"active": False})
    assert account.v1.tax_rates.list({"active": True}).data == []
    with pytest.raises(stripe.InvalidRequestError, match="archived"):
        account.v1.invoices.create({"customer": account.customer(), "currency": "usd", "default_tax_rates": [rate.id]})
    with pytest.raises(stripe.InvalidRequestError, match="between 0 and 100"):
        account.v1.tax_rates.create({"display_name": "VAT", "inclusive": False, "percentage": 101})


def test_a_share_off_is_rounded_once_a_line(account: Account, month: Sandbox) -> None:
    coupon = account.v1.coupons.create({"percent_off": 12.5, "duration": "forever"})
    bill = Bill(account, month, discounts=[{"coupon": coupon.id}])
    invoice = bill.invoice
    assert [amounts(line.discount_amounts) for line in invoice.lines.data] == [[75], [50]]
    assert (invoice.total, amounts(invoice.total_discount_amounts)) == (876, [125])
    assert amounts(invoice.total_pretax_credit_amounts) == [125], "Stripe lists discounts among them as well"
    bill.month_passes()
    assert bill.invoice.total == 876, "for ever"


def test_an_amount_off_is_spread_over_the_lines_and_holds_once(account: Account, month: Sandbox) -> None:
    coupon = account.v1.coupons.create({"amount_off": 100, "currency": "usd", "name": "Welcome", "max_redemptions": 1})
    word = account.v1.promotion_codes.create({"code": "WELCOME", "promotion": {"coupon": coupon.id, "type": "coupon"}})
    bill = Bill(account, month, discounts=[{"promotion_code": word.id}])
    invoice = bill.invoice
    assert (amounts(invoice.total_discount_amounts), invoice.total) == ([100], 901)
    assert sum(amounts([entry for line in invoice.lines.data for entry in line.discount_amounts])) == 100
    bill.month_passes()
    assert bill.invoice.total == 1001
    assert not account.v1.coupons.retrieve(coupon.id).valid
    assert account.v1.promotion_codes.list({"code": "WELCOME", "active": True}).data == []
    with pytest.raises(stripe.InvalidRequestError, match="cannot be redeemed"):
        account.v1.subscriptions.update(bill.subscription.id, {"discounts": [{"promotion_code": word.id}]})


def test_a_discount_for_some_months_ends(account: Account, month: Sandbox) -> None:
    coupon = account.v1.coupons.create({"percent_off": 50, "duration": "repeating", "duration_in_months": 2})
    bill = Bill(account, month, discounts=[{"coupon": coupon.id}])
    totals = [bill.invoice.total]
    for _ in range(2):
        bill.month_passes()
        totals.append(bill.invoice.total)
    assert totals[0] == 500
    assert totals[-1] == 1001
    account.v1.subscriptions.update(bill.subscription.id, {"discounts": ""})
    assert account.v1.subscriptions.retrieve(bill.subscription.id).discounts == []


def test_credits_pay_for_usage_before_tax_and_the_balance_after_it(account: Account, month: Sandbox) -> None:
    vat = account.v1.tax_rates.create({"display_name": "VAT", "inclusive": False, "percentage": 10})
    coupon = account.v1.coupons.create({"percent_off": 10, "duration": "forever"})
    customer = account.customer()
    grant = {
        "customer": customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 300}},
        "applicability_config": {"scope": {"price_type": "metered"}},
        "category": "promotional",
    }
    granted = account.v1.billing.credit_grants.create(grant)
    account.v1.customers.balance_transactions.create(customer, {"amount": -50, "currency": "usd"})
    bill = Bill(account, month, customer, default_tax_rates=[vat.id], discounts=[{"coupon": coupon.id}])
    assert bill.invoice.total_pretax_credit_amounts[0].type == "discount"
    invoice = bill.final()
    # 540 + 361 after the discount; 300 of credit; 24 + 36.1 of tax on what is left; 50 of balance.
    assert [(each.type, each.amount) for each in invoice.total_pretax_credit_amounts] == [
        ("discount", 100), ("credit_balance_transaction", 300),
    ]  # fmt: skip
    assert (invoice.total, amounts(invoice.total_taxes), invoice.amount_due) == (661, [60], 611)
    assert account.v1.customers.retrieve(customer).balance == 0
    summary = {"customer": customer, "filter": {"type": "credit_grant", "credit_grant": granted.id}}
    (balance,) = account.v1.billing.credit_balance_summary.retrieve(summary).balances
    assert balance.available_balance.monetary.value == 0
    kinds = [each.type for each in account.v1.customers.balance_transactions.list(customer).data]
    assert kinds == ["applied_to_invoice", "adjustment"]


def test_a_void_invoice_gives_credits_back_and_a_grant_can_end(account: Account, month: Sandbox) -> None:
    customer = account.customer()

    def granted(value: int, **params: Any) -> Any:
        amount = {"type": "monetary", "monetary": {"currency": "usd", "value": value}}
        scope = {"scope": {"price_type": "metered"}}
        return account.v1.billing.credit_grants.create(
            {"customer": customer, "amount": amount, "applicability_config": scope, **params}
        )

    def left(grant: Any) -> int:
        asked = {"customer": customer, "filter": {"type": "credit_grant", "credit_grant": grant.id}}
        balances = account.v1.billing.credit_balance_summary.retrieve(asked).balances
        return sum(each.available_balance.monetary.value for each in balances)

    later, first, ended = granted(1000), granted(100, priority=1), granted(5, expires_at=month.now() + DAY)
    euros = granted(70)
    account.v1.billing.credit_grants.void_grant(euros.id)
    bill = Bill(account, month, customer, collection_method="send_invoice", days_until_due=30)
    invoice = bill.final()
    assert (invoice.status, invoice.total) == ("paid", 0)
    assert (left(first), left(later), left(ended)) == (0, 99, 0)
    bill.month_passes()
    invoice = bill.final()
    assert (invoice.status, invoice.total, left(later)) == ("open", 902, 0)
    account.v1.invoices.void_invoice(invoice.id)
    assert left(later) == 99
    account.v1.billing.credit_grants.expire(later.id)
    assert left(later) == 0


def test_several_subscriptions_of_a_customer_are_of_one_currency(account: Account) -> None:
    customer = account.customer()
    meter = account.meter().id
    for _ in range(2):
        price = account.price(meter, unit_amount=1).id
        account.v1.subscriptions.create({"customer": customer, "items": [{"price": price}]})
    yen = account.price(meter, unit_amount=1, currency="jpy").id
    with pytest.raises(stripe.InvalidRequestError, match="cannot combine currencies"):
        account.v1.subscriptions.create({"customer": customer, "items": [{"price": yen}]})
    # An invoice may be in another currency, and credit in dollars does not pay for it.
    account.v1.customers.balance_transactions.create(customer, {"amount": -500, "currency": "usd"})
    account.v1.invoice_items.create({"customer": customer, "currency": "jpy", "amount": 80})
    invoice = account.v1.invoices.create(
        {"customer": customer, "currency": "jpy", "pending_invoice_items_behavior": "include"}
    )
    assert account.v1.invoices.pay(invoice.id).amount_paid == 80
    assert account.v1.customers.retrieve(customer).balance == -500
