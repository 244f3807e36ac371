"""Differences between used, metered, rated, sent, held, invoiced and paid, by name. Rules are in reconciliation/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.stripe_invoices import stripe_invoices
from clawbill_pipeline.defs.assets.stripe_usage_summaries import stripe_usage_summaries
from clawbill_pipeline.defs.partitions import periods
from clawbill_pipeline.defs.presentation import FINANCE, check, materialized, specs, table
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.reconciliation.compare import reconcile


@dg.asset(
    partitions_def=periods,
    deps=[stripe_usage_summaries, stripe_invoices],
    group_name="reconciliation",
    kinds={"duckdb", "postgres"},
    owners=[FINANCE],
    check_specs=specs(
        "usage_reconciliation",
        check("no_unexplained_break", "Every difference between two steps has a cause that a rule found."),
        check("no_open_break", "Nothing differs between raw usage, metered, rated, sent, held, invoiced and paid."),
    ),
    metadata=table(tables.breaks),
)
def usage_reconciliation(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    lake: dg.ResourceParam[Lake],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """The waterfall of the billing periods that start in a month, and its breaks, each with amount, place and cause."""
    now = clock()
    return materialized(
        *(
            reconcile(ledger, catalog, lake, period=key, now=now, run_id=context.run.run_id)
            for key in reversed(catalog.period_keys(context.partition_key, now))
        )
    )
