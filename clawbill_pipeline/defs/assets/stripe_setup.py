"""The Stripe side of the catalogue: product, meters, prices, customers, subscriptions. The calls are in delivery/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.presentation import DATA, check, materialized, specs, table
from clawbill_pipeline.delivery import provision
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.stripe_api import StripeApi


@dg.asset(
    group_name="stripe",
    kinds={"stripe", "postgres"},
    owners=[DATA],
    check_specs=specs("stripe_setup", check("everybody_provisioned", "Stripe matches the catalogue for every tenant.")),
    metadata=table(tables.stripe_items),
)
def stripe_setup(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Makes Stripe match the catalogue and keeps who is who in the ledger. Never deletes; run again, changes nothing."""
    return materialized(provision(ledger, catalog, stripe, now=clock(), run_id=context.run_id))
