"""`clawbill tokens`: who may post usage to the web app. A token is shown once, when it is made."""

from __future__ import annotations

from pathlib import Path

import click

from clawbill_pipeline.commands.shared import catalog_of, now_of, opened, state_option, table, who
from clawbill_pipeline.usage.tokens import TokenError, add_token, all_tokens, revoke_token


@click.group()
def tokens() -> None:
    """Tokens for POST /usage, each for some tenants or services; see docs/ingest.md."""


@tokens.command()
@state_option
@click.argument("name")
@click.option("--tenant", "tenants", multiple=True, help="Good for this tenant; may be given several times.")
@click.option("--service", "services", multiple=True, help="Good for this service; may be given several times.")
@click.option("--unlimited", is_flag=True, help="Good for every tenant and service.")
def add(state: Path | None, name: str, tenants: tuple[str, ...], services: tuple[str, ...], unlimited: bool) -> None:
    """Make a token and print it, this once."""
    if unlimited == bool(tenants or services):
        raise click.UsageError("say what it is good for: --tenant, --service, both, or --unlimited")
    with opened(state) as (settings, ledger):
        catalog = catalog_of(settings)
        for kind, given, known in (("tenant", tenants, catalog.tenants), ("service", services, catalog.services)):
            if unknown := sorted(set(given) - set(known)):
                raise click.ClickException(f"the catalogue has no {kind} {', '.join(unknown)}; add it there first")
        try:
            token = add_token(
                ledger, name, tenants=tenants or None, services=services or None, now=now_of(settings), by=who()
            )
        except TokenError as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"Added {name}. Its token, which is shown nowhere else:", err=True)
    click.echo(token)


@tokens.command("list")
@state_option
def list_tokens(state: Path | None) -> None:
    """Who may post what."""
    with opened(state) as (_, ledger):
        found = all_tokens(ledger)
    rows = [
        (
            token.name,
            ", ".join(sorted(token.tenants or ())) or "all",
            ", ".join(sorted(token.services or ())) or "all",
            f"{token.made_at:%Y-%m-%dT%H:%MZ}",
            token.revoked_at and f"{token.revoked_at:%Y-%m-%dT%H:%MZ}",
        )
        for token in found
    ]
    click.echo(table(("name", "tenants", "services", "made", "revoked"), rows))


@tokens.command()
@state_option
@click.argument("name")
def revoke(state: Path | None, name: str) -> None:
    """Take a token out of use. Running web apps notice within ten seconds."""
    with opened(state) as (settings, ledger):
        try:
            revoke_token(ledger, name, now=now_of(settings), by=who())
        except TokenError as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"Revoked {name}.")
