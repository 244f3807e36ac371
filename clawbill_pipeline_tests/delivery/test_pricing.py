"""Catalogue prices in Stripe's terms: the same money by both, or a clear refusal."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from clawbill_pipeline.catalog.prices import Price
from clawbill_pipeline.delivery.pricing import Unpriceable, amount_terms, described, quantity_terms
from clawbill_pipeline.money import stripe_exponent
from clawbill_pipeline.rating.engine import rate
from clawbill_pipeline.sandbox.stripe.pricing import priced_lines

prices: TypeAdapter[Price] = TypeAdapter(Price)


def _price(**fields: object) -> Price:
    return prices.validate_python(fields)


@pytest.mark.parametrize(
    ("currency", "minor"), [("USD", "0.0001"), ("JPY", "0.000001"), ("KWD", "0.001"), ("ISK", "0.0001")]
)
def test_a_millionth_of_the_major_unit(currency: str, minor: str) -> None:
    """Zero- and three-decimal currencies, and ISK, which Stripe charges in hundredths."""
    assert amount_terms(currency) == {"billing_scheme": "per_unit", "unit_amount_decimal": minor}


def test_units_are_scaled() -> None:
    price = _price(model="per_unit", unit_amount="2.5", per=1000)
    assert quantity_terms(price, "USD", 0)["unit_amount_decimal"] == "0.25"
    assert quantity_terms(price, "USD", 3)["unit_amount_decimal"] == "0.00025"


def test_tiers_and_packages() -> None:
    tiers = [{"up_to": 100, "unit_amount": "0.5", "flat_amount": 1}, {"unit_amount": "0.25"}]
    for model in ("graduated", "volume"):
        terms = quantity_terms(_price(model=model, tiers=tiers), "USD", 1)
        assert terms == {
            "billing_scheme": "tiered",
            "tiers_mode": model,
            "tiers": [
                {"up_to": 1000, "unit_amount_decimal": "5", "flat_amount_decimal": "100"},
                {"up_to": "inf", "unit_amount_decimal": "2.5", "flat_amount_decimal": "0"},
            ],
        }
        assert described(terms) == f"{model}, 2 tiers"
    package = quantity_terms(_price(model="package", package_size=100, package_amount=5), "USD", 1)
    assert package["transform_quantity"] == {"divide_by": 1000, "round": "up"}
    assert described(package) == "500 minor units a package of 1000"


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ({"model": "per_unit", "unit_amount": 1, "minimum": 5}, "minimum"),
        ({"model": "per_unit", "unit_amount": 1, "included": 5}, "included"),
        ({"model": "per_unit", "unit_amount": 1, "discounts": [{"kind": "percentage", "percent": 5}]}, "discounts"),
        ({"model": "per_unit", "unit_amount": 1, "per": 3}, "12 decimal places"),
        ({"model": "package", "package_size": 3, "package_amount": 1, "round": "half_up"}, "half_up"),
        ({"model": "graduated", "tiers": [{"up_to": "0.5", "unit_amount": 1}, {"unit_amount": 2}]}, "whole number"),
        ({"model": "graduated", "tiers": [{"flat_amount": "0.001"}]}, "flat_amount"),
        ({"model": "volume", "charge_flat_on_zero": False, "tiers": [{"flat_amount": 1}]}, "charge_flat_on_zero"),
        ({"model": "dynamic"}, "model: dynamic"),
    ],
)
def test_what_stripe_cannot_charge_is_refused(price: dict[str, object], said: str) -> None:
    with pytest.raises(Unpriceable, match="use bill_by: amount") as raised:
        quantity_terms(_price(**price), "USD", 0)
    assert said in str(raised.value)


money = st.decimals(0, 10, places=4)


@given(
    st.sampled_from(["USD", "JPY", "KWD"]),
    st.integers(0, 3),
    st.integers(0, 50_000),
    st.sampled_from(["graduated", "volume"]),
    st.tuples(money, money, st.integers(1, 20)),
)
def test_stripe_charges_what_the_rating_engine_charges(
    currency: str, decimals: int, units: int, model: str, given_: tuple[Decimal, Decimal, int]
) -> None:
    """To the minor unit: Stripe rounds line by line, so tiers may differ by half a unit each."""
    first, second, up_to = given_
    price = _price(model=model, tiers=[{"up_to": up_to, "unit_amount": first}, {"unit_amount": second}])
    terms = quantity_terms(price, currency, decimals)
    kept = [{**tier, "up_to": None if tier["up_to"] == "inf" else tier["up_to"]} for tier in terms["tiers"]]
    document = {**terms, "currency": currency.lower(), "_tiers": kept}
    charged = sum(line.amount for line in priced_lines(document, units))
    quantity = Decimal(units).scaleb(-decimals)
    exact = rate(price, quantity).amount.scaleb(stripe_exponent(currency))
    assert abs(charged - exact) <= 1
