"""Rated usage as FOCUS 1.2 (focus.finops.org): one row a rated window, streamed as CSV straight from the ledger.

A row's cost is OpenClaw's exact amount: the invoice's rounding is on no row. What the contract with OpenClaw does not
tell (a list price beside the contracted one) is the amount itself, as FOCUS asks of a provider without discounts; unit
prices are not there, for it tells amounts. All that the specification makes mandatory is.
"""

# ruff: noqa: S608 -- queries are put together from constants; every value is a parameter

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.costs import UnitCost
from clawbill_pipeline.ledger.database import copy_out
from clawbill_pipeline.ledger.waterfall import Scope, scope_of
from clawbill_pipeline.reporting.margin import COSTS, cost_of, cost_parameters


def _text(expression: str) -> str:
    """SQL for a text cell that no spreadsheet runs (see ``harmless``)."""
    return f"CASE WHEN {expression} ~ E'^[=+@\\t\\r\\n-]' THEN '''' || {expression} ELSE {expression} END"


def _instant(expression: str) -> str:
    return f"to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"


_UNIT = _text("coalesce(u.unit, 'Units')")
_COST = "trim_scale(amount)"
_SKU = _text("service || CASE WHEN dimensions = '' THEN '' ELSE ':' || dimensions END")

#: FOCUS column → SQL over a rated window ``r``, its tenant's period ``p``, its service ``u`` and its invoice ``i``.
COLUMNS = {
    "BilledCost": _COST,
    "BillingAccountId": _text("tenant_id"),
    "BillingAccountName": _text("n.name"),
    "BillingCurrency": "currency",
    "BillingPeriodEnd": _instant("p.ends"),
    "BillingPeriodStart": _instant("p.starts"),
    "ChargeCategory": "'Usage'",
    # FOCUS keeps Correction for charges that mend an earlier, invoiced period; a window is always of its own.
    "ChargeClass": "NULL",
    "ChargeDescription": _text("service || ', ' || coalesce(u.unit, 'Units')"),
    "ChargeFrequency": "'Usage-Based'",
    "ChargePeriodEnd": _instant("least(hour + interval '1 hour', p.ends)"),
    "ChargePeriodStart": _instant("window_start"),
    "ConsumedQuantity": "trim_scale(quantity)",
    "ConsumedUnit": _UNIT,
    "ContractedCost": _COST,
    "EffectiveCost": _COST,
    "InvoiceId": "i.invoice_id",
    "InvoiceIssuerName": ":product",
    "ListCost": _COST,
    "PricingQuantity": "trim_scale(quantity)",
    "PricingUnit": _UNIT,
    "ProviderName": ":product",
    "PublisherName": ":product",
    "ServiceCategory": "'Other'",
    "ServiceName": _text("service"),
    "ServiceSubcategory": "'Other (Other)'",
    "SkuId": _SKU,
    "SkuMeter": _text("service"),
    "SkuPriceDetails": "NULL",
    "SkuPriceId": _text("rate_card_version"),
    "SubAccountId": "NULL",
}
_UNIT_COST, _PER = "coalesce(own.unit_cost, common.unit_cost)", "coalesce(own.per, common.per)"
#: Columns of our own, which FOCUS marks by x_, where a provider's cost is known: to 12 places, half away from zero.
COST_COLUMNS = {
    "x_ProviderCost": f"trim_scale(sign(quantity) * div(abs(quantity) * {_UNIT_COST} * 2000000000000 + {_PER},"
    f" 2 * {_PER}) * 0.000000000001)",
    "x_ProviderCostCurrency": "coalesce(own.cost_currency, common.cost_currency)",
}

_QUERY = f"""
WITH {Scope.PERIODS}, {COSTS},
names AS (SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:names AS text[])) AS n (tenant_id, name)),
units AS (SELECT * FROM unnest(CAST(:services AS text[]), CAST(:units AS text[])) AS u (service, unit)),
current AS (
  SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) x.*
  {Scope.rows("rated_usage")}
  ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC),
invoiced AS (
  SELECT coalesce(c.tenant_id, l.tenant_id) AS tenant_id, service, period_start, min(l.invoice_id) AS invoice_id
  FROM invoice_lines l JOIN invoices i USING (invoice_id, tenant_id)
  LEFT JOIN stripe_customers c ON coalesce(c.payer_id, c.tenant_id) = l.tenant_id
  WHERE status IN ('open', 'paid', 'uncollectible') GROUP BY 1, 2, 3)
SELECT {{columns}}
FROM current r JOIN billing_periods p USING (tenant_id) JOIN names n USING (tenant_id) LEFT JOIN units u USING (service)
LEFT JOIN invoiced i USING (tenant_id, service, period_start) {cost_of("r")}
ORDER BY hour, tenant_id, service, dimensions, window_start
"""


#: Abbreviations of data sizes are singular and plural, and not words (FOCUS 1.2, Unit Format).
_DATA_SIZE = re.compile(r"[KMGTPE]?i?[bB]")


def focus_unit(unit: str) -> str:
    """A unit as FOCUS writes it: capitals, and the last word of each part in the plural. GB-hour → GB-Hours."""

    def word(text: str, *, plural: bool) -> str:
        if _DATA_SIZE.fullmatch(text) or not text[:1].isalpha():
            return text
        named = text[0].upper() + text[1:]
        if not plural or named.endswith("s"):
            return named
        return f"{named[:-1]}ies" if named.endswith("y") and named[-2:-1] not in tuple("aeiou") else f"{named}s"

    plurals, slash, singular = unit.strip().partition("/")
    words = re.split(r"([ -])", plurals)
    shown = [word(text, plural=at == len(words) - 1) for at, text in enumerate(words)]
    return "".join(shown) + (f"{slash}{word(singular.strip(), plural=False)}" if slash else "")


def focus_csv(connection: Connection, catalog: Catalog, period: str, costs: Sequence[UnitCost] = ()) -> Iterator[bytes]:
    """The CSV of ``period`` (``YYYY-MM``) in parts, with a header; with ``costs``, these are in columns of our own."""
    parameters: dict[str, Any] = {
        **scope_of(catalog, period).parameters,
        "names": [tenant.name or tenant_id for tenant_id, tenant in catalog.tenants.items()],
        "services": list(catalog.services),
        "units": [focus_unit(service.unit) for service in catalog.services.values()],
        "product": catalog.product,
        **cost_parameters(costs),
    }
    columns = {**COLUMNS, **COST_COLUMNS} if costs else COLUMNS
    selected = ", ".join(f'{expression} AS "{name}"' for name, expression in columns.items())
    return copy_out(connection, _QUERY.format(columns=selected), parameters, header=True)
