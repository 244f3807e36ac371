"""Watches the queue of usage without an amount: an hour with a row whose next attempt has come is rated again."""

from collections.abc import Iterator

import dagster as dg

from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.environment import catalog_at_load
from clawbill_pipeline.defs.jobs import late_billing
from clawbill_pipeline.defs.partitions import hours_before
from clawbill_pipeline.defs.shards import runs_of_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.rating.retries import due_hours

#: Hours a tick: after a long outage of OpenClaw they are worked off in small steps.
A_TICK = 20


@dg.sensor(
    job=late_billing, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING, name="rating_retries"
)
def rating_retries(
    context: dg.SensorEvaluationContext, ledger: dg.ResourceParam[Ledger], clock: dg.ResourceParam[Clock]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run, or one a shard, an hour that is due; what it books is sent by the same run."""
    now = clock()
    due = due_hours(ledger, now=now, limit=A_TICK)
    if not due:
        yield dg.SkipReason("No row waits for another attempt by now.")
    for hour in due:
        key = hours_before(hour)
        # A failed attempt moves the next one on, so that the same minute never asks for the same hour twice.
        yield from runs_of_hour(catalog_at_load(), key, f"{key}-retry-{now:%Y-%m-%dT%H:%M}")
