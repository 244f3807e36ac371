"""Schedules: the hour after its lag, drafts and missed events in between, and every open period once a day."""

from collections.abc import Iterator

import dagster as dg

from clawbill_pipeline.defs.environment import catalog_at_load
from clawbill_pipeline.defs.jobs import day_report, hourly_billing, open_matters, reconciliation, stripe_sweep
from clawbill_pipeline.defs.partitions import hours, periods
from clawbill_pipeline.defs.shards import runs_of_hour

_lag = int(catalog_at_load().calendar.metering_lag.total_seconds() // 60)


@dg.schedule(
    job=hourly_billing, cron_schedule=f"{min(_lag, 59)} * * * *", name="hourly",
    description="Bills the hour that ended, once the calendar's metering lag has passed: one run, or one a shard.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)  # fmt: skip
def hourly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """The run key names the hour, so that a tick that is evaluated twice asks for nothing new."""
    with dg.partition_loading_context(effective_dt=context.scheduled_execution_time):
        key = hours.get_last_partition_key()
    if key is None:
        yield dg.SkipReason("The first hour of the catalogue is not over yet.")
    else:
        yield from runs_of_hour(catalog_at_load(), key, key)


@dg.schedule(
    job=reconciliation, cron_schedule="30 6 * * *", name="daily", default_status=dg.DefaultScheduleStatus.RUNNING
)
def daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """Reconciles the billing periods that started this month and the month before, and longer ones until they end."""
    now = context.scheduled_execution_time
    keys = periods.get_partition_keys(current_time=now)
    open_months = catalog_at_load().open_months(now)
    for period in [key for key in keys if key in open_months or key in keys[-2:]]:
        yield dg.RunRequest(run_key=f"{now:%Y-%m-%d}-{period}", partition_key=period)


open_matters_again = dg.ScheduleDefinition(
    name="open_matters",
    job=open_matters,
    cron_schedule="*/10 * * * *",
    description="A draft has an hour at least before Stripe finalises it: ten minutes are soon enough.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
sweep = dg.ScheduleDefinition(
    name="sweep",
    job=stripe_sweep,
    cron_schedule="40 * * * *",
    description="Looks a day back for events that the webhook missed.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

report_of_the_day = dg.build_schedule_from_partitioned_job(
    day_report,
    name="day_report",
    hour_of_day=7,
    minute_of_hour=30,
    description="The report of the day before, once the reconciliation of 06:30 is through.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

SCHEDULES = [hourly, daily, open_matters_again, sweep, report_of_the_day]
