"""Invoices and their lines, as Stripe's webhooks tell of them. What each event means is in invoicing/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.stripe_event_inbox import stripe_event_inbox
from clawbill_pipeline.defs.assets.stripe_usage_records import stripe_usage_records
from clawbill_pipeline.defs.presentation import FINANCE, check, materialized, specs, table
from clawbill_pipeline.invoicing.inbox import apply_events
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.stripe_api import StripeApi


class Inbox(dg.Config):
    """Which landed events a run handles."""

    through: int | None = None


@dg.asset(
    deps=[stripe_event_inbox, dg.AssetDep(stripe_usage_records, partition_mapping=dg.AllPartitionMapping())],
    group_name="invoicing",
    kinds={"stripe", "postgres"},
    owners=[FINANCE],
    check_specs=specs(
        "stripe_invoices",
        check("events_handled", "Every landed event was applied, or is kept as one that needs no handling."),
        check("invoice_lines_add_up", "The lines of each invoice add up to its subtotal: no page of them is missing."),
        check(
            "stripe_took_everything",
            "Stripe reported no rejected usage, no deactivated meter and no invoice that can't be finalised.",
        ),
    ),
    metadata=table(tables.invoices),
)
def stripe_invoices(
    context: dg.AssetExecutionContext,
    config: Inbox,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Handles all landed Stripe events that were not handled yet, in order of landing, up to the given inbox id.

    The state of an invoice is taken from the newest object, whatever order events come in; each event is handled
    once, and one that fails is recorded with its reason and stops no other.
    """
    result = apply_events(ledger, catalog, stripe, through=config.through, now=clock(), run_id=context.run.run_id)
    return materialized(result)
