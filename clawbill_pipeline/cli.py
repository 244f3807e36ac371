"""The command line: options, exit codes and what is printed. The work is done where it belongs; imports are lazy.

Exit codes: 0 done, 1 something is wrong with the money or a check (see what is printed), 2 wrong usage or set-up.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clawbill_pipeline import __version__
from clawbill_pipeline.commands.shared import (
    CURRENT,
    HOME,
    catalog_of,
    database,
    now_of,
    opened,
    settings_for,
    state_option,
    stripe_of,
)
from clawbill_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from clawbill_pipeline.ledger.waterfall import Step

#: Commands that are a file of their own in commands/: name → module and attribute, loaded when they are called.
MODULES: dict[str, str] = {
    "adjustments": "clawbill_pipeline.commands.adjustments:adjustments",
    "alerts": "clawbill_pipeline.commands.alerts:alerts",
    "archive": "clawbill_pipeline.commands.archive:archive",
    "capacity": "clawbill_pipeline.commands.capacity:capacity",
    "close": "clawbill_pipeline.commands.close:close",
    "correct": "clawbill_pipeline.commands.correct:correct",
    "explain": "clawbill_pipeline.commands.explain:explain",
    "outbox": "clawbill_pipeline.commands.outbox:outbox",
    "quarantine": "clawbill_pipeline.commands.quarantine:quarantine",
    "retry": "clawbill_pipeline.commands.retry:retry",
    "simulate": "clawbill_pipeline.commands.simulate:simulate",
    "tokens": "clawbill_pipeline.commands.tokens:tokens",
    "users": "clawbill_pipeline.commands.users:users",
    "webhooks": "clawbill_pipeline.commands.webhooks:webhooks",
}


def main() -> None:
    """Entry point. Errors that a person can mend are one line on standard error, with exit code 2."""
    from clawbill_pipeline.catalog import CatalogError
    from clawbill_pipeline.disk import DiskFull
    from clawbill_pipeline.ledger import LedgerError
    from clawbill_pipeline.ledger.embedded import EmbeddedServerError
    from clawbill_pipeline.processes import ProcessError

    try:
        cli()
    except (SettingsError, CatalogError, DiskFull, LedgerError, EmbeddedServerError, ProcessError) as error:
        click.echo(f"clawbill: {error}", err=True)
        sys.exit(2)


class Commands(click.Group):
    """The commands in this file, and those of ``MODULES``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = MODULES[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="clawbill")
def cli() -> None:
    """Meters usage into Stripe, and proves that the invoice is right before it goes out."""


