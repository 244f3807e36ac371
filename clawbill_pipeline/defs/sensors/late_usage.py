"""Watches for hours with landings that were never counted: late usage, and hours that no schedule ran for."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.jobs import late_billing
from clawbill_pipeline.defs.partitions import hours_before
from clawbill_pipeline.defs.shards import runs_of_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import archived
from clawbill_pipeline.metering import late_hours

#: Hours a tick: after a long time down they are caught up with in small steps, and those that stay late, whatever
#: their runs fail of, keep no other hour from its turn.
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

    It is asked for anew with each landing, and every six hours as long as the hour is late. Of an archived month one
    hour is: its run says that the month must be restored first.
    """
    now = clock()
    # The schedule has its turn first: an hour counts as missed two hours after it should have run.
    missed = now - catalog.calendar.metering_lag - timedelta(hours=3)
    after = datetime.fromisoformat(context.cursor) if context.cursor else None
    late = late_hours(ledger, before=now, missed_before=missed, after=after, limit=A_TICK)
    if after and not late:
        late = late_hours(ledger, before=now, missed_before=missed, limit=A_TICK)
    context.update_cursor(late[-1][0].isoformat() if len(late) == A_TICK else "")
    if not late:
        yield dg.SkipReason("Every hour that logs have landed for is metered with all of them.")
        return
    with ledger.transaction() as connection:
        months = {f"{each.month:%Y-%m}" for each in archived(connection)}
    turn = f"{now.timestamp() // AGAIN.total_seconds():.0f}"
    for hour, landings in late:
        key = hours_before(hour)
        # The run of an archived month can but fail and say how to put it back: one of them is enough.
        is_archived = f"{hour:%Y-%m}" in months
        run_key = f"{hour:%Y-%m}-archived-{turn}" if is_archived else f"{key}-{landings}-{turn}"
        yield from runs_of_hour(catalog, key, run_key)
