"""Discounts: coupons redeemed for a subscription or an invoice, and what they take off its lines. No calls of its own.

They apply one after the other, before credits and tax. A share is rounded once a line; an amount is spread over the
lines by what they come to, to the last minor unit.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from clawbill_pipeline.sandbox.stripe.core import VIEWS, Call, Document, public
from clawbill_pipeline.sandbox.stripe.coupons import is_valid, shown_coupon
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.periods import Cycle
from clawbill_pipeline.sandbox.stripe.pricing import minor_amount
from clawbill_pipeline.sandbox.stripe.promotion_codes import redeemed


def redeem(call: Call, given: Any, customer: str, **on: str) -> list[str]:
    """Ids of the discounts that ``given`` asks for (``coupon``, ``promotion_code``, or ``discount`` to keep one).

    ``on`` names what they are for: ``subscription`` or ``invoice``. Raises ApiError (400).
    """
    found = []
    for index, entry in enumerate(given or []):
        param = f"discounts[{index}]"
        if len(entry) != 1:
            raise invalid("You may only specify one of these: coupon, promotion_code, discount.", param)
        if "discount" in entry:
            found.append(str(call.find("discount", entry["discount"], param=f"{param}[discount]")["id"]))
            continue
        if "promotion_code" in entry:
            coupon = redeemed(call, entry["promotion_code"], customer, f"{param}[promotion_code]")
        else:
            coupon = call.find("coupon", entry["coupon"], param=f"{param}[coupon]")
        if not is_valid(call, coupon):
            raise invalid(f"Coupon {coupon['id']} cannot be redeemed any more.", param)
        call.put("coupon", coupon | {"times_redeemed": coupon["times_redeemed"] + 1})
        months = coupon["duration_in_months"]
        discount: Document = {
            "id": call.new_id("di"),
            "object": "discount",
            "checkout_session": None,
            "customer": customer,
            "end": Cycle(call.now, "month").boundary(months) if months else None,
            "invoice": None,
            "invoice_item": None,
            "promotion_code": entry.get("promotion_code"),
            "source": {"coupon": coupon["id"], "type": "coupon"},
            "start": call.now,
            "subscription": None,
            "subscription_item": None,
            **on,
            "_coupon": coupon,
        }
        found.append(str(call.put("discount", discount)["id"]))
    return found


def for_invoice(call: Call, subscription: Document) -> list[str]:
    """The subscription's discounts that hold now. One that is for once goes with this invoice."""
    held, stays = [], []
    for identifier in subscription["discounts"]:
        discount = call.find("discount", identifier)
        if discount["end"] is not None and discount["end"] <= call.now:
            continue
        held.append(identifier)
        if discount["_coupon"]["duration"] != "once":
            stays.append(identifier)
    subscription["discounts"] = stays
    return held


def apply_discounts(call: Call, invoice: Document, lines: list[Document]) -> None:
    """Writes what each discount takes off each line, and the invoice's sum of each."""
    totals = []
    for identifier in invoice["discounts"]:
        coupon = call.find("discount", identifier)["_coupon"]
        taken = [line for line in lines if line["discountable"] and line["amount"] > 0]
        total = 0
        for line, amount in zip(taken, _off(coupon, taken, invoice["currency"]), strict=True):
            entry = {"amount": amount, "discount": identifier}
            line["discounts"] = [*line["discounts"], identifier]
            line["discount_amounts"] = [*line["discount_amounts"], entry]
            credit = {**entry, "credit_balance_transaction": None, "type": "discount"}
            line["pretax_credit_amounts"] = [*line["pretax_credit_amounts"], credit]
            total += amount
        totals.append({"amount": total, "discount": identifier})
    invoice["total_discount_amounts"] = totals


def left_of(line: Document) -> int:
    """What the line comes to after the discounts and credits that it has."""
    return int(line["amount"] - sum(credit["amount"] for credit in line["pretax_credit_amounts"]))


def _off(coupon: Document, lines: list[Document], currency: str) -> list[int]:
    left = [left_of(line) for line in lines]
    if coupon["percent_off"] is not None:
        share = Decimal(str(coupon["percent_off"])) / 100
        return [minor_amount(amount * share, currency) for amount in left]
    if coupon["currency"] != currency:  # Stripe ignores an amount in another currency
        return [0] * len(left)
    whole = sum(left)
    off = min(int(coupon["amount_off"]), whole)
    parts, given, before = [], 0, 0
    for amount in left:
        before += amount
        upto = off * before // whole if whole else 0
        parts.append(upto - given)
        given = upto
    return parts


def _view(call: Call, discount: Document) -> Document:
    return public(discount) | {"source": {"coupon": shown_coupon(call, discount["_coupon"]), "type": "coupon"}}


VIEWS["discount"] = _view
