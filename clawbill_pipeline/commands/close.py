"""`clawbill close`: how far each open billing period is, and a person's word on a draft invoice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import catalog_of, now_of, opened, state_option, stripe_of, table, who
from clawbill_pipeline.invoicing import close as closing


@click.group()
def close() -> None:
    """The period close: drafts compared with the ledger, held or released."""


@close.command()
@state_option
@click.option("--tenant", help="Only this tenant.")
def status(state: Path | None, tenant: str | None) -> None:
    """Every open period: hours metered, delivered, confirmed by Stripe, draft compared, decision."""
    with opened(state) as (settings, ledger):
        periods = closing.close_status(ledger, catalog_of(settings), now=now_of(settings), tenant_id=tenant)
    head = ("tenant", "from", "to", "metered", "delivered", "confirmed", "draft", "compared", "decision", "by")
    rows = [
        (
            p.tenant_id, f"{p.start:%Y-%m-%dT%H:%MZ}", f"{p.end:%Y-%m-%dT%H:%MZ}", f"{p.metered}/{p.hours} h",
            "yes" if p.delivered else "no", "yes" if p.confirmed else "no", p.invoice_id, p.compared, p.decision, p.by,
        )
        for p in periods
    ]  # fmt: skip
    click.echo(table(head, rows) if rows else "No tenant is at Stripe yet; run: clawbill provision")


@close.command()
@state_option
@click.argument("invoice")
@click.option("--why", required=True, help="It goes into the audit trail.")
def hold(state: Path | None, invoice: str, why: str) -> None:
    """Keep a draft from going out until it is released."""
    _decide(closing.hold, state, invoice, why)


@close.command()
@state_option
@click.argument("invoice")
@click.option("--why", required=True, help="It goes into the audit trail.")
def release(state: Path | None, invoice: str, why: str) -> None:
    """Let a draft go out, whatever the comparison says."""
    _decide(closing.release, state, invoice, why)


def _decide(action: Callable[..., tuple[str, ...]], state: Path | None, invoice: str, why: str) -> None:
    with opened(state) as (settings, ledger):
        try:
            refused = action(ledger, stripe_of(settings), invoice, why=why, by=who(), now=now_of(settings))
        except closing.NotADraft as error:
            raise click.ClickException(str(error)) from None
    for problem in refused:
        click.echo(problem, err=True)
    if refused:
        raise SystemExit(1)
    click.echo(f"{invoice}: done.")
