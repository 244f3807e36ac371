"""Coupons: ``/v1/coupons``. A share or an amount off; redeeming one makes a discount (``discounts``)."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.errors import ApiError, invalid


def create(call: Call, params: Document) -> Document:
    if ("amount_off" in params) == ("percent_off" in params):
        raise invalid("You must specify exactly one of these parameters: percent_off, amount_off.", "percent_off")
    if "percent_off" in params and not 0 < params["percent_off"] <= 100:
        raise invalid("`percent_off` must be above 0 and at most 100.", "percent_off")
    if "amount_off" in params and (params["amount_off"] <= 0 or "currency" not in params):
        raise invalid("`amount_off` must be positive and needs `currency`.", "amount_off")
    duration = params.get("duration", "once")
    if (duration == "repeating") != ("duration_in_months" in params):
        raise invalid(
            "`duration_in_months` goes with `duration=repeating`, and only with it.", "duration_in_months"
        )  # fmt: skip
    identifier = params.get("id") or call.new_id("coupon").removeprefix("coupon_")[:8]
    if call.store.has(call.account, "coupon", identifier):
        raise ApiError(400, "Coupon already exists.", code="resource_already_exists", param="id")
    coupon: Document = {
        "id": identifier,
        "object": "coupon",
        "amount_off": params.get("amount_off"),
        "created": call.now,
        "currency": params.get("currency"),
        "duration": duration,
        "duration_in_months": params.get("duration_in_months"),
        "livemode": False,
        "max_redemptions": params.get("max_redemptions"),
        "metadata": merged_metadata({}, params.get("metadata")),
        "name": params.get("name"),
        "percent_off": params.get("percent_off"),
        "redeem_by": params.get("redeem_by"),
        "times_redeemed": 0,
    }
    return shown_coupon(call, call.put("coupon", coupon))


def retrieve(call: Call, params: Document, id: str) -> Document:
    return shown_coupon(call, call.find("coupon", id))


def update(call: Call, params: Document, id: str) -> Document:
    """What it takes off never changes."""
    coupon = call.find("coupon", id)
    coupon["name"] = params.get("name", coupon["name"])
    coupon["metadata"] = merged_metadata(coupon["metadata"], params.get("metadata"))
    return shown_coupon(call, call.put("coupon", coupon))


def delete(call: Call, params: Document, id: str) -> Document:
    """Nobody can redeem it any more; discounts that were made of it stay."""
    coupon = call.find("coupon", id)
    call.put("deleted_coupon", coupon)
    call.store.drop(call.account, "coupon", id)
    return {"id": id, "object": "coupon", "deleted": True}


def list_all(call: Call, params: Document) -> Document:
    answer = page(call, "coupon", params, "/v1/coupons")
    return {**answer, "data": [shown_coupon(call, coupon) for coupon in answer["data"]]}


def shown_coupon(call: Call, coupon: Document) -> Document:
    """As the API answers it: ``valid`` says whether it can be redeemed now."""
    return public(coupon) | {"valid": is_valid(call, coupon)}


def is_valid(call: Call, coupon: Document) -> bool:
    """Whether the coupon can be redeemed now."""
    is_used_up = coupon["max_redemptions"] is not None and coupon["times_redeemed"] >= coupon["max_redemptions"]
    return not is_used_up and (coupon["redeem_by"] is None or call.now <= coupon["redeem_by"])


_PATH = "/v1/coupons"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract(
            "CouponCreateParams",
            "amount_off currency duration duration_in_months id max_redemptions metadata name percent_off redeem_by",
        ),
        create,
    ),
    Route("GET", _PATH, Contract("CouponListParams", "created ending_before limit starting_after"), list_all),
    Route("GET", _PATH + "/{id}", Contract("CouponRetrieveParams"), retrieve),
    Route("POST", _PATH + "/{id}", Contract("CouponUpdateParams", "metadata name"), update),
    Route("DELETE", _PATH + "/{id}", Contract("CouponDeleteParams"), delete),
]
