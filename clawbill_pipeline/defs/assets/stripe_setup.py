"""The Stripe side of the catalogue: product, meters, prices, customers, subscriptions. The calls are in delivery/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.presentation import DATA, check, materialized, specs, table
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.stripe_api import StripeApi


@dg.asset(
    group_name="stripe",
    kinds={"stripe", "postgres"},
    owners=[DATA],
    check_specs=specs(
        "stripe_setup",
        check("stripe_matches_catalogue", "Everything that the catalogue names is at Stripe."),
        check(
            "stripe_follows_the_calendar", "Billing periods start at the same moment at Stripe and in the catalogue."
        ),
    ),
    metadata=table(tables.stripe_items),
)
def stripe_setup(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Makes Stripe match the catalogue and keeps who is who in the ledger. Never deletes."""
    return materialized(provision(ledger, catalog, stripe, now=clock(), run_id=context.run.run_id))
