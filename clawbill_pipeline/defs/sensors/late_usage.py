"""Watches for hours with landings that were never counted: late usage, and hours that no schedule ran for."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.jobs import late_billing
from clawbill_pipeline.defs.partitions import hours_before
from clawbill_pipeline.defs.shards import runs_of_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import late_hours

#: Hours a tick: after a long time down they are caught up with in small steps.
A_TICK = 50
#: An hour that is still late after so long is asked for again: what its run failed of, a full disk say, may be mended.
AGAIN = timedelta(hours=6)


@dg.sensor(
    job=late_billing, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING, name="late_usage"
)
def late_usage(
    context: dg.SensorEvaluationContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run, or one a shard, an hour that late usage touched or that no schedule ran for.

    It is asked for anew with each landing, and every six hours as long as the hour is late.
    """
    now = clock()
    # The schedule has its turn first: an hour counts as missed two hours after it should have run.
    missed = now - catalog.calendar.metering_lag - timedelta(hours=3)
    late = late_hours(ledger, before=now, missed_before=missed, limit=A_TICK)
    if not late:
        yield dg.SkipReason("Every hour that logs have landed for is metered with all of them.")
    for hour, landings in late:
        key = hours_before(hour)
        yield from runs_of_hour(catalog, key, f"{key}-{landings}-{now.timestamp() // AGAIN.total_seconds():.0f}")
