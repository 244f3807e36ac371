"""Lines of an invoice: made of usage, and of invoice items. When they are made is in ``invoicing``."""

from __future__ import annotations

from dataclasses import dataclass

from clawbill_pipeline.money import plain
from clawbill_pipeline.sandbox.stripe.core import Call, Document
from clawbill_pipeline.sandbox.stripe.pricing import priced_lines
from clawbill_pipeline.sandbox.stripe.store import scrambled
from clawbill_pipeline.sandbox.stripe.usage import usage_total
from clawbill_pipeline.sandbox.stripe.usage_records import records_total


@dataclass(frozen=True, slots=True)
class Segment:
    """Usage to bill: what the subscription item ``item`` used by ``price`` in ``[start, end)``."""

    item: str
    price: str
    start: int
    end: int


def usage_lines(call: Call, invoice: Document, index: int, segment: Segment) -> list[Document]:
    """The lines of the invoice's segment number ``index``: one, or one a tier."""
    price = call.find("price", segment.price)
    subscription = call.find("subscription", invoice["_parent"])
    product = call.store.get(call.account, "product", price["product"])
    meter = price["recurring"]["meter"]
    if meter is None:
        quantity = records_total(call, segment.item, segment.start, segment.end)
    else:
        customer = invoice["customer"]
        quantity = usage_total(call, call.find("meter", meter), customer, segment.start, segment.end)
    lines = []
    for number, line in enumerate(priced_lines(price, quantity)):
        note = f" ({line.note})" if line.note else ""
        details = {
            "invoice_item": None,
            "proration": False,
            "proration_details": {"credited_items": None},
            "subscription": subscription["id"],
            "subscription_item": segment.item,
        }
        lines.append(
            {
                **_line(call, invoice, f"{index}.{number}", line.amount, line.quantity),
                "description": f"{line.quantity} × {product['name'] if product else price['product']}{note}",
                "discountable": True,
                "metadata": subscription["metadata"],
                "parent": {
                    "invoice_item_details": None,
                    "subscription_item_details": details,
                    "type": "subscription_item_details",
                },
                "period": {"end": segment.end, "start": segment.start},
                "pricing": {
                    "price_details": {"price": price["id"], "product": price["product"]},
                    "type": "price_details",
                    "unit_amount_decimal": plain(line.unit_amount_decimal),
                },
                "subscription": subscription["id"],
            }
        )
    return lines


def item_line(call: Call, invoice: Document, item: Document) -> Document:
    """The line of an invoice item."""
    subscription = item["parent"]["subscription_details"]["subscription"] if item["parent"] else None
    details = {
        "invoice_item": item["id"],
        "proration": False,
        "proration_details": {"credited_items": None},
        "subscription": subscription,
    }
    return {
        **_line(call, invoice, item["id"], item["amount"], item["quantity"]),
        "description": item["description"],
        "discountable": item["discountable"],
        "metadata": item["metadata"],
        "parent": {
            "invoice_item_details": details,
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "period": item["period"],
        "pricing": item["pricing"],
        "subscription": subscription,
    }


def _line(call: Call, invoice: Document, part: str, amount: int, quantity: int) -> Document:
    return {
        # The same line keeps its id when the draft is counted again.
        "id": f"il_{scrambled(call.account, invoice['id'], part)}",
        "object": "line_item",
        "amount": amount,
        "currency": invoice["currency"],
        "discount_amounts": [],
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "pretax_credit_amounts": [],
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "subtotal": amount,
        "taxes": [],
        "_parent": invoice["id"],
    }
