"""Tax on an invoice's lines: of what a line comes to after discounts and credits, rounded once a line and rate.

An exclusive rate comes on top, an inclusive one is part of the amount. A line has its own rates or the invoice's.
"""

from __future__ import annotations

from decimal import Decimal

from clawbill_pipeline.sandbox.stripe.core import Call, Document
from clawbill_pipeline.sandbox.stripe.pricing import minor_amount


def apply_taxes(call: Call, invoice: Document, lines: list[Document]) -> None:
    """Writes ``taxes`` of the lines and ``total_taxes`` of the invoice."""
    totals: dict[str, Document] = {}
    for line in lines:
        rates = [call.find("tax_rate", each) for each in line["_tax_rates"] or invoice["default_tax_rates"]]
        line["taxes"] = [_tax(line, rate, rates) for rate in rates]
        for tax in line["taxes"]:
            same = totals.setdefault(tax["tax_rate_details"]["tax_rate"], {**tax, "amount": 0, "taxable_amount": 0})
            same["amount"] += tax["amount"]
            same["taxable_amount"] += tax["taxable_amount"]
    invoice["total_taxes"] = list(totals.values())


def _tax(line: Document, rate: Document, rates: list[Document]) -> Document:
    net = Decimal(line["amount"] - sum(credit["amount"] for credit in line["pretax_credit_amounts"]))
    percent = Decimal(str(rate["percentage"]))
    within = sum((Decimal(str(each["percentage"])) for each in rates if each["inclusive"]), Decimal(0))
    taxable = net * 100 / (100 + within)
    return {
        "amount": minor_amount(taxable * percent / 100, line["currency"]),
        "tax_behavior": "inclusive" if rate["inclusive"] else "exclusive",
        "tax_rate_details": {"tax_rate": rate["id"]},
        "taxability_reason": "not_available",
        "taxable_amount": minor_amount(taxable, line["currency"]),
        "type": "tax_rate_details",
    }


def tax_of(taxes: list[Document], behaviour: str) -> int:
    """The sum of the taxes that are ``inclusive`` or ``exclusive``."""
    return sum(tax["amount"] for tax in taxes if tax["tax_behavior"] == behaviour)
