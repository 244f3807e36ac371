"""Lines of an invoice: made of usage, of licences paid in advance, and of invoice items. When is in ``invoicing``."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from clawbill_pipeline.money import plain
from clawbill_pipeline.sandbox.stripe.core import Call, Document
from clawbill_pipeline.sandbox.stripe.pricing import minor_amount, priced_lines
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


@dataclass(frozen=True, slots=True)
class Advance:
    """A licence to bill for ``[start, end)``, which is that part of a period of ``length`` seconds."""

    item: str
    price: str
    quantity: int
    tax_rates: tuple[str, ...]
    start: int
    end: int
    length: int


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
    item = call.store.get(call.account, "subscription_item", segment.item)
    lines = []
    for number, line in enumerate(priced_lines(price, quantity)):
        note = f" ({line.note})" if line.note else ""
        lines.append(
            {
                **_line(call, invoice, f"{index}.{number}", line.amount, line.quantity),
                "description": f"{line.quantity} × {product['name'] if product else price['product']}{note}",
                "discountable": True,
                "metadata": subscription["metadata"],
                "parent": _of_item(subscription, segment.item),
                "period": {"end": segment.end, "start": segment.start},
                "pricing": _pricing(price, line.unit_amount_decimal),
                "subscription": subscription["id"],
                "_tax_rates": item["tax_rates"] if item else [],
            }
        )
    return lines


def advance_lines(call: Call, invoice: Document, index: int, advance: Advance) -> list[Document]:
    """The lines of a licence, for the part of the period that it is billed for."""
    price = call.find("price", advance.price)
    subscription = call.find("subscription", invoice["_parent"])
    product = call.store.get(call.account, "product", price["product"])
    is_part = advance.end - advance.start < advance.length
    lines = []
    for number, line in enumerate(priced_lines(price, advance.quantity)):
        exact = Decimal(line.amount) * (advance.end - advance.start) / advance.length
        amount = minor_amount(exact, price["currency"])
        lines.append(
            {
                **_line(call, invoice, f"a{index}.{number}", amount, line.quantity),
                "description": f"{line.quantity} × {product['name'] if product else price['product']}",
                "discountable": True,
                "metadata": subscription["metadata"],
                "parent": _of_item(subscription, advance.item, proration=is_part),
                "period": {"end": advance.end, "start": advance.start},
                "pricing": _pricing(price, line.unit_amount_decimal),
                "subscription": subscription["id"],
                "_tax_rates": list(advance.tax_rates),
            }
        )
    return lines


def _of_item(subscription: Document, item: str, *, proration: bool = False) -> Document:
    details = {
        "invoice_item": None,
        "proration": proration,
        "proration_details": {"credited_items": None},
        "subscription": subscription["id"],
        "subscription_item": item,
    }
    return {"invoice_item_details": None, "subscription_item_details": details, "type": "subscription_item_details"}


def _pricing(price: Document, unit: Decimal) -> Document:
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": plain(unit),
    }


def item_line(call: Call, invoice: Document, item: Document) -> Document:
    """The line of an invoice item."""
    subscription = item["parent"]["subscription_details"]["subscription"] if item["parent"] else None
    details = {
        "invoice_item": item["id"],
        "proration": item["proration"],
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
        "_tax_rates": item["tax_rates"],
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
