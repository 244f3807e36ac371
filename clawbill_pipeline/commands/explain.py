"""`clawbill explain`: what an invoice line is made of, down to the usage events with file and offset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import catalog_of, opened, state_option, table
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.money import plain
from clawbill_pipeline.reconciliation.lineage import Lineage, UnknownLine
from clawbill_pipeline.reconciliation.lineage import explain as lineage_of


@click.command()
@state_option
@click.argument("invoice_line")
@click.option("--limit", default=20, show_default=True, help="How many events to show.")
@click.option("--json", "as_json", is_flag=True)
def explain(state: Path | None, invoice_line: str, limit: int, as_json: bool) -> None:
    """Re-derive an invoice line (il_…) from its usage events, and say if one was altered since."""
    with opened(state) as (settings, ledger):
        lake = Lake(settings.lake_root, settings.memory_limit)
        try:
            found = lineage_of(ledger, lake, catalog_of(settings), invoice_line, limit=limit, every_byte=True)
        except UnknownLine as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2, default=str))
    else:
        _print(found)
    raise SystemExit(0 if all(check.passed for check in found.checks) else 1)


def _print(found: Lineage) -> None:
    line = found.line
    derived = "known to Stripe alone" if found.derived_amount is None else plain(found.derived_amount)
    click.echo(f"{line.line_id} of invoice {line.number or line.invoice_id} ({line.status})")
    click.echo(
        f"  {line.tenant_id}, {line.service}, {line.period.start:%Y-%m-%dT%H:%MZ} to {line.period.end:%Y-%m-%dT%H:%MZ}"
    )
    click.echo(f"  on the invoice  {plain(line.amount)} {line.currency}")
    click.echo(f"  rated, exact    {plain(found.rated_amount)} {line.currency}")
    for tenant_id, amount in found.parts.items() if len(found.parts) > 1 else ():
        click.echo(f"    of it         {plain(amount)} {line.currency} used by {tenant_id}")
    click.echo(f"  derived again   {derived} {line.currency}")
    for check in found.checks:
        click.echo(f"  {'ok  ' if check.passed else 'FAIL'}  {check.description}")
    click.echo(f"{found.event_count} usage events in {len(found.windows)} windows; the first {len(found.events)}:")
    rows = [
        (
            f"{event.event_time:%Y-%m-%dT%H:%M:%SZ}", event.event_id, plain(event.quantity), event.dimensions,
            f"{event.source}/{event.uri}:{event.line}", event.byte_offset, "" if event.counted else "duplicate",
        )
        for event in found.events
    ]  # fmt: skip
    click.echo(table(("time", "event", "quantity", "dimensions", "file and line", "offset", ""), rows))
