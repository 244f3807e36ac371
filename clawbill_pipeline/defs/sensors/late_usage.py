"""Watches for hours that were metered and have been touched by a landing since: they are metered again."""

from collections.abc import Iterator

import dagster as dg

from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.jobs import late_billing
from clawbill_pipeline.defs.partitions import hours_before
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import late_hours


@dg.sensor(
    job=late_billing, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING, name="late_usage"
)
def late_usage(
    context: dg.SensorEvaluationContext, ledger: dg.ResourceParam[Ledger], clock: dg.ResourceParam[Clock]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run an hour that late usage touched; a further landing for the same hour is a further run."""
    late = late_hours(ledger, before=clock(), limit=50)
    if not late:
        yield dg.SkipReason("No metered hour has been touched by a landing since.")
    for hour, landings in late:
        key = hours_before(hour)
        yield dg.RunRequest(run_key=f"{key}-{landings}", partition_key=key)
