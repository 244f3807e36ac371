"""Usage that came after its invoice was final, as proposed adjustments. How it is found is in invoicing/adjustments,
what is done about it in invoicing/adjusting."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.stripe_invoices import stripe_invoices
from clawbill_pipeline.defs.presentation import FINANCE, check, columns, materialized, specs
from clawbill_pipeline.invoicing.adjusting import finish
from clawbill_pipeline.invoicing.adjustments import propose_adjustments
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.stripe_api import StripeApi


@dg.asset(
    deps=[stripe_invoices],
    group_name="invoicing",
    kinds={"postgres"},
    owners=[FINANCE],
    check_specs=specs(
        "invoice_adjustments",
        check("no_usage_after_its_invoice", "No usage came after the invoice that should have billed it."),
        check("adjustment_decisions_done", "Stripe did what was decided on adjustments."),
    ),
    metadata=columns(
        invoice_id="text: The final invoice",
        tenant_id="text: Whose invoice it is",
        service="text: What was used",
        period_start="timestamptz: The period that the usage belongs to",
        amount="numeric: What the invoice bills too little, or too much, in major units",
    ),
)
def invoice_adjustments(
    context: dg.AssetExecutionContext,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Stripe bills such usage on no invoice: each proposal carries its original period and waits for a person.

    Decisions whose call to Stripe was lost are gone on with; none is made here.
    """
    finished = finish(ledger, stripe, now=clock())
    result = propose_adjustments(ledger, catalog, now=clock(), run_id=context.run.run_id)
    return materialized(result, finished, rows=len(result.adjustments))
