"""`clawbill outbox`: a look at usage records on their way to Stripe, and a hand on them. Nothing is sent from here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from clawbill_pipeline.commands.shared import now_of, opened, state_option, table, who
from clawbill_pipeline.delivery.operations import NotFound, Which, counts, listed
from clawbill_pipeline.delivery.operations import park as park_records
from clawbill_pipeline.delivery.operations import retry as retry_records
from clawbill_pipeline.delivery.operations import show as show_record

F = TypeVar("F", bound=Callable[..., Any])


def which_options(command: F) -> F:
    """Adds the options that say which records are meant."""
    for option in (
        click.argument("identifiers", nargs=-1),
        click.option("--tenant", help="Only this tenant's."),
        click.option("--service", help="Only this service's."),
        click.option("--record-state", help="Only in this state: planned, sending, delivered, rejected, unknown."),
        click.option("--parked", help='Only parked for this reason, or "any".'),
    ):
        command = option(command)
    return command


def _which(
    identifiers: tuple[str, ...], tenant: str | None, service: str | None, record_state: str | None, parked: str | None
) -> Which:
    return Which(identifiers, tenant, service, record_state, parked)


@click.group()
def outbox() -> None:
    """Usage records on their way to Stripe."""


@outbox.command("list")
@state_option
@which_options
@click.option("--limit", default=100, show_default=True)
def list_(state: Path | None, limit: int, **which: Any) -> None:
    """Counts by state, and the records that are meant; without a condition, those not delivered."""
    with opened(state) as (_, ledger):
        by_state = counts(ledger)
        found = listed(ledger, _which(**which), limit)
    head = ("state", "parked", "records", "tenants", "oldest hour")
    click.echo(
        table(head, [(c.state, c.parked, c.records, c.tenants, f"{c.oldest:%Y-%m-%dT%H:%MZ}") for c in by_state])
    )
    if found:
        click.echo()
        rows = [(r.identifier, r.tenant_id, r.service, r.value, r.state, r.parked, r.attempts, r.error) for r in found]
        click.echo(table(("identifier", "tenant", "service", "value", "state", "parked", "attempts", "error"), rows))


@outbox.command()
@state_option
@click.argument("identifier")
def show(state: Path | None, identifier: str) -> None:
    """All that is known of one record, as JSON."""
    with opened(state) as (_, ledger):
        try:
            click.echo(json.dumps(show_record(ledger, identifier), indent=2, default=str))
        except NotFound as error:
            raise click.ClickException(str(error)) from None


@outbox.command()
@state_option
@which_options
def retry(state: Path | None, **which: Any) -> None:
    """Have records tried again by the next delivery, under their identifiers."""
    with opened(state) as (settings, ledger):
        try:
            moved = retry_records(ledger, _which(**which), now=now_of(settings), by=who())
        except NotFound as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"{moved} records will be tried again.")


@outbox.command()
@state_option
@which_options
@click.option("--reason", required=True, help="Why; it is shown with the record.")
def park(state: Path | None, reason: str, **which: Any) -> None:
    """Hold records back until they are retried."""
    with opened(state) as (settings, ledger):
        try:
            moved = park_records(ledger, _which(**which), reason=reason, now=now_of(settings), by=who())
        except (NotFound, ValueError) as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"{moved} records are parked.")
