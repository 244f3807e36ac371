"""The quantity each tenant used of each service in an hour. The counting itself is in metering/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.usage_events import usage_events
from clawbill_pipeline.defs.partitions import hours, hours_of
from clawbill_pipeline.defs.presentation import DATA, check, materialized, specs, table
from clawbill_pipeline.defs.shards import shard_of
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.metering import meter
from clawbill_pipeline.metering.unused import meter_unused
from clawbill_pipeline.metering.volumes import watch_volumes


@dg.asset(
    partitions_def=hours,
    deps=[usage_events],
    group_name="usage",
    kinds={"duckdb", "postgres"},
    owners=[DATA],
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=specs(
        "metered_usage",
        check("conservation", "Accepted events minus duplicates are what was metered, exactly.", blocking=True),
        check("volumes_usual", "No tenant used far less or far more of a service than it usually does at that time."),
    ),
    metadata=table(tables.metered_usage),
)
def metered_usage(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    lake: dg.ResourceParam[Lake],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """One row a tenant, service, dimension set and hour; a change of an hour already metered is a new revision.

    A run with the tag `clawbill/shard` has its tenants alone; the hour is metered once no shard is awaited.
    """
    shard, run_id = shard_of(context), context.run.run_id
    result = meter(ledger, lake, catalog, **hours_of(context), now=clock(), run_id=run_id, shard=shard)
    closing = meter_unused(ledger, catalog, **hours_of(context), now=clock(), run_id=run_id, shard=shard)
    watched = watch_volumes(ledger, catalog, **hours_of(context), now=clock())
    return materialized(result, watched, rows=result.rows, closed_hours=len(closing))