@cli.command()
@state_option
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Bill the usage in this folder: OpenClaw cells, JSON lines or CloudEvents.",
)
@click.option("--json", "as_json", is_flag=True, help="End with the waterfall as JSON on standard output.")
def demo(state: Path | None, source: Path | None, as_json: bool) -> None:
    """Bill a demonstration, or your own logs, end to end on this machine: no account, no key, nothing left running."""
    from clawbill_pipeline.sandbox.demo.lines import RunFailed
    from clawbill_pipeline.sandbox.demo.play import DemoError, play
    from clawbill_pipeline.usage.survey import SurveyError

    state = state or _demo_state(source)
    started = time.monotonic()

    def say(message: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {message}", err=True)

    with _ends_on_sigterm():
        try:
            played = play(state, source, say)
        except (DemoError, SurveyError, RunFailed) as error:
            click.echo(f"clawbill: {error}", err=True)
            sys.exit(2)
    _remember(state)
    say(f"done, {played.runs} Dagster runs")
    if as_json:
        click.echo(json.dumps(played.as_json(), indent=2))
    out = sys.stderr if as_json else sys.stdout
    for period, steps in played.periods.items():
        click.echo(f"\nBilling period {period}", file=out)
        click.echo(waterfall_table(steps), file=out)
    click.echo(f"\n{_what_was_met(played)}", file=out)
    if played.repeated:
        if played.changes:
            click.echo("This state was billed before; now different:", file=out)
            for change in played.changes:
                click.echo(f"  {change}", file=out)
        else:
            click.echo(
                "Nothing changed: this state was billed before, and doing it all again added no row to the ledger, "
                "sent nothing to Stripe and rendered the same bytes.",
                file=out,
            )
    click.echo("Reports:", file=out)
    for report in played.reports:
        click.echo(f"  {report}", file=out)
    click.echo(f"Look at it in Dagster: clawbill up --state {_quoted(state)}", file=out)


def _what_was_met(played: Any) -> str:
    parts = [
        f"{played.duplicates} duplicate events not billed twice",
        f"{played.late} quantities revised for late usage",
        f"{played.quarantined} lines in quarantine",
    ]
    if played.unmapped:
        parts.append(f"usage of {', '.join(played.unmapped)} metered but in nobody's rate card (see the breaks)")
    return "Met on the way: " + "; ".join(parts) + "."


@cli.command()
@state_option
@click.option("--web-port", type=int, default=8400, show_default=True, help="Port of the web app (webhook, health).")
@click.option("--dagster-port", type=int, default=3000, show_default=True, help="Port of Dagster's UI.")
@click.option("--catalog", type=click.Path(dir_okay=False, path_type=Path), help="Default: in the state folder.")
def up(state: Path | None, web_port: int, dagster_port: int, catalog: Path | None) -> None:
    """Bring up everything for a working day, and stop it cleanly on Ctrl-C."""
    from clawbill_pipeline.up import run_up

    state = state or HOME / "local"
    _remember(state)
    with _ends_on_sigterm():
        run_up(state, web_port, dagster_port, catalog, lambda message: click.echo(message, err=False))


@cli.command()
@state_option
@click.option(
    "--period",
    help="Month in which the billing periods start, YYYY-MM (of days and weeks: YYYY-MM-DD). Default: all with usage.",
)
@click.option("--tenant", help="Only this tenant.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, decimals as strings.")
def waterfall(state: Path | None, period: str | None, tenant: str | None, as_json: bool) -> None:
    """Per tenant and service: metered, rated, sent, held by Stripe, invoiced, paid, and open breaks."""
    from clawbill_pipeline.catalog import load
    from clawbill_pipeline.ledger.archive import ArchiveError
    from clawbill_pipeline.ledger.periods import periods_with_usage
    from clawbill_pipeline.ledger.waterfall import waterfall as steps_of

    found: dict[str, list[Step]] = {}
    with opened(state) as (settings, ledger):
        catalog = load(settings.catalog_file)
        with ledger.transaction() as connection:
            periods = [_period(period)] if period else periods_with_usage(connection, catalog)
            for month in periods:
                try:
                    found[month] = steps_of(connection, catalog, month, tenant)
                except ArchiveError as error:
                    if period:
                        raise
                    # In another time zone a period begins in the month before: the others are shown all the same.
                    click.echo(f"Billing period {month}: {error}", err=True)
    if as_json:
        rows = [{**step.as_json(), "period": month} for month, steps in found.items() for step in steps]
        click.echo(json.dumps(rows, indent=2))
        return
    for month, steps in found.items():
        click.echo(f"Billing period {month}")
        click.echo(waterfall_table(steps))
    if not any(found.values()):
        click.echo("No usage" + (f" of {tenant}" if tenant else "") + (f" in {period}" if period else "") + " yet.")


@cli.command()
@state_option
@click.option("--json", "as_json", is_flag=True)
@click.option(
    "--probe-stripe", is_flag=True, help="Find out, with made-up usage on a test key, what documents leave open."
)
@click.option("--settle", default=90, show_default=True, help="Seconds that --probe-stripe waits for Stripe's totals.")
def doctor(state: Path | None, as_json: bool, probe_stripe: bool, settle: int) -> None:
    """Check configuration, catalogue, database, migrations, OpenClaw and Stripe, and say what to do about failures."""
    from clawbill_pipeline.doctor import examine, probed

    settings = settings_for(state)
    findings = probed(settings, settle) if probe_stripe else examine(settings)
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            click.echo(f"{'ok  ' if finding.good else 'FAIL'}  {finding.name:<{width}}  {finding.text}")
            if finding.remedy:
                click.echo(f"      {'':<{width}}  → {finding.remedy}")
    sys.exit(0 if all(finding.good for finding in findings) else 1)


@cli.command()
@state_option
def migrate(state: Path | None) -> None:
    """Bring the ledger's tables to this version."""
    from clawbill_pipeline.ledger import migrate as run_migrations
    from clawbill_pipeline.ledger import migration_state

    with database(state) as settings:
        run_migrations(settings.need_database())
        click.echo(f"The ledger is at revision {migration_state(settings.need_database())[0]}.")


@cli.command()
@state_option
@click.option("--dry-run", is_flag=True, help="Only show what would be made.")
@click.option(
    "--customers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV of tenants' Stripe customers and subscription items: tenant_id, customer_id[, service, "
    "subscription_item_id].",
)
def provision(state: Path | None, dry_run: bool, customers: Path | None) -> None:
    """Make Stripe match the catalogue: product, meters, prices, customers, subscriptions. Never deletes."""
    from clawbill_pipeline.catalog import with_customers
    from clawbill_pipeline.delivery.provisioning import provision as make

    with opened(state) as (settings, ledger):
        catalog, api, now = catalog_of(settings), stripe_of(settings), now_of(settings)
        if customers is not None:
            catalog = with_customers(catalog, customers)
        done = make(ledger, catalog, api, now=now, run_id="clawbill provision", dry_run=dry_run)
        for action in done.actions:
            click.echo(f"{action.outcome:6}  {action.kind} {action.name}  {action.detail}".rstrip())
        sys.exit(1 if done.failed else 0)


@cli.command()
@state_option
@click.option("--write", is_flag=True, help="Into .env of this folder, which dg and dagster read, instead of printing.")
def env(state: Path | None, write: bool) -> None:
    """Start the embedded database if need be, and print the environment that `dg dev` and `dagster dev` want."""
    from clawbill_pipeline.ledger import embedded
    from clawbill_pipeline.ledger import migrate as run_migrations
    from clawbill_pipeline.stack import write_private

    settings = settings_for(state)
    if settings.database_url is None:
        url = embedded.start(settings.state.resolve() / "postgres").url()
    else:
        url = settings.need_database()
    run_migrations(url)
    values = {
        "CLAWBILL_STATE": str(settings.state.resolve()),
        "CLAWBILL_CATALOG": str(settings.catalog_file.resolve()),
        "CLAWBILL_DATABASE_URL": url,
    }
    # Quoted for shells; readers of .env files understand it, too.
    lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    if write:
        path = Path(".env")
        if path.exists():
            raise click.ClickException(".env is there already; add the lines yourself (clawbill env prints them)")
        write_private(path, lines)
        click.echo("Wrote .env; the database keeps running until: clawbill postgres stop", err=True)
    else:
        click.echo(lines, nl=False)


@cli.group()
def postgres() -> None:
    """The embedded PostgreSQL server of a state folder."""


@postgres.command("stop")
@state_option
def postgres_stop(state: Path | None) -> None:
    """Stop the server; what it holds stays."""
    from clawbill_pipeline.ledger import embedded

    embedded.stop(settings_for(state).state.resolve() / "postgres")


@cli.group()
def catalog() -> None:
    """The billing catalogue."""


@catalog.command("check")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def catalog_check(file: Path) -> None:
    """Check a catalogue; every fault is named with file and line, and what is doubtful is a warning."""
    from clawbill_pipeline.catalog import load

    found = load(file)
    click.echo(
        f"{file}: {len(found.tenants)} tenants, {len(found.services)} services, {len(found.rate_cards)} rate cards, "
        f"{len(found.sources)} sources"
    )
    for what, remedy in found.calendar.warnings():
        click.echo(f"{file}: warning: {what}; {remedy}", err=True)


@catalog.command("schema")
def catalog_schema() -> None:
    """Print the catalogue's JSON schema, for editors."""
    from clawbill_pipeline.catalog import Catalog

    click.echo(json.dumps(Catalog.model_json_schema(), indent=2))


@cli.group()
def openclaw() -> None:
    """OpenClaw's rating contract."""


@openclaw.command("serve")
@state_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8480, show_default=True)
@click.option("--catalog", "file", type=click.Path(dir_okay=False, path_type=Path), help="Default: as everywhere.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on the port.")
@click.option("--access-log", is_flag=True, help="Log every request, not only those that failed.")
def openclaw_serve(state: Path | None, host: str, port: int, file: Path | None, workers: int, access_log: bool) -> None:
    """Serve POST /rating from the catalogue's rate cards; the bearer token is OPENCLAW_TOKEN."""
    from clawbill_pipeline.sandbox.openclaw import serve

    settings = settings_for(state)
    if settings.openclaw_token is None:
        raise SettingsError("set OPENCLAW_TOKEN to the token that callers must show")
    folder = settings.state / "sandbox" / "openclaw"
    token = settings.openclaw_token.get_secret_value()
    serve(host, port, folder, file or settings.catalog_file, token, workers=workers, access_log=access_log)


