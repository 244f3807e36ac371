"""Usage on Stripe: the outbox of usage records and what Stripe said to each. Planning and sending is in delivery/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.rated_usage import rated_usage
from clawbill_pipeline.defs.assets.stripe_setup import stripe_setup
from clawbill_pipeline.defs.partitions import hours, hours_of
from clawbill_pipeline.defs.presentation import DATA, check, materialized, specs, table
from clawbill_pipeline.defs.shards import shard_of
from clawbill_pipeline.delivery.operations import counts
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.stripe_api import StripeApi


@dg.asset(
    partitions_def=hours,
    deps=[rated_usage, stripe_setup],
    group_name="stripe",
    kinds={"stripe", "postgres"},
    owners=[DATA],
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=specs(
        "stripe_usage_records",
        check("rated_usage_is_mapped", "Every rated window has a Stripe customer and item in its currency."),
        check("outbox_is_delivered", "Every record that was due is at Stripe."),
    ),
    metadata=table(tables.usage_records),
)
def stripe_usage_records(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """One usage record a Stripe customer, meter and hour; a correction is a new revision under a new identifier.

    The intent is committed before the call, every retry carries the same identifier, and what an earlier run left
    undelivered is sent as well. ``outbox`` shows records by state: all that are open, and these hours' delivered ones.
    """
    window = hours_of(context)
    billed = window["start"], window["end"]
    shard, run_id = shard_of(context), context.run.run_id
    planned = plan(ledger, catalog, hours=billed, now=clock(), run_id=run_id, shard=shard)
    delivered = deliver(ledger, catalog, stripe, now=clock, run_id=run_id, shard=shard)
    return materialized(planned, delivered, rows=planned.records, outbox=counts(ledger, billed))
