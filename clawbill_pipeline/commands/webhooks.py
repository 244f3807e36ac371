"""`clawbill webhooks`: what a webhook outage lost, brought back from Stripe's list of events."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import now_of, opened, state_option, stripe_of
from clawbill_pipeline.invoicing.sweep import sweep_events


@click.group()
def webhooks() -> None:
    """Stripe's webhooks."""


@webhooks.command()
@state_option
@click.option("--since", required=True, type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]), help="UTC.")
def backfill(state: Path | None, since: datetime) -> None:
    """Land the events since then that are missing; Stripe lists 30 days at most."""
    with opened(state) as (settings, ledger):
        swept = sweep_events(ledger, stripe_of(settings), since=since.replace(tzinfo=UTC), now=now_of(settings))
    click.echo(
        f"{swept.listed} events at Stripe since {swept.since:%Y-%m-%dT%H:%MZ}, {swept.landed} were missing here."
    )
    for problem in swept.problems:
        click.echo(problem, err=True)
    if swept.problems:
        raise SystemExit(1)
