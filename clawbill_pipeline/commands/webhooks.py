"""`clawbill webhooks`: what a webhook outage lost is brought back, what could not be applied is tried again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import catalog_of, now_of, opened, state_option, stripe_of, table, who
from clawbill_pipeline.invoicing.inbox import apply_failed_again, failed_events
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


@webhooks.command()
@state_option
def failed(state: Path | None) -> None:
    """Events that could not be applied, with the reason of each."""
    with opened(state) as (_, ledger):
        found = failed_events(ledger)
    rows = [(e.event_id, e.type, e.object_id, f"{e.handled_at:%Y-%m-%dT%H:%MZ}", e.reason) for e in found]
    click.echo(table(("event", "type", "object", "failed", "reason"), rows) if rows else "No event has failed.")


@webhooks.command()
@state_option
def retry(state: Path | None) -> None:
    """Try every event that failed once more, after what it failed on was mended."""
    with opened(state) as (settings, ledger):
        again = apply_failed_again(
            ledger, catalog_of(settings), stripe_of(settings), now=now_of(settings), run_id=f"retry by {who()}"
        )
    done = again.applied + again.older + again.unhandled
    click.echo(f"{done} events applied, {again.failed} failed again, {again.waiting} wait for Stripe.")
    for problem in again.problems:
        click.echo(problem, err=True)
    if again.problems:
        raise SystemExit(1)
