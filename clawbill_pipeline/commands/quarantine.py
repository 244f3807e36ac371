"""`clawbill quarantine`: lines that could not be read as usage, and another try once they are mended."""

from __future__ import annotations

from pathlib import Path

import click

from clawbill_pipeline.commands.shared import catalog_of, now_of, opened, state_option, table, who
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.usage.quarantine import entries, entry
from clawbill_pipeline.usage.replay import replay as replay_entries


@click.group()
def quarantine() -> None:
    """Lines that were set aside, with file, place and reason."""


@quarantine.command("list")
@state_option
@click.option("--source", help="Only of this source.")
@click.option("--tenant", help="Only of this tenant, where the line still tells it.")
@click.option("--reason", help="Only for this reason.")
@click.option("--all", "settled", is_flag=True, help="Also what has been landed since.")
@click.option("--limit", default=100, show_default=True)
def list_(
    state: Path | None, source: str | None, tenant: str | None, reason: str | None, settled: bool, limit: int
) -> None:
    """What is in quarantine, oldest first."""
    with opened(state) as (_, ledger):
        found = entries(ledger, source=source, tenant_id=tenant, reason=reason, settled=settled, limit=limit)
    rows = [(e.id, e.source, e.uri, e.place, e.reason, e.field, e.tenant_id) for e in found]
    click.echo(table(("id", "source", "file", "place", "reason", "field", "tenant"), rows))


@quarantine.command()
@state_option
@click.argument("number", type=int)
def show(state: Path | None, number: int) -> None:
    """One line: what is wrong with it, how to mend it, and its text, secrets masked."""
    with opened(state) as (_, ledger):
        try:
            found = entry(ledger, number)
        except LookupError as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"{found.source}/{found.uri}, {found.place}")
    click.echo(f"{found.reason}, field {found.field or '-'}: {found.detail}")
    click.echo(found.raw)


@quarantine.command()
@state_option
@click.argument("numbers", type=int, nargs=-1, required=True)
def replay(state: Path | None, numbers: tuple[int, ...]) -> None:
    """Read lines again where they stand, by today's catalogue; what is usage now is landed, and metered by Dagster."""
    with opened(state) as (settings, ledger):
        try:
            done = replay_entries(
                catalog_of(settings), Lake(settings.lake_root), ledger, numbers, now=now_of(settings), run_id=who()
            )
        except LookupError as error:
            raise click.ClickException(str(error)) from None
    for each in done:
        click.echo(f"{each.id}: {'landed' if each.landed else 'still in quarantine'}. {each.said}")
    raise SystemExit(0 if all(each.landed for each in done) else 1)
