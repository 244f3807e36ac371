"""`clawbill retry`: metered usage that has no amount yet, and why; another try, or a decision to leave it."""

from __future__ import annotations

from pathlib import Path

import click

from clawbill_pipeline.catalog import openclaw_service
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.commands.shared import catalog_of, now_of, openclaw_of, opened, state_option, table, who
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.rating.retries import drop as drop_rows
from clawbill_pipeline.rating.retries import run_retries, waiting


@click.group()
def retry() -> None:
    """Usage that OpenClaw has given no amount for."""


@retry.command("list")
@state_option
@click.option("--tenant", help="Only this tenant.")
@click.option("--kind", type=click.Choice(["retry", "refused", "unmapped"]), help="Only rows of this kind.")
@click.option("--limit", default=100, show_default=True)
def list_(state: Path | None, tenant: str | None, kind: str | None, limit: int) -> None:
    """What waits, the longest first: due again, refused by OpenClaw, or of a tenant that nobody knows."""
    with opened(state) as (_, ledger):
        found = waiting(ledger, kind=kind, tenant_id=tenant, limit=limit)
    rows = [
        (
            f"{row.hour:%Y-%m-%dT%H:%MZ}", row.tenant_id, openclaw_service(row.service, row.dimensions), row.kind,
            row.attempts, row.next_attempt_at and f"{row.next_attempt_at:%Y-%m-%dT%H:%MZ}", row.error,
        )
        for row in found
    ]  # fmt: skip
    click.echo(table(("hour", "tenant", "service", "kind", "attempts", "next attempt", "error"), rows))


@retry.command()
@state_option
def run(state: Path | None) -> None:
    """Ask again for what is due now; what gets an amount is planned, and sent by the next run."""
    with opened(state) as (settings, ledger):
        catalog, now, run_id = catalog_of(settings), now_of(settings), who()
        worked = run_retries(ledger, catalog, openclaw_of(settings), now=now, run_id=run_id)
        for hour in worked.hours:
            plan(ledger, catalog, hours=(hour, hour + HOUR), now=now, run_id=run_id)
    click.echo(
        f"{worked.due} were due: {worked.booked} have an amount, {worked.retry} wait on, {worked.refused} refused."
    )
    raise SystemExit(0 if worked.booked == worked.due else 1)


@retry.command()
@state_option
@click.option("--tenant", help="Only this tenant.")
@click.option("--kind", type=click.Choice(["retry", "refused", "unmapped"]), required=True)
@click.option("--why", required=True, help="It goes into the audit trail.")
def drop(state: Path | None, tenant: str | None, kind: str, why: str) -> None:
    """Stop asking for rows; they stay metered, without an amount, and are shown as breaks."""
    with opened(state) as (settings, ledger):
        rows = waiting(ledger, kind=kind, tenant_id=tenant)
        dropped = drop_rows(ledger, rows, why=why, by=who(), now=now_of(settings), run_id=who())
    click.echo(f"{dropped} rows are not asked for any more.")
