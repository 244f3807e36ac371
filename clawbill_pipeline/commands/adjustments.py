"""`clawbill adjustments`: a person's word on usage that came after its invoice was final, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import now_of, opened, state_option, stripe_of, table, who
from clawbill_pipeline.invoicing import adjusting
from clawbill_pipeline.ledger.adjustment_log import PROPOSED, Standing, read_standings
from clawbill_pipeline.money import MoneyError, plain

#: What a person has nothing to do about.
_OVER = ("nothing", "replaced", "rejected", "done", "undone")


@click.group()
def adjustments() -> None:
    """What final invoices bill too little or too much: proposed, approved, undone."""


@adjustments.command("list")
@state_option
@click.option("--tenant", help="Only this tenant.")
@click.option("--all", "every", is_flag=True, help="Also those that are done, rejected, undone or replaced.")
def list_(state: Path | None, tenant: str | None, every: bool) -> None:
    """Adjustments that wait for a person or for Stripe, and how they came to be."""
    with opened(state) as (_, ledger), ledger.transaction() as connection:
        known = read_standings(connection, tenant_id=tenant)
    shown = [each for each in known if every or each.state not in _OVER]
    if not shown:
        click.echo("No adjustment waits." + ("" if every or not known else " Earlier ones: --all"))
        return
    rows = [
        (
            s.proposal, s.state, s.tenant_id, s.said["invoice_id"], s.said["service"], s.said["period_start"][:16],
            s.said["period_end"][:16], plain(s.units), plain(s.amount), s.said["currency"], s.stripe_id,
        )
        for s in shown
    ]  # fmt: skip
    head = ("id", "state", "tenant", "invoice", "service", "from", "to", "units", "amount", "cur", "at Stripe")
    click.echo(table(head, rows))
    of = {each.subject for each in shown}
    steps = list(_history(each for each in known if each.subject in of))
    click.echo(f"\nHistory\n{table(('at', 'id', 'what', 'amount', 'by', 'why'), steps)}")


def _history(standings: Iterable[Standing]) -> list[tuple[object, ...]]:
    steps = sorted(((step, s) for s in standings for step in s.steps), key=lambda pair: pair[0].id)
    return [
        (
            f"{step.at:%Y-%m-%dT%H:%MZ}", s.proposal, step.kind.removeprefix("adjustment."),
            plain(s.amount) if step.kind == PROPOSED else None, step.detail.get("by"),
            step.detail.get("why") or step.detail.get("error") or step.detail.get("stripe_id"),
        )
        for step, s in steps
    ]  # fmt: skip


@adjustments.command()
@state_option
@click.argument("adjustment", type=int)
@click.option("--why", required=True, help="It goes into the audit trail.")
def approve(state: Path | None, adjustment: int, why: str) -> None:
    """Bill it: an item on the tenant's next invoice, or a credit note on the one that billed too much."""
    _decide(adjusting.approve, state, adjustment, why)


@adjustments.command()
@state_option
@click.argument("adjustment", type=int)
@click.option("--why", required=True, help="It goes into the audit trail.")
def undo(state: Path | None, adjustment: int, why: str) -> None:
    """Take an approved one back, as long as Stripe allows it: the item is pending, the note can be voided."""
    _decide(adjusting.undo, state, adjustment, why)


def _decide(action: Callable[..., adjusting.Adjusted], state: Path | None, adjustment: int, why: str) -> None:
    with opened(state) as (settings, ledger):
        try:
            found = action(ledger, stripe_of(settings), adjustment, why=why, by=who(), now=now_of(settings))
        except (adjusting.NotAdjustable, MoneyError) as error:
            raise click.ClickException(str(error)) from None
    for problem in found.problems:
        click.echo(problem, err=True)
    if found.problems:
        raise SystemExit(1)
    standing = found.standing
    at_stripe = f", {standing.stripe_id} at Stripe" if standing.stripe_id else ""
    click.echo(
        f"Adjustment {adjustment} ({plain(standing.amount)} {standing.said['currency']}): {standing.state}{at_stripe}."
    )
