"""`clawbill alerts`: who is told of what, and whether a message gets through."""

from __future__ import annotations

from pathlib import Path

import click

from clawbill_pipeline.alerts.composing import Message
from clawbill_pipeline.alerts.routes import Route, parse_routes
from clawbill_pipeline.alerts.sending import send
from clawbill_pipeline.commands.shared import settings_for, state_option, table
from clawbill_pipeline.settings import SettingsError


@click.group()
def alerts() -> None:
    """Messages to people; addresses are in CLAWBILL_ALERTS."""


@alerts.command("list")
@state_option
def list_(state: Path | None) -> None:
    """The routes by name, owner and amount. Addresses hold secrets and are not shown."""
    rows = [(r.name, r.owner, r.at_least, r.currency) for r in _routes(state)]
    click.echo(table(("route", "owner", "from amount", "currency"), rows))


@alerts.command()
@state_option
@click.option("--route", help="Only the route of this name (clawbill alerts list).")
def test(state: Path | None, route: str | None) -> None:
    """Send one test message to each route. Exit code 1 if one does not get through."""
    chosen = [each for each in _routes(state) if route in (None, each.name)]
    if not chosen:
        raise click.BadParameter(f"there is no route {route!r}; see: clawbill alerts list", param_hint="--route")
    message = Message("clawbill: test", "This is a test message of clawbill alerts test. Nothing is wrong.", good=True)
    problems = [(each, send(each, message)) for each in chosen]
    for each, problem in problems:
        click.echo(problem or f"{each.name}: sent")
    if any(problem for _, problem in problems):
        raise SystemExit(1)


def _routes(state: Path | None) -> tuple[Route, ...]:
    given = settings_for(state).alerts
    routes = parse_routes(given.get_secret_value()) if given else ()
    if not routes:
        raise SettingsError("nobody is told of anything: set CLAWBILL_ALERTS, for example *=mailto://…; docs/alerts.md")
    return routes
