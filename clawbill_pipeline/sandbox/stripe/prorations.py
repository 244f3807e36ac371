"""Prorations: what a change within a period gives back of licensed items, and charges for the rest of it.

By the second, over the period's real length: a change at the middle of February moves half of February's price
(docs.stripe.com/billing/subscriptions/prorations). Metered usage is never prorated: it is billed as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from clawbill_pipeline.money import plain
from clawbill_pipeline.sandbox.stripe.core import Call, Document, public
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.events import emit
from clawbill_pipeline.sandbox.stripe.pricing import minor_amount, priced_lines

BEHAVIOURS = ("create_prorations", "always_invoice", "none")


@dataclass(frozen=True, slots=True)
class Licence:
    """A licensed item as it is billed in advance: so many of a price."""

    item: str
    price: str
    quantity: int
    tax_rates: tuple[str, ...] = ()


def licence_of(call: Call, item: Document) -> Licence | None:
    """None for a metered item."""
    if call.find("price", item["price"])["recurring"]["usage_type"] == "metered":
        return None
    return Licence(item["id"], item["price"], item["quantity"], tuple(item["tax_rates"]))


def moment(call: Call, subscription: Document, params: Document) -> int:
    """From when on the change counts: ``proration_date``, or now. Raises ApiError (400) for one outside the period."""
    at = params.get("proration_date", call.now)
    start, end = subscription["_period"]
    if not start <= at < end:
        raise invalid("`proration_date` must be within the subscription's current period.", "proration_date")
    return int(at)


def prorate(call: Call, subscription: Document, before: list[Licence], after: list[Licence], at: int) -> list[Document]:
    """Waiting invoice items for the rest of the period: a credit for each licence that went, a charge for each new one.

    The same licence before and after is untouched.
    """
    start, end = subscription["_period"]
    if subscription["status"] == "trialing" or at >= end:
        return []
    items = []
    for licences, others, sign in ((before, after, -1), (after, before, 1)):
        for licence in licences:
            if licence not in others:
                items.append(_item(call, subscription, licence, (at, end), end - start, sign))
    return items


def _item(
    call: Call, subscription: Document, licence: Licence, span: tuple[int, int], length: int, sign: int
) -> Document:
    price = call.find("price", licence.price)
    whole = Decimal(sum(line.amount for line in priced_lines(price, licence.quantity)))
    amount = sign * minor_amount(whole * (span[1] - span[0]) / length, price["currency"])
    words = "Unused time on" if sign < 0 else "Remaining time on"
    product = call.store.get(call.account, "product", price["product"])
    item: Document = {
        "id": call.new_id("ii"),
        "object": "invoiceitem",
        "amount": amount,
        "currency": price["currency"],
        "created": call.now,
        "customer": subscription["customer"],
        "date": call.now,
        "description": f"{words} {licence.quantity} × {product['name'] if product else price['product']}",
        "discountable": False,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "net_amount": amount,
        "parent": {
            "subscription_details": {"subscription": subscription["id"], "subscription_item": licence.item},
            "type": "subscription_details",
        },
        "period": {"end": span[1], "start": span[0]},
        "pricing": {
            "price_details": {"price": price["id"], "product": price["product"]},
            "type": "price_details",
            "unit_amount_decimal": plain(Decimal(amount) / licence.quantity if licence.quantity else Decimal(amount)),
        },
        "proration": True,
        "proration_details": {"discount_amounts": []},
        "quantity": licence.quantity,
        "quantity_decimal": str(licence.quantity),
        "tax_rates": list(licence.tax_rates),
        "test_clock": None,
        "_parent": None,
    }
    call.put("invoiceitem", item)
    emit(call, "invoiceitem.created", "invoiceitem", public(item))
    return item
