"""Jobs: which assets go together in a run. A run works in one process: an hour for all tenants, never one a tenant."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

#: On every asset of ours: jobs find them by it, under whatever prefix another project has put them.
LINE = "clawbill"


def _ours(*names: str) -> str:
    """The selection of assets of the line by the last part of their keys."""
    return f"tag:{LINE} and (" + " or ".join(f'key:"{name}" or key:"*/{name}"' for name in names) + ")"


#: The line of an hour, from raw logs to Stripe.
hourly_billing = dg.define_asset_job(
    "hourly_billing",
    selection=_ours("usage_events", "metered_usage", "rated_usage", "stripe_usage_records"),
    executor_def=dg.in_process_executor,
    description="Lands, meters, rates and delivers an hour, or a backfill of many, in one run.",
)
#: Only the first station: to see what a source holds before anything is billed.
landing = dg.define_asset_job(
    "landing",
    selection=_ours("usage_events"),
    executor_def=dg.in_process_executor,
    description="Lands what is new in all sources, and nothing else.",
)
#: An hour without reading sources: for hours that late usage has touched.
late_billing = dg.define_asset_job(
    "late_billing",
    selection=_ours("metered_usage", "rated_usage", "stripe_usage_records"),
    executor_def=dg.in_process_executor,
    description="Meters an hour again after late usage landed, and sends what changed.",
)
stripe_events = dg.define_asset_job(
    "stripe_events",
    selection=_ours("stripe_invoices", "invoice_drafts", "tenant_standing"),
    executor_def=dg.in_process_executor,
    description="Handles Stripe events that the webhook landed, and looks at the drafts they brought.",
)
#: What is due by the clock alone: drafts whose usage was still on its way, dunning, statuses to be told again.
open_matters = dg.define_asset_job(
    "open_matters",
    selection=_ours("invoice_drafts", "tenant_standing"),
    executor_def=dg.in_process_executor,
    description="Looks again at drafts and standings that wait for time to pass.",
)
stripe_sweep = dg.define_asset_job(
    "stripe_sweep",
    selection=_ours("stripe_event_inbox"),
    executor_def=dg.in_process_executor,
    description="Lands the events that the webhook missed.",
)
reconciliation = dg.define_asset_job(
    "reconciliation",
    selection=_ours("stripe_usage_summaries", "usage_reconciliation", "diff_report"),
    executor_def=dg.in_process_executor,
    description="Reads Stripe back, compares everything, and renders the reports of a month's billing periods.",
)
day_report = dg.define_asset_job(
    "day_report",
    selection=_ours("daily_diff_report"),
    executor_def=dg.in_process_executor,
    description="Renders the report of a day, as of the newest reconciliation.",
)
stripe_provisioning = dg.define_asset_job(
    "stripe_provisioning",
    selection=_ours("stripe_setup"),
    executor_def=dg.in_process_executor,
    description="Makes Stripe match the catalogue.",
)
JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    landing,
    hourly_billing,
    late_billing,
    stripe_events,
    open_matters,
    stripe_sweep,
    reconciliation,
    day_report,
    stripe_provisioning,
]
