"""Once a reconciliation is done, what it found and can be set right is set right."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.correcting import planned, prove
from clawbill_pipeline.defs.corrective_delivery import corrective_delivery
from clawbill_pipeline.defs.jobs import reconciliation
from clawbill_pipeline.ledger import Ledger


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[reconciliation],
    request_job=corrective_delivery,
    name="after_reconciliation",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def after_reconciliation(
    context: dg.RunStatusSensorContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.RunRequest | dg.SkipReason:
    """Notes which corrections are proved by it; asks for one run where more may be corrected without a person."""
    proved = prove(ledger, now=clock())
    if all(action.verdict == "waits" for action in planned(ledger, catalog)):
        return dg.SkipReason(f"No break can be corrected without a person; {proved} corrections are proved.")
    return dg.RunRequest(run_key=context.dagster_run.run_id)
