"""The job ``period_rerating``: a billing period rated anew after a correction of prices. The work is in rating/."""

from datetime import timedelta

import dagster as dg
from pydantic import Field

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.presentation import shown
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.rerating import rerate
from clawbill_pipeline.stripe_api import StripeApi

_HOUR = timedelta(hours=1)


class Rerating(dg.Config):
    """What is rated anew, and on whose word: it goes into the audit trail."""

    period: str = Field(description="Month in which the billing periods start, YYYY-MM.")
    why: str = Field(description="What was corrected.")
    by: str = Field(description="Who wants it.")
    tenants: list[str] = Field([], description="Only these; all where empty.")
    services: list[str] = Field([], description="Only these; all where empty.")


@dg.op
def rerate_period(
    context: dg.OpExecutionContext,
    config: Rerating,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    openclaw: dg.ResourceParam[OpenClaw],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> None:
    """Books differences only, each a revision with the reason `rerated`, and sends what changed."""
    found = rerate(
        ledger, catalog, openclaw, period=config.period, why=config.why, by=config.by, now=clock(),
        run_id=context.run.run_id, tenants=config.tenants or None, services=config.services or None,
    )  # fmt: skip
    context.add_output_metadata(
        {
            "asked": found.asked,
            "changed": found.changed,
            "differences": shown(found.differences),
            "hours": len(found.hours),
            "failed": shown(found.failed),
        }
    )
    if found.hours:
        hours = (min(found.hours), max(found.hours) + _HOUR)
        plan(ledger, catalog, hours=hours, now=clock(), run_id=context.run.run_id)
        deliver(ledger, catalog, stripe, now=clock, run_id=context.run.run_id)
    if found.failed:
        raise dg.Failure(f"{len(found.failed)} rows keep their amount; the first: {found.failed[0]}")


@dg.job(executor_def=dg.in_process_executor)
def period_rerating() -> None:
    """Rates a whole billing period anew after a correction of prices, on record, producing differences only."""
    rerate_period()
