"""Draft invoices, compared with the ledger before they go out: released, or held. How is in invoicing/close.

What their tenants used last is brought to Stripe first (last_hours), in the same run: one run a tick is enough.
"""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.stripe_invoices import stripe_invoices
from clawbill_pipeline.defs.presentation import FINANCE, check, columns, materialized, specs
from clawbill_pipeline.invoicing.close import close_drafts, close_status
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.last_hours import bill_last_hours
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.stripe_api import StripeApi

#: Tenants whose open periods a run shows; `clawbill close status` shows all.
MOST_TENANTS = 50


@dg.asset(
    deps=[stripe_invoices],
    group_name="invoicing",
    kinds={"stripe", "postgres"},
    owners=[FINANCE],
    check_specs=specs(
        "invoice_drafts",
        check("drafts_agree_with_ledger", "Every draft invoice bills what the ledger has, service by service."),
        check("close_decisions_done", "Stripe did what was decided."),
    ),
    metadata=columns(
        at="timestamptz: When it was decided",
        kind="text: close.compared, close.hold, close.release or close.done",
        tenant_id="text: Whose invoice it is",
        subject="text: Stripe invoice",
        detail="jsonb: What differed, who decided and why",
    ),
)
def invoice_drafts(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    lake: dg.ResourceParam[Lake],
    ledger: dg.ResourceParam[Ledger],
    openclaw: dg.ResourceParam[OpenClaw],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Each draft's lines against the ledger. One that agrees goes out; one that differs is held at Stripe, with its
    cause as an open break, until it agrees or a person decides.

    Before a draft is compared, the hours of its period that nobody has counted are metered, rated and delivered, for
    its tenant alone. Every decision is in the audit trail before Stripe is asked.
    """
    hours = bill_last_hours(ledger, catalog, lake, openclaw, stripe, now=clock, run_id=context.run.run_id)
    for hindrance in hours.hindrances:
        context.log.warning(hindrance)
    closed = close_drafts(ledger, catalog, stripe, catalog.closing, now=clock(), run_id=context.run.run_id)
    tenants = sorted({each.tenant_id for each in closed.comparisons})[:MOST_TENANTS]
    periods = [period for tenant in tenants for period in close_status(ledger, catalog, now=clock(), tenant_id=tenant)]
    return materialized(hours, closed, open_periods=periods)
