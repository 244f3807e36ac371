"""Promotion codes: ``/v1/promotion_codes``. A word that customers redeem a coupon by."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.coupons import is_valid
from clawbill_pipeline.sandbox.stripe.errors import invalid


def create(call: Call, params: Document) -> Document:
    coupon = params["promotion"].get("coupon")
    if coupon is None:
        raise invalid("Missing required param: promotion[coupon].", "promotion[coupon]", "parameter_missing")
    call.find("coupon", coupon, param="promotion[coupon]")
    if "customer" in params:
        call.find("customer", params["customer"], param="customer")
    identifier = call.new_id("promo")
    word = params.get("code") or identifier.removeprefix("promo_")[:8].upper()
    if any(_is_active(call, other) for other in call.store.select(call.account, "promotion_code", lookup=word.lower())):
        raise invalid(f"An active promotion code with `code: {word}` already exists.", "code")
    promotion: Document = {
        "id": identifier,
        "object": "promotion_code",
        "active": params.get("active", True),
        "code": word,
        "created": call.now,
        "customer": params.get("customer"),
        "expires_at": params.get("expires_at"),
        "livemode": False,
        "max_redemptions": params.get("max_redemptions"),
        "metadata": merged_metadata({}, params.get("metadata")),
        "promotion": {"coupon": coupon, "type": "coupon"},
        "restrictions": {"first_time_transaction": False, "minimum_amount": None, "minimum_amount_currency": None},
        "times_redeemed": 0,
        "_lookup": word.lower(),
    }
    return _shown(call, call.put("promotion_code", promotion))


def retrieve(call: Call, params: Document, id: str) -> Document:
    return _shown(call, call.find("promotion_code", id))


def update(call: Call, params: Document, id: str) -> Document:
    promotion = call.find("promotion_code", id)
    promotion["active"] = params.get("active", promotion["active"])
    promotion["metadata"] = merged_metadata(promotion["metadata"], params.get("metadata"))
    return _shown(call, call.put("promotion_code", promotion))


def list_all(call: Call, params: Document) -> Document:
    def keep(promotion: Document) -> bool:
        return params.get("active", _is_active(call, promotion)) == _is_active(call, promotion) and all(
            params.get(name, found) == found
            for name, found in (
                ("code", promotion["code"]),
                ("coupon", promotion["promotion"]["coupon"]),
                ("customer", promotion["customer"]),
            )
        )

    answer = page(call, "promotion_code", params, "/v1/promotion_codes", keep=keep)
    return {**answer, "data": [_shown(call, promotion) for promotion in answer["data"]]}


def redeemed(call: Call, identifier: str, customer: str, param: str) -> Document:
    """The coupon behind the code, once more redeemed. Raises ApiError (400) for one that the customer can't use."""
    promotion = call.find("promotion_code", identifier, param=param)
    if not _is_active(call, promotion) or promotion["customer"] not in (None, customer):
        raise invalid("This promotion code cannot be redeemed.", param)
    promotion["times_redeemed"] += 1
    call.put("promotion_code", promotion)
    return call.find("coupon", promotion["promotion"]["coupon"], param=param)


def _is_active(call: Call, promotion: Document) -> bool:
    coupon = call.store.get(call.account, "coupon", promotion["promotion"]["coupon"])
    most = promotion["max_redemptions"]
    return bool(
        promotion["active"]
        and coupon is not None
        and is_valid(call, coupon)
        and (promotion["expires_at"] is None or call.now < promotion["expires_at"])
        and (most is None or promotion["times_redeemed"] < most)
    )


def _shown(call: Call, promotion: Document) -> Document:
    return public(promotion) | {"active": _is_active(call, promotion)}


_PATH = "/v1/promotion_codes"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract("PromotionCodeCreateParams", "active code customer expires_at max_redemptions metadata promotion"),
        create,
    ),
    Route(
        "GET",
        _PATH,
        Contract("PromotionCodeListParams", "active code coupon created customer ending_before limit starting_after"),
        list_all,
    ),
    Route("GET", _PATH + "/{id}", Contract("PromotionCodeRetrieveParams"), retrieve),
    Route("POST", _PATH + "/{id}", Contract("PromotionCodeUpdateParams", "active metadata"), update),
]
