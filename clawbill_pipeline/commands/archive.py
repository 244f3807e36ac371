"""`clawbill archive`: old months of the ledger's large tables, moved into the lake as Parquet, and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import catalog_of, now_of, opened, state_option, table, who
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import archive as months
from clawbill_pipeline.ledger.archive import Archived
from clawbill_pipeline.ledger.still_read import refuse_still_read


class Month(click.ParamType[date]):
    """A calendar month in UTC, YYYY-MM."""

    name = "month"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return datetime.strptime(str(value), "%Y-%m").date()  # noqa: DTZ007 -- a date has no zone
        except ValueError:
            self.fail(f"{value!r} is no month; write it as 2026-01", param, ctx)


@click.group()
def archive() -> None:
    """Old months of the large tables: out of the database into the lake, still explainable, and back."""


@archive.command("list")
@state_option
def list_(state: Path | None) -> None:
    """What is in the lake alone."""
    with opened(state) as (_, ledger), ledger.transaction() as connection:
        click.echo(_shown(months.archived(connection)))


@archive.command()
@state_option
@click.argument("month", type=Month())
def store(state: Path | None, month: date) -> None:
    """Move a month into the lake. Each file is read back and compared before its rows leave the database."""
    with opened(state) as (settings, ledger):
        now = now_of(settings)
        with ledger.transaction() as connection:
            refuse_still_read(connection, catalog_of(settings), month, now)
        moved = months.archive_month(ledger, Lake(settings.lake_root), month, now=now, by=who())
    click.echo(_shown(moved) if moved else f"{month:%Y-%m} is archived already.")


@archive.command()
@state_option
@click.argument("month", type=Month())
def restore(state: Path | None, month: date) -> None:
    """Put an archived month back into the database."""
    with opened(state) as (settings, ledger):
        back = months.restore_month(ledger, Lake(settings.lake_root), month, now=now_of(settings), by=who())
    click.echo(_shown(back))


def _shown(found: Iterable[Archived]) -> str:
    rows = [(f"{each.month:%Y-%m}", each.table, each.rows, each.bytes, each.file) for each in found]
    return table(("month", "table", "rows", "bytes", "file in the lake"), rows)
