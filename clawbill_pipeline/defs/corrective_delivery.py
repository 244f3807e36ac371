"""The job ``corrective_delivery``: what is done about open breaks. What is safe, and who may, is in correcting."""

import dagster as dg
from pydantic import Field

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.correcting import Action, correct
from clawbill_pipeline.defs.presentation import FINANCE
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.stripe_api import StripeApi

#: Rows of a table in the UI; `clawbill correct` shows all.
MOST_ROWS = 200


class Correction(dg.Config):
    """What a person allows beyond the catalogue's limit."""

    approve: list[int] = Field([], description="Numbers of breaks whose correction is approved.")
    by: str = Field("corrective_delivery", description="Who approves; it goes into the audit trail.")
    period: str | None = Field(None, description="Only breaks of this billing period, YYYY-MM.")


@dg.op
def correct_breaks(
    context: dg.OpExecutionContext,
    config: Correction,
    catalog: dg.ResourceParam[Catalog],
    lake: dg.ResourceParam[Lake],
    ledger: dg.ResourceParam[Ledger],
    openclaw: dg.ResourceParam[OpenClaw],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> None:
    """Sends again, does hours again and proposes adjustments, below the limit or where a person approved."""
    found = correct(
        ledger, catalog, lake, lambda: openclaw, lambda: stripe, now=clock, run_id=context.run.run_id, by=config.by,
        approved=config.approve, period=config.period,
    )  # fmt: skip
    for problem in found.problems:
        context.log.error(problem)
    context.add_output_metadata(
        {
            "done": _table(found.done),
            "waiting_for_a_person": _table(found.waiting),
            "proved_gone": found.proved,
            "problems": len(found.problems),
        }
    )
    if found.problems:
        raise dg.Failure(
            f"{len(found.problems)} corrections failed; the first: {found.problems[0]}", allow_retries=False
        )


def _table(actions: tuple[Action, ...]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name) for name in ("remedy", "where", "amount", "breaks", "why")]
    records = [
        dg.TableRecord(
            {
                "remedy": action.remedy,
                "where": action.place,
                "amount": action.amounts,
                "breaks": ", ".join(str(each.id) for each in action.breaks[:20]),
                "why": action.why,
            }
        )
        for action in actions[:MOST_ROWS]
    ]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


@dg.job(
    executor_def=dg.in_process_executor,
    description="Sets right the open breaks that have a safe remedy; what comes to more than the limit waits.",
    tags={"owner": FINANCE},
)
def corrective_delivery() -> None:
    correct_breaks()
