"""What Stripe says it holds, read back. How reading is rationed is in reconciliation/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.stripe_usage_records import stripe_usage_records
from clawbill_pipeline.defs.partitions import periods
from clawbill_pipeline.defs.presentation import DATA, check, materialized, specs, table
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.reconciliation.summaries import read_summaries
from clawbill_pipeline.stripe_api import StripeApi


@dg.asset(
    partitions_def=periods,
    deps=[dg.AssetDep(stripe_usage_records, partition_mapping=dg.TimeWindowPartitionMapping())],
    group_name="reconciliation",
    kinds={"stripe", "postgres"},
    owners=[DATA],
    check_specs=specs(
        "stripe_usage_summaries",
        check("every_meter_read", "Stripe answered for every customer and meter."),
        check("held_is_what_was_sent", "Stripe's totals, and the hours that were looked at, are what it acknowledged."),
    ),
    metadata=table(tables.usage_summaries),
)
def stripe_usage_summaries(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Stripe's own totals a customer and meter for a month's billing periods; hours where they differ, and in turn."""
    now = clock()
    return materialized(
        *(
            read_summaries(ledger, catalog, stripe, period=key, now=now, run_id=context.run.run_id)
            for key in reversed(catalog.period_keys(context.partition_key, now))
        )
    )
