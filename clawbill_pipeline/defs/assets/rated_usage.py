"""What metered usage costs, as OpenClaw says. Asking, booking and what may go wrong is in rating/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.metered_usage import metered_usage
from clawbill_pipeline.defs.partitions import hours, hours_of
from clawbill_pipeline.defs.presentation import DATA, FINANCE, check, materialized, specs, table
from clawbill_pipeline.defs.shards import shard_of
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate


@dg.asset(
    partitions_def=hours,
    deps=[metered_usage],
    group_name="rating",
    kinds={"openclaw", "postgres"},
    owners=[DATA, FINANCE],
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=specs(
        "rated_usage",
        check("everything_rated", "Every metered quantity of a tenant in the catalogue has an amount."),
        check("everybody_mapped", "Every tenant that used something is in the catalogue."),
    ),
    metadata=table(tables.rated_usage),
)
def rated_usage(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    openclaw: dg.ResourceParam[OpenClaw],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """The exact, unrounded amount of each metered row, with OpenClaw's whole answer beside it.

    A row that OpenClaw can't rate now stays due and is in `rating_failures`; everybody else is billed.
    """
    shard, run_id = shard_of(context), context.run.run_id
    result = rate(ledger, catalog, openclaw, **hours_of(context), now=clock(), run_id=run_id, shard=shard)
    return materialized(result, rows=result.booked)
