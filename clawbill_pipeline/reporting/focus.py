"""Rated usage as FOCUS 1.2 (focus.finops.org): one row a rated window, streamed as CSV straight from the ledger.

A row's cost is OpenClaw's exact amount: the invoice's rounding is on no row. What the contract with OpenClaw does not
tell (a list price beside the contracted one) is the amount itself, as FOCUS asks of a provider without discounts.
"""

# ruff: noqa: S608 -- queries are put together from constants; every value is a parameter

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger.waterfall import Scope, scope_of


def _text(expression: str) -> str:
    """SQL for a text cell that no spreadsheet runs (see ``harmless``)."""
    return f"CASE WHEN {expression} ~ E'^[=+@\\t\\r\\n-]' THEN '''' || {expression} ELSE {expression} END"


def _instant(expression: str) -> str:
    return f"to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"


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
    "ChargeDescription": _text("service || ', ' || coalesce(u.unit, 'unit')"),
    "ChargeFrequency": "'Usage-Based'",
    "ChargePeriodEnd": _instant("least(hour + interval '1 hour', p.ends)"),
    "ChargePeriodStart": _instant("window_start"),
    "ConsumedQuantity": "trim_scale(quantity)",
    "ConsumedUnit": _text("coalesce(u.unit, 'unit')"),
    "ContractedCost": _COST,
    "EffectiveCost": _COST,
    "InvoiceId": "i.invoice_id",
    "InvoiceIssuerName": ":product",
    "ListCost": _COST,
    "PricingQuantity": "trim_scale(quantity)",
    "PricingUnit": _text("coalesce(u.unit, 'unit')"),
    "ProviderName": ":product",
    "PublisherName": ":product",
    "ServiceCategory": "'Other'",
    "ServiceName": _text("service"),
    "SkuId": _SKU,
    "SkuPriceId": _text("rate_card_version"),
    "SubAccountId": "NULL",
}

_QUERY = f"""
WITH {Scope.PERIODS},
names AS (SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:names AS text[])) AS n (tenant_id, name)),
units AS (SELECT * FROM unnest(CAST(:services AS text[]), CAST(:units AS text[])) AS u (service, unit)),
current AS (
  SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) x.*
  {Scope.rows("rated_usage")}
  ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC),
invoiced AS (
  SELECT tenant_id, service, period_start, min(l.invoice_id) AS invoice_id
  FROM invoice_lines l JOIN invoices USING (invoice_id, tenant_id)
  WHERE status IN ('open', 'paid', 'uncollectible') GROUP BY 1, 2, 3)
SELECT {", ".join(f'{expression} AS "{name}"' for name, expression in COLUMNS.items())}
FROM current r JOIN billing_periods p USING (tenant_id) JOIN names n USING (tenant_id) LEFT JOIN units u USING (service)
LEFT JOIN invoiced i USING (tenant_id, service, period_start)
ORDER BY hour, tenant_id, service, dimensions, window_start
"""


def focus_csv(connection: Connection, catalog: Catalog, period: str) -> Iterator[bytes]:
    """The CSV of ``period`` (``YYYY-MM``) in parts, with a header."""
    parameters: dict[str, Any] = {
        **scope_of(catalog, period).parameters,
        "names": [tenant.name or tenant_id for tenant_id, tenant in catalog.tenants.items()],
        "services": list(catalog.services),
        "units": [service.unit for service in catalog.services.values()],
        "product": catalog.product,
    }
    query = str(text(_QUERY).compile(dialect=connection.dialect))
    raw: Any = connection.connection.dbapi_connection
    with raw.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT WITH (FORMAT csv, HEADER)", parameters) as copy:
        for part in copy:
            yield bytes(part)
