"""Stripe's events as they were signed: landed by the web app's webhook, and by a sweep for what it missed."""

from datetime import timedelta

import dagster as dg

from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.presentation import DATA, check, materialized, specs, table
from clawbill_pipeline.invoicing.sweep import sweep_events
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.stripe_api import StripeApi


class Reach(dg.Config):
    """How far back the sweep looks; Stripe lists 30 days at most."""

    days: int = 1


@dg.asset(
    group_name="invoicing",
    kinds={"stripe", "postgres"},
    owners=[DATA],
    check_specs=specs("stripe_event_inbox", check("no_event_missed", "Stripe lists no event that is not here.")),
    metadata=table(tables.stripe_events),
)
def stripe_event_inbox(
    context: dg.AssetExecutionContext,
    config: Reach,
    ledger: dg.ResourceParam[Ledger],
    stripe: dg.ResourceParam[StripeApi],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Every event of Stripe's once, in the order of landing, body and headers as they came.

    The web app's `/stripe/webhook` writes it all day; a run of this asset lists Stripe's events and lands those that
    never arrived.
    """
    now = clock()
    result = sweep_events(ledger, stripe, since=now - timedelta(days=config.days), now=now)
    return materialized(result, rows=result.landed)
