"""Schedules: the hour after its lag, and a daily reconciliation of every period that is still open."""

from collections.abc import Iterator

import dagster as dg

from clawbill_pipeline.defs.environment import catalog_at_load
from clawbill_pipeline.defs.jobs import hourly_billing, reconciliation
from clawbill_pipeline.defs.partitions import periods

_lag = int(catalog_at_load().calendar.metering_lag.total_seconds() // 60)

hourly = dg.build_schedule_from_partitioned_job(
    hourly_billing,
    name="hourly",
    minute_of_hour=min(_lag, 59),
    description="Bills the hour that ended, once the calendar's metering lag has passed.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


@dg.schedule(
    job=reconciliation, cron_schedule="30 6 * * *", name="daily", default_status=dg.DefaultScheduleStatus.RUNNING
)
def daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """Reconciles the billing periods that started this month and the month before, which may still be open."""
    for period in periods.get_partition_keys(current_time=context.scheduled_execution_time)[-2:]:
        yield dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}-{period}", partition_key=period)


SCHEDULES = [hourly, daily]
