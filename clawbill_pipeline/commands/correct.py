"""`clawbill correct`: what is done about open breaks, by itself or when a person approves."""

from __future__ import annotations

from pathlib import Path

import click

from clawbill_pipeline.commands.shared import (
    catalog_of,
    now_of,
    openclaw_of,
    opened,
    state_option,
    stripe_of,
    table,
    who,
)
from clawbill_pipeline.correcting import Action, NotCorrectable, planned, standing
from clawbill_pipeline.correcting import correct as correct_breaks
from clawbill_pipeline.lake import Lake


@click.command()
@state_option
@click.option("--plan", "only_plan", is_flag=True, help="Only show what would be done: the default.")
@click.option("--apply", "do_it", is_flag=True, help="Do it.")
@click.option("--approve", "approved", metavar="BREAK", type=int, multiple=True, help="Allow what is above the limit.")
@click.option("--period", help="Only breaks of this billing period, YYYY-MM.")
def correct(state: Path | None, only_plan: bool, do_it: bool, approved: tuple[int, ...], period: str | None) -> None:
    """Correct open breaks that have a safe remedy: send again, do an hour again, propose an adjustment.

    What comes to less than the catalogue's limit (correcting.automatic_below) is done with --apply; the rest wants
    --approve BREAK, once for each. The next reconciliation proves each break gone. Exit code 1 if something failed.
    """
    if only_plan and do_it:
        raise click.UsageError("say either --plan or --apply")
    with opened(state) as (settings, ledger):
        try:
            if not do_it:
                _show(planned(ledger, catalog_of(settings), approved, period))
                corrected = standing(ledger)
                if corrected:
                    gone = sum(is_gone for _, is_gone in corrected)
                    click.echo(f"Corrected earlier: {gone} gone, {len(corrected) - gone} not yet proved.")
                return
            done = correct_breaks(
                ledger, catalog_of(settings), Lake(settings.lake_root, settings.memory_limit),
                lambda: openclaw_of(settings), lambda: stripe_of(settings),
                now=lambda: now_of(settings), run_id="clawbill correct", by=who(),
                approved=approved, period=period,
            )  # fmt: skip
        except NotCorrectable as error:
            raise click.ClickException(str(error)) from None
    _show([*done.done, *done.waiting])
    for problem in done.problems:
        click.echo(problem, err=True)
    if done.done:
        click.echo("Run the reconciliation to see the breaks gone.")
    if done.problems:
        raise SystemExit(1)


def _show(actions: list[Action]) -> None:
    if not actions:
        click.echo("No open break has a safe remedy.")
        return
    rows = [
        (a.verdict, a.remedy, a.place, a.amounts, ", ".join(sorted({each.cause for each in a.breaks})), _ids(a), a.why)
        for a in actions
    ]
    click.echo(table(("verdict", "remedy", "where", "amount", "causes", "breaks", "why"), rows))


def _ids(action: Action) -> str:
    ids = [str(each.id) for each in action.breaks]
    return " ".join(ids[:10]) + (f" … ({len(ids)})" if len(ids) > 10 else "")
