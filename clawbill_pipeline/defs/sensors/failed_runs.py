"""Tells the owners of a run's assets that it failed, once Dagster has given up trying it again."""

import os

import dagster as dg
from dagster._core.storage.tags import WILL_RETRY_TAG

from clawbill_pipeline.alerts.matters import Matter
from clawbill_pipeline.alerts.routes import parse_routes
from clawbill_pipeline.alerts.telling import tell_of_run
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.presentation import DATA
from clawbill_pipeline.defs.sensors.alerts import owners_of
from clawbill_pipeline.ledger import Ledger, LedgerError
from clawbill_pipeline.settings import Settings

#: Of what owns no asset, such as the run of a job that makes none.
NO_ASSET = "run"


def failure(context: dg.RunFailureSensorContext) -> Matter:
    """The failed run as a matter of the assets whose steps failed, else of all that it was to make."""
    run = context.dagster_run
    # An asset's step is called like its key, whose parts are joined by two underscores.
    steps = [event.step_key for event in context.get_step_failure_events() if event.step_key]
    failed = [step.rpartition("__")[2] for step in steps]
    planned = sorted(key.path[-1] for key in run.asset_selection or ())
    partition = run.tags.get("dagster/partition") or "…".join(
        run.tags[tag] for tag in ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
        if tag in run.tags
    )  # fmt: skip
    what = f"{run.job_name} {partition}".strip()
    where = f" in {', '.join(failed)}" if failed else ""
    # The error itself stays in Dagster: it may quote a customer's data, and a message leaves the house.
    summary = f"run {run.run_id} of {what} failed{where}; clawbill bills what it left undone with the next run"
    return Matter("run", run.run_id, f"run of {what} failed", tuple(failed or planned) or (NO_ASSET,), summary)


@dg.run_failure_sensor(name="failed_runs", default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=30)
def failed_runs(
    context: dg.RunFailureSensorContext,
    settings: dg.ResourceParam[Settings],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.SkipReason | None:
    """One message a failed run; one that Dagster tries again is told of only if the last try fails."""
    if settings.alerts is None:
        return dg.SkipReason("CLAWBILL_ALERTS is not set: nobody is told.")
    if context.dagster_run.tags.get(WILL_RETRY_TAG) == "true":
        return dg.SkipReason("Dagster tries this run again.")
    routes = parse_routes(settings.alerts.get_secret_value())
    repository = context.repository_def
    owners = {**(owners_of(repository) if repository else {}), NO_ASSET: frozenset({DATA})}
    dagster = os.environ.get("CLAWBILL_DAGSTER_URL")
    link = f"{dagster}/runs/{context.dagster_run.run_id}" if dagster else None
    told = None
    try:
        told = tell_of_run(ledger, routes, owners, failure(context), now=clock(), link=link)
    except LedgerError as error:
        context.log.warning(f"Not everybody was told, and the ledger could not note it: {error}")
    for problem in told.problems if told else ():
        context.log.warning(problem)
    return None
