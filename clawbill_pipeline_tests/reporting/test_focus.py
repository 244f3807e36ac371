"""The FOCUS export: the specification's columns, costs that add up to what is rated, no cell that runs."""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal

import pytest

from clawbill_pipeline.ledger.waterfall import waterfall
from clawbill_pipeline.reporting.focus import focus_csv, focus_unit
from clawbill_pipeline_tests.reconciliation.month import PERIOD, Month

# FOCUS 1.2's columns: id → feature level, whether null is allowed, and data type, as its tables say (FOCUS_Spec, tag
# v1.2, specification/columns). M is mandatory, C conditional, R recommended.
COLUMNS = {
    name: (level, nulls == "null", kind)
    for name, level, nulls, kind in (
        line.split()
        for line in """
        AvailabilityZone R null String
        BilledCost M - Decimal
        BillingAccountId M - String
        BillingAccountName M null String
        BillingAccountType C - String
        BillingCurrency M - String
        BillingPeriodEnd M - DateTime
        BillingPeriodStart M - DateTime
        CapacityReservationId C null String
        CapacityReservationStatus C null String
        ChargeCategory M - String
        ChargeClass M null String
        ChargeDescription M null String
        ChargeFrequency R - String
        ChargePeriodEnd M - DateTime
        ChargePeriodStart M - DateTime
        CommitmentDiscountCategory C null String
        CommitmentDiscountId C null String
        CommitmentDiscountName C null String
        CommitmentDiscountQuantity C null Decimal
        CommitmentDiscountStatus C null String
        CommitmentDiscountType C null String
        CommitmentDiscountUnit C null String
        ConsumedQuantity C null Decimal
        ConsumedUnit C null String
        ContractedCost M - Decimal
        ContractedUnitPrice C null Decimal
        EffectiveCost M - Decimal
        InvoiceId R null String
        InvoiceIssuerName M - String
        ListCost M - Decimal
        ListUnitPrice C null Decimal
        PricingCategory C null String
        PricingCurrency C null String
        PricingCurrencyContractedUnitPrice C null Decimal
        PricingCurrencyEffectiveCost C null Decimal
        PricingCurrencyListUnitPrice C null Decimal
        PricingQuantity M null Decimal
        PricingUnit M null String
        ProviderName M - String
        PublisherName M - String
        RegionId C null String
        RegionName C null String
        ResourceId C null String
        ResourceName C null String
        ResourceType C null String
        ServiceCategory M - String
        ServiceName M - String
        ServiceSubcategory R - String
        SkuId C null String
        SkuMeter C null String
        SkuPriceDetails C null JSON
        SkuPriceId C null String
        SubAccountId C null String
        SubAccountName C null String
        SubAccountType C null String
        Tags C null JSON
        """.strip().splitlines()
    )
}
#: What must not be null for usage although its column may be, and the values that are allowed in a column.
OF_USAGE = {"ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "SkuId", "SkuPriceId", "SkuMeter"}
ALLOWED = {
    "ChargeCategory": {"Usage"},
    "ChargeClass": {""},
    "ChargeFrequency": {"Usage-Based"},
    "ServiceCategory": {"Other"},
    "ServiceSubcategory": {"Other (Other)"},
    "ConsumedUnit": {"Tokens", "Requests"},
    "PricingUnit": {"Tokens", "Requests"},
}
FORMAT = {
    "Decimal": re.compile(r"-?\d+(\.\d+)?", re.ASCII),
    "DateTime": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII),
    "String": re.compile(r"\S(.*\S)?", re.ASCII),
    "JSON": re.compile(r"\{.*\}"),
}


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


def test_the_columns_are_the_specifications(month: Month) -> None:
    assert len(COLUMNS) == 57
    found = rows(month)
    names = list(found[0])
    assert {name for name, (level, *_) in COLUMNS.items() if level == "M"} <= set(names)
    assert set(names) <= set(COLUMNS), "a column of our own would begin with x_"
    assert len(names) == len(set(names))
    for row in found:
        for name, value in row.items():
            _, may_be_null, kind = COLUMNS[name]
            assert value or (may_be_null and name not in OF_USAGE), name
            assert not value or FORMAT[kind].fullmatch(value), (name, value)
            assert value in ALLOWED.get(name, {value}), (name, value)
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert re.fullmatch("[A-Z]{3}", row["BillingCurrency"])


@pytest.mark.parametrize(
    ("unit", "shown"),
    [
        ("token", "Tokens"), ("GB-hour", "GB-Hours"), ("request", "Requests"), ("GB", "GB"), ("query", "Queries"),
        ("1000 tokens", "1000 Tokens"), ("1000 token", "1000 Tokens"), ("Day", "Days"), ("request/day", "Requests/Day"),
        ("GPU-second", "GPU-Seconds"), ("MiB", "MiB"), ("key", "Keys"),
    ],
)  # fmt: skip
def test_units_are_written_as_the_specification_has_them(unit: str, shown: str) -> None:
    assert focus_unit(unit) == shown


def test_a_row_says_where_it_belongs(month: Month) -> None:
    found = rows(month)
    tokyo = next(r for r in found if r["BillingAccountId"] == "osaka")
    assert (tokyo["BillingPeriodStart"], tokyo["BillingPeriodEnd"]) == ("2026-09-30T15:00:00Z", "2026-10-31T15:00:00Z")
    assert (tokyo["ChargePeriodStart"], tokyo["ChargePeriodEnd"]) == ("2026-10-01T00:00:00Z", "2026-10-01T01:00:00Z")
    assert (tokyo["ChargeCategory"], tokyo["InvoiceId"], tokyo["PricingUnit"]) == ("Usage", "in_osaka", "Tokens")
    assert (tokyo["BilledCost"], tokyo["SkuPriceId"]) == ("66.6", "v1")


def test_names_that_a_spreadsheet_would_run_are_made_harmless(month: Month) -> None:
    month.catalog = month.catalog.model_copy(
        update={"tenants": {t: of.model_copy(update={"name": "@SUM(1)"}) for t, of in month.catalog.tenants.items()}}
    )
    assert {r["BillingAccountName"] for r in rows(month)} == {"'@SUM(1)"}
