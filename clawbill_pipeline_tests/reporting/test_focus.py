"""The FOCUS export: the specification's columns, costs that add up to what is rated, no cell that runs."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

from clawbill_pipeline.ledger.waterfall import waterfall
from clawbill_pipeline.reporting.focus import focus_csv
from clawbill_pipeline_tests.reconciliation.month import PERIOD, Month

# What FOCUS 1.2 asks of every provider for usage charges.
NAMED = """
BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodStart BillingPeriodEnd ChargeCategory
ChargeClass ChargeDescription ChargePeriodStart ChargePeriodEnd ContractedCost EffectiveCost InvoiceIssuerName ListCost
PricingQuantity PricingUnit ProviderName PublisherName ServiceCategory ServiceName ConsumedQuantity ConsumedUnit
SubAccountId SkuId
""".split()  # noqa: SIM905


def rows(month: Month) -> list[dict[str, str]]:
    with month.ledger.transaction() as connection:
        content = b"".join(focus_csv(connection, month.catalog, PERIOD)).decode()
    return list(csv.DictReader(io.StringIO(content)))


def test_costs_add_up_to_what_is_rated(month: Month) -> None:
    found = rows(month)
    with month.ledger.transaction() as connection:
        steps = [step for step in waterfall(connection, month.catalog, PERIOD) if step.rated_amount]
    for step in steps:
        of = [r for r in found if (r["BillingAccountId"], r["ServiceName"]) == (step.tenant_id, step.service)]
        assert sum(Decimal(r["BilledCost"]) for r in of) == step.rated_amount
        assert sum(Decimal(r["ConsumedQuantity"]) for r in of) == step.metered_quantity
        assert {r["BillingCurrency"] for r in of} == {step.currency}


def test_a_row_says_where_it_belongs(month: Month) -> None:
    found = rows(month)
    assert set(NAMED) <= set(found[0])
    tokyo = next(r for r in found if r["BillingAccountId"] == "osaka")
    assert (tokyo["BillingPeriodStart"], tokyo["BillingPeriodEnd"]) == ("2026-09-30T15:00:00Z", "2026-10-31T15:00:00Z")
    assert (tokyo["ChargePeriodStart"], tokyo["ChargePeriodEnd"]) == ("2026-10-01T00:00:00Z", "2026-10-01T01:00:00Z")
    assert (tokyo["ChargeCategory"], tokyo["InvoiceId"], tokyo["PricingUnit"]) == ("Usage", "in_osaka", "token")
    assert (tokyo["BilledCost"], tokyo["SkuPriceId"]) == ("66.6", "v1")


def test_names_that_a_spreadsheet_would_run_are_made_harmless(month: Month) -> None:
    month.catalog = month.catalog.model_copy(
        update={"tenants": {t: of.model_copy(update={"name": "@SUM(1)"}) for t, of in month.catalog.tenants.items()}}
    )
    assert {r["BillingAccountName"] for r in rows(month)} == {"'@SUM(1)"}
