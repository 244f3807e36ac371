"""Watches for corrections that a person approved in the finance pages, and has them made."""

import dagster as dg

from clawbill_pipeline.correcting import newest_approval
from clawbill_pipeline.defs.corrective_delivery import corrective_delivery
from clawbill_pipeline.ledger import Ledger


@dg.sensor(
    job=corrective_delivery,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    name="approved_corrections",
)
def approved_corrections(
    context: dg.SensorEvaluationContext, ledger: dg.ResourceParam[Ledger]
) -> dg.SensorResult | dg.SkipReason:
    """One run for all that was approved since the last; one that fails is made up for after the next reconciliation."""
    newest = newest_approval(ledger)
    if newest <= int(context.cursor or 0):
        return dg.SkipReason("Nobody approved a correction since.")
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=str(newest))], cursor=str(newest))
