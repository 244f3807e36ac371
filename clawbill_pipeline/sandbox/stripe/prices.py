"""Prices: ``/v1/prices``. Recurring ones, metered or licensed; what a quantity costs by a price is in ``pricing``.

A metered price is backed by a meter since API version 2025-03-31.basil; without one it is a legacy price, which only
the version before takes, and whose usage comes as usage records.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from clawbill_pipeline.money import plain
from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import (
    LEGACY,
    VIEWS,
    Call,
    Document,
    Route,
    merged_metadata,
    page,
    public,
)
from clawbill_pipeline.sandbox.stripe.errors import ApiError, invalid, unsupported
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.products import create as create_product

_UNITS = ("unit_amount", "unit_amount_decimal")
_LONGEST = {"day": 1095, "week": 156, "month": 36, "year": 3}


def create(call: Call, params: Document) -> Document:
    recurring = _recurring(call, params)
    scheme = params.get("billing_scheme", "per_unit")
    tiered = scheme == "tiered"
    amounts = {"unit_amount": None, "unit_amount_decimal": None} if tiered else _amount(params, "unit_amount", "")
    if tiered and any(name in params for name in _UNITS):
        raise invalid("You may only specify one of these parameters: unit_amount, tiers.", "unit_amount")
    if not tiered and ("tiers" in params or "tiers_mode" in params):
        raise invalid("`billing_scheme` must be set to `tiered` to use `tiers`.", "tiers")
    if tiered and "transform_quantity" in params:
        raise invalid("`transform_quantity` cannot be combined with `tiers`.", "transform_quantity")
    if not tiered and amounts["unit_amount_decimal"] is None:
        raise invalid("Prices require an `unit_amount` or `unit_amount_decimal` parameter to be set.", "unit_amount")
    price: Document = {
        "id": call.new_id("price"),
        "object": "price",
        "active": params.get("active", True),
        "billing_scheme": scheme,
        "created": call.now,
        "currency": _currency(params["currency"]),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": merged_metadata({}, params.get("metadata")),
        "nickname": params.get("nickname"),
        "product": _product(call, params),
        "recurring": recurring,
        "tax_behavior": params.get("tax_behavior", "unspecified"),
        "tiers_mode": _tiers_mode(params) if tiered else None,
        "transform_quantity": _transform(params),
        "type": "recurring",
        **amounts,
        "_tiers": _tiers(params) if tiered else None,
    }
    price["_parent"] = price["product"]
    _set_lookup_key(call, price, params)
    call.put("price", price)
    emit(call, "price.created", "price", price)
    return public(price)


def retrieve(call: Call, params: Document, id: str) -> Document:
    return public(call.find("price", id))


def update(call: Call, params: Document, id: str) -> Document:
    price = call.find("price", id)
    before = public(price)
    for name in ("active", "nickname", "tax_behavior"):
        if name in params:
            price[name] = params[name]
    price["metadata"] = merged_metadata(price["metadata"], params.get("metadata"))
    _set_lookup_key(call, price, params)
    call.put("price", price)
    emit(call, "price.updated", "price", price, before)
    return public(price)


def list_all(call: Call, params: Document) -> Document:
    keys = params.get("lookup_keys")
    if keys is not None and len(keys) > 10:
        raise invalid("You may only specify up to 10 lookup keys.", "lookup_keys")
    wanted = params.get("recurring", {})

    def keep(price: Document) -> bool:
        return (
            (keys is None or price["lookup_key"] in keys)
            and all(params.get(name, price[name]) == price[name] for name in ("active", "currency", "type"))
            and all(price["recurring"][name] == value for name, value in wanted.items())
        )

    return page(call, "price", params, "/v1/prices", where={"parent": params.get("product")}, keep=keep)


def plan_of(price: Document) -> Document:
    """The legacy ``plan`` object that subscription items still show beside their price."""
    amount = price["unit_amount"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": amount,
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "meter": price["recurring"]["meter"],
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": price["tiers_mode"],
        "transform_usage": price["transform_quantity"],
        "trial_period_days": None,
        "usage_type": price["recurring"]["usage_type"],
    }


def _currency(code: str) -> str:
    if len(code) != 3 or not code.isalpha() or not code.islower():
        raise invalid(f"Invalid currency: {code}. Use a three-letter ISO code in lower case.", "currency")
    return code


def _product(call: Call, params: Document) -> str:
    if ("product" in params) == ("product_data" in params):
        raise invalid("You must specify one of `product` or `product_data`.", "product", "parameter_missing")
    if "product_data" in params:
        return str(create_product(call, params["product_data"])["id"])
    return str(call.find("product", params["product"], param="product")["id"])


def _recurring(call: Call, params: Document) -> Document:
    given = params.get("recurring")
    if given is None:
        raise unsupported("one-time prices; give `recurring`", "recurring")
    usage_type = given.get("usage_type", "licensed")
    count = given.get("interval_count", 1)
    if not 1 <= count <= _LONGEST[given["interval"]]:
        raise invalid("`interval_count` must make an interval of at most three years.", "recurring[interval_count]")
    meter = given.get("meter")
    if usage_type == "licensed":
        if meter is not None:
            raise invalid("`recurring[meter]` goes with `recurring[usage_type]=metered`.", "recurring[meter]")
    elif meter is None:
        if call.version != LEGACY:
            raise invalid(
                "Prices with `recurring[usage_type]=metered` must be backed by a meter.",
                "recurring[meter]",
                "parameter_missing",
            )
    elif call.find("meter", meter, param="recurring[meter]")["status"] != "active":
        raise invalid(f"The meter {meter} is not active.", "recurring[meter]")
    return {
        "interval": given["interval"],
        "interval_count": count,
        "meter": meter,
        "trial_period_days": None,
        "usage_type": usage_type,
    }


def _amount(source: Document, name: str, path: str) -> dict[str, Any]:
    """``x`` and ``x_decimal`` as Stripe shows them: the integer is null where the decimal has a fraction."""
    whole, exact = source.get(name), source.get(f"{name}_decimal")
    if whole is not None and exact is not None:
        raise invalid(f"You may only specify one of these parameters: {name}, {name}_decimal.", f"{path}{name}")
    value = exact if whole is None else Decimal(whole)
    if value is None:
        return {name: None, f"{name}_decimal": None}
    if value < 0:
        raise invalid("Invalid non-negative number", f"{path}{name}")
    exponent = value.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -12:
        raise invalid("A decimal may have at most 12 decimal places.", f"{path}{name}_decimal")
    return {name: int(value) if value == value.to_integral_value() else None, f"{name}_decimal": plain(value)}


def _tiers_mode(params: Document) -> str:
    if "tiers_mode" not in params:
        raise invalid("Missing required param: tiers_mode.", "tiers_mode", "parameter_missing")
    return str(params["tiers_mode"])


def _tiers(params: Document) -> list[Document]:
    given = params.get("tiers", [])
    if not given or given[-1]["up_to"] != "inf":
        raise invalid("The last tier must have `up_to` set to `inf`.", "tiers")
    tiers, floor = [], 0
    for index, tier in enumerate(given):
        path = f"tiers[{index}]["
        top = None if tier["up_to"] == "inf" else tier["up_to"]
        if (top is None) != (index == len(given) - 1) or (top is not None and top <= floor):
            raise invalid("Each tier's `up_to` must be above the one before it, and only the last is `inf`.", "tiers")
        amounts = _amount(tier, "unit_amount", path) | _amount(tier, "flat_amount", path)
        if amounts["unit_amount_decimal"] is None and amounts["flat_amount_decimal"] is None:
            raise invalid("Each tier needs a `unit_amount` or a `flat_amount`.", "tiers")
        if amounts["flat_amount_decimal"] is not None and amounts["flat_amount"] is None:
            raise invalid("`flat_amount_decimal` must be a whole number of minor units.", f"{path}flat_amount_decimal]")
        tiers.append({**amounts, "up_to": top})
        floor = top or floor
    return tiers


def _transform(params: Document) -> Document | None:
    rule: Document | None = params.get("transform_quantity")
    if rule is not None and rule["divide_by"] < 1:
        raise invalid("`divide_by` must be at least 1.", "transform_quantity[divide_by]")
    return rule


def _set_lookup_key(call: Call, price: Document, params: Document) -> None:
    key = params.get("lookup_key")
    if key is None:
        return
    for other in call.store.select(call.account, "price", lookup=key) if key else []:
        if other["id"] == price["id"]:
            continue
        if not params.get("transfer_lookup_key"):
            raise ApiError(
                400,
                f"A price (`{other['id']}`) already uses that lookup key.",
                code="resource_already_exists",
                param="lookup_key",
                kept=True,
            )
        before = public(other)
        other["lookup_key"] = other["_lookup"] = None
        call.put("price", other)
        emit(call, "price.updated", "price", other, before)
    price["lookup_key"] = price["_lookup"] = key or None


VIEWS["price"] = lambda call, price: public(price)

ROUTES = [
    Route(
        "POST",
        "/v1/prices",
        Contract(
            "PriceCreateParams",
            "active billing_scheme currency lookup_key metadata nickname product product_data.active product_data.id"
            " product_data.metadata product_data.name product_data.statement_descriptor product_data.unit_label"
            " recurring.interval recurring.interval_count recurring.meter recurring.usage_type tax_behavior tiers"
            " tiers_mode transfer_lookup_key transform_quantity unit_amount unit_amount_decimal",
        ),
        create,
    ),
    Route(
        "GET",
        "/v1/prices",
        Contract(
            "PriceListParams",
            "active created currency ending_before limit lookup_keys product recurring starting_after type",
        ),
        list_all,
    ),
    Route("GET", "/v1/prices/{id}", Contract("PriceRetrieveParams"), retrieve),
    Route(
        "POST",
        "/v1/prices/{id}",
        Contract("PriceUpdateParams", "active lookup_key metadata nickname tax_behavior transfer_lookup_key"),
        update,
    ),
]