@cli.group()
def sandbox() -> None:
    """Stand-ins for a laptop."""


@sandbox.command("stripe")
@state_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8490, show_default=True)
@click.option("--now", type=int, help="Unix seconds the clock is set to; without it, it follows the wall clock.")
@click.option(
    "--port-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Gets the port as text once connections are accepted.",
)
def sandbox_stripe(state: Path | None, host: str, port: int, now: int | None, port_file: Path | None) -> None:
    """A Stripe that keeps Stripe's rules, for test keys; see docs/sandbox-stripe.md."""
    from clawbill_pipeline.sandbox.stripe import serve

    serve(host, port, settings_for(state).state / "sandbox" / "stripe", now, port_file)


def waterfall_table(steps: list[Step]) -> str:
    """The waterfall as a text table; numbers to the right, unknown steps as a dash."""
    head = ("tenant", "service", "metered", "cur", "rated", "sent", "held", "invoiced", "paid", "breaks")
    rows = [
        (
            step.tenant_id, step.service, _short(step.metered_quantity), step.currency or "-",
            _short(step.rated_amount), _short(step.sent), _short(step.held_by_stripe),
            _billed(step.invoiced_amount, step.currency), _billed(step.paid_amount, step.currency), str(step.breaks),
        )
        for step in steps
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    left = (0, 1, 3)

    def line(row: tuple[str, ...]) -> str:
        sized = enumerate(zip(row, widths, strict=True))
        cells = (cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in sized)
        return "  ".join(cells).rstrip()

    return "\n".join((line(head), line(tuple("-" * width for width in widths)), *(line(row) for row in rows)))


def _short(value: Any) -> str:
    from clawbill_pipeline.money import plain

    return "-" if value is None else plain(value)


def _billed(amount: Any, currency: str | None) -> str:
    from clawbill_pipeline.money import exponent, rounded

    return "-" if amount is None or currency is None else str(rounded(amount, exponent(currency)))


def _period(text: str) -> str:
    for form in ("%Y-%m", "%Y-%m-%d"):
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC).strftime(form)
    raise click.BadParameter(
        f"{text!r} is no billing period; write the month in which it starts, such as 2026-01, or where tenants are "
        "billed by days or weeks the day, such as 2026-01-05",
        param_hint="--period",
    )


def _demo_state(source: Path | None) -> Path:
    if source is None:
        return HOME / "demo"
    import hashlib

    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    return HOME / f"demo-{source.resolve().name}-{digest}"


def _remember(state: Path) -> None:
    CURRENT.parent.mkdir(exist_ok=True)
    CURRENT.write_text(str(state.resolve()), encoding="utf-8")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into the same orderly end as Ctrl-C."""
    import signal

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
