"""Customers, products, prices, meters, portal sessions: what they keep and what they refuse."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import Account

LEGACY = "2025-02-24.acacia"


def test_customers(account: Account) -> None:
    made = account.v1.customers.create(
        {"name": "Globex", "email": "a@b.c", "metadata": {"tenant_id": "globex", "x": "1"}}
    )
    changed = account.v1.customers.update(made.id, {"name": "", "metadata": {"x": "", "y": "2"}})
    assert (changed.name, changed.metadata.to_dict()) == (None, {"tenant_id": "globex", "y": "2"})
    assert account.v1.customers.retrieve(made.id).to_dict() == changed.to_dict()
    other = account.customer()
    assert [c.id for c in account.v1.customers.list({"email": "a@b.c"}).data] == [made.id]
    assert account.v1.customers.update(made.id, {"metadata": ""}).metadata.to_dict() == {}
    assert account.v1.customers.delete(other).deleted
    assert account.v1.customers.retrieve(other).to_dict() == {"id": other, "object": "customer", "deleted": True}
    types = ["customer.created", "customer.updated", "customer.created", "customer.updated", "customer.deleted"]
    assert account.event_types() == types


def test_products(account: Account) -> None:
    product = account.v1.products.create({"id": "openclaw", "name": "OpenClaw Usage", "unit_label": "token"})
    assert account.v1.products.update("openclaw", {"active": False}).active is False
    assert account.v1.products.list({"active": True}).data == []
    assert [p.id for p in account.v1.products.list({"ids": ["openclaw", "x"]}).data] == [product.id]
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        account.v1.products.create({"id": "openclaw", "name": "Again"})
    assert account.v1.products.delete("openclaw").deleted


def test_a_metered_price_keeps_its_decimals(account: Account) -> None:
    meter = account.meter()
    price = account.price(meter.id, unit_amount_decimal="0.000123456789", lookup_key="tokens")
    assert (price.unit_amount, price.unit_amount_decimal) == (None, Decimal("0.000123456789"))
    assert (price.recurring.meter, price.recurring.usage_type) == (meter.id, "metered")
    assert account.price(meter.id, unit_amount=5).unit_amount_decimal == Decimal(5)


def test_prices_are_found_by_lookup_key_and_the_key_moves_only_on_request(account: Account) -> None:
    meter = account.meter().id
    first = account.price(meter, lookup_key="tokens")
    assert [p.id for p in account.v1.prices.list({"lookup_keys": ["tokens", "none"]}).data] == [first.id]
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        account.price(meter, lookup_key="tokens")
    second = account.price(meter, lookup_key="tokens", transfer_lookup_key=True)
    assert [p.id for p in account.v1.prices.list({"lookup_keys": ["tokens"]}).data] == [second.id]
    assert account.v1.prices.retrieve(first.id).lookup_key is None
    account.v1.prices.update(second.id, {"active": False})
    assert [p.id for p in account.v1.prices.list({"active": True}).data] == [first.id]
    assert [p.id for p in account.v1.prices.list({"recurring": {"meter": meter}, "limit": 1}).data] == [second.id]


def test_tiers_are_shown_when_expanded(account: Account) -> None:
    tiers = [{"up_to": 100, "unit_amount_decimal": "0.5"}, {"up_to": "inf", "unit_amount": 2, "flat_amount": 100}]
    params: dict[str, Any] = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    price = account.price(account.meter().id, **params)
    assert "tiers" not in price
    opened = account.v1.prices.retrieve(price.id, {"expand": ["tiers"]})
    assert [(t.up_to, t.unit_amount_decimal, t.flat_amount) for t in opened.tiers] == [
        (100, Decimal("0.5"), None),
        (None, Decimal(2), 100),
    ]


TIERED = {"billing_scheme": "tiered", "tiers_mode": "volume"}
LAST = {"up_to": "inf", "unit_amount": 1}


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"unit_amount_decimal": "0.0000000000001"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "-1"}, "unit_amount"),
        ({"unit_amount": 1, "unit_amount_decimal": "1"}, "unit_amount"),
        ({"currency": "USD", "unit_amount": 1}, "currency"),
        ({"unit_amount": 1, "recurring": {"meter": "mtr_no"}}, "recurring[meter]"),
        ({"unit_amount": 1, "recurring": {"usage_type": "licensed"}}, "recurring[meter]"),
        ({"unit_amount": 1, "recurring": {"interval_count": 37}}, "recurring[interval_count]"),
        ({"unit_amount": 1, "product": "prod_no"}, "product"),
        ({"unit_amount": 1, "tiers": [LAST]}, "tiers"),
        ({**TIERED, "tiers": [LAST], "unit_amount": 1}, "unit_amount"),
        ({**TIERED, "tiers": [{"up_to": 5, "unit_amount": 1}]}, "tiers"),
        ({**TIERED, "tiers": [{"up_to": 5, "unit_amount": 1}, {"up_to": 5, "unit_amount": 1}, LAST]}, "tiers"),
        ({**TIERED, "tiers": [{"up_to": "inf"}]}, "tiers"),
        ({"billing_scheme": "tiered", "tiers": [LAST]}, "tiers_mode"),
        ({**TIERED, "tiers": [LAST], "transform_quantity": {"divide_by": 2, "round": "up"}}, "transform_quantity"),
    ],
)
def test_prices_that_stripe_would_refuse(account: Account, params: dict[str, Any], param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.price(account.meter().id, **params)
    assert caught.value.param == param


def test_a_metered_price_needs_a_meter_except_in_the_old_version(account: Account) -> None:
    params = {
        "currency": "usd",
        "unit_amount": 1,
        "product_data": {"name": "Legacy"},
        "recurring": {"interval": "month", "usage_type": "metered"},
    }
    with pytest.raises(stripe.InvalidRequestError, match="must be backed by a meter"):
        account.v1.prices.create(params)
    assert account.v1.prices.create(params, {"stripe_version": LEGACY}).recurring.meter is None


def test_meters(account: Account) -> None:
    meter = account.meter("tokens", event_time_window="hour")
    assert (meter.event_time_window, meter.customer_mapping.event_payload_key) == ("hour", "stripe_customer_id")
    assert meter.value_settings.event_payload_key == "value"
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        account.meter("tokens")
    assert account.v1.billing.meters.update(meter.id, {"display_name": "New"}).display_name == "New"
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: event_name"):
        account.v1.billing.meters.update(meter.id, {"event_name": "other"})
    gone = account.v1.billing.meters.deactivate(meter.id)
    assert (gone.status, gone.status_transitions.deactivated_at) == ("inactive", account.sandbox.now())
    second = account.meter("tokens", "last")
    assert [m.id for m in account.v1.billing.meters.list({"status": "active"}).data] == [second.id]
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        account.v1.billing.meters.reactivate(meter.id)
    account.v1.billing.meters.deactivate(second.id)
    assert account.v1.billing.meters.reactivate(meter.id).status == "active"


def test_portal_sessions(account: Account) -> None:
    customer = account.customer()
    session = account.v1.billing_portal.sessions.create({"customer": customer, "return_url": "https://example.com"})
    assert session.customer == customer
    assert session.url.startswith("https://")
