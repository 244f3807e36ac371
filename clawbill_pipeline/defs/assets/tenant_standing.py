"""How each tenant stands with its payments, and the report of it to OpenClaw. The state machine is in invoicing/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.stripe_invoices import stripe_invoices
from clawbill_pipeline.defs.presentation import FINANCE, check, materialized, specs, table
from clawbill_pipeline.invoicing.dunning import advance_standing
from clawbill_pipeline.invoicing.standing import report_standing
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.openclaw import OpenClaw


@dg.asset(
    deps=[stripe_invoices],
    group_name="invoicing",
    kinds={"openclaw", "postgres"},
    owners=[FINANCE],
    check_specs=specs("tenant_standing", check("standing_reported", "OpenClaw knows how every tenant stands.")),
    metadata=table(tables.tenant_standing),
)
def tenant_standing(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    openclaw: dg.ResourceParam[OpenClaw],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Standing by tenant with its whole history: moved by Stripe's events, and by the catalogue's days of dunning.

    Changes that OpenClaw hasn't heard of are told to it.
    """
    now = clock()
    advanced = advance_standing(ledger, catalog.dunning, now=now)
    return materialized(advanced, report_standing(ledger, openclaw, now=now, run_id=context.run.run_id))
