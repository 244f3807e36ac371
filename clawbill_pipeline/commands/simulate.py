"""`clawbill simulate`: what the metered history costs at another catalogue's prices. Writes nothing, calls nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clawbill_pipeline.catalog import load
from clawbill_pipeline.catalog.periods import moment
from clawbill_pipeline.commands.shared import catalog_of, opened, state_option, table
from clawbill_pipeline.money import MoneyError, exact, plain
from clawbill_pipeline.rating.history import compare

if TYPE_CHECKING:
    from clawbill_pipeline.rating.movements import Bill, Comparison, Movement, Revenue

#: Tenants that the table shows; the files have all.
MOST_TENANTS = 20


class Moment(click.ParamType[datetime]):
    """A day (its UTC midnight) or an instant with its time zone."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return moment(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Percent(click.ParamType[Decimal]):
    """An exact percentage, zero or more."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            found = exact(str(value).removesuffix("%"))
        except MoneyError as error:
            self.fail(f"{error}; write for example 5 or 2.5", param, ctx)
        if found < 0:
            self.fail("is negative; bills that fall count as well, so give the size alone", param, ctx)
        return found


@click.command()
@state_option
@click.option("--catalog", "file", type=click.Path(dir_okay=False, path_type=Path), required=True,
              help="The candidate; what it is compared with is the catalogue in use.")  # fmt: skip
@click.option("--from", "start", type=Moment(), required=True, help="First moment of the usage.")
@click.option("--to", "end", type=Moment(), required=True, help="The moment after it.")
@click.option("--as-of", type=Moment(), help="Rate all usage at the candidate's prices of this moment.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all rows as CSV.")
@click.option("--xlsx", "xlsx_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a workbook.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with charts.")
@click.option("--threshold", type=Percent(),
              help="Exit with 1 if a bill moves by more per cent, up or down, or can't be compared.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON, decimals as strings.")
def simulate(
    state: Path | None,
    file: Path,
    start: datetime,
    end: datetime,
    as_of: datetime | None,
    csv_file: Path | None,
    xlsx_file: Path | None,
    html_file: Path | None,
    threshold: Decimal | None,
    as_json: bool,
) -> None:
    """Rate metered history with a candidate catalogue, and show who would pay more or less.

    Nothing is written to the ledger, and neither OpenClaw nor Stripe is asked.
    """
    if start >= end:
        raise click.UsageError("--to must be later than --from")
    candidate = load(file)
    with opened(state) as (settings, ledger):
        found = compare(
            ledger, catalog_of(settings), candidate,
            start=start, end=end, as_of=as_of, memory_limit=settings.memory_limit,
        )  # fmt: skip
    _write(found, csv_file, xlsx_file, html_file)
    beyond = found.beyond(threshold) if threshold is not None else ()
    failed = bool(beyond or (threshold is not None and found.unclear))
    if as_json:
        judged = {
            "threshold": _number(threshold),
            "beyond_threshold": [bill.tenant_id for bill in beyond],
            "failed": failed,
        }
        click.echo(json.dumps(found.as_json() | judged, indent=2))
    else:
        _print(found)
        _judge(found, threshold, beyond)
    raise SystemExit(1 if failed else 0)


def _write(found: Comparison, csv_file: Path | None, xlsx_file: Path | None, html_file: Path | None) -> None:
    from clawbill_pipeline.reporting.price_change import as_csv, as_page, as_workbook

    for file, render in ((csv_file, as_csv), (xlsx_file, as_workbook), (html_file, as_page)):
        if file is not None:
            try:
                file.write_bytes(render(found))
            except OSError as error:
                raise click.ClickException(f"{file}: can't be written: {error.strerror}") from None


# --- the tables ----------------------------------------------------------------------------------------------------


def _print(found: Comparison) -> None:
    click.echo(f"Usage from {found.start:%Y-%m-%dT%H:%M:%SZ} to {found.end:%Y-%m-%dT%H:%M:%SZ}")
    if not found.movements:
        click.echo("No usage was metered in that time.")
        return
    click.echo(
        _table(
            ("currency", "current", "candidate", "change", "%", "up", "down", "tenants", "paying more", "paying less"),
            [
                (r.currency, *_amounts(r), plain(r.up), plain(r.down), r.tenants, r.tenants_up, r.tenants_down)
                for r in found.revenue
            ],
            text=1,
        )
    )
    moved = [bill for bill in found.bills if bill.change]
    more = f", the first {MOST_TENANTS} of {len(moved)}" if len(moved) > MOST_TENANTS else ""
    click.echo(f"\nLargest movers{more}" if moved else "\nNo bill changes.")
    if moved:
        of_tenant: dict[str, list[Movement]] = {}
        for movement in found.movements:
            if movement.change:
                of_tenant.setdefault(movement.tenant_id, []).append(movement)
        head = ("tenant", "service", "currency", "current", "candidate", "change", "%")
        rows: list[tuple[object, ...]] = []
        for bill in moved[:MOST_TENANTS]:
            rows.append((bill.tenant_id, "all", bill.currency, *_amounts(bill)))
            rows += [
                (m.tenant_id, m.service, m.currency, _number(m.current_amount), _number(m.candidate_amount),
                 _number(m.change), _percent(m))
                for m in of_tenant[bill.tenant_id]
                if m.currency == bill.currency
            ]  # fmt: skip
        click.echo(_table(head, rows, text=3))
    for movement in found.unclear:
        click.echo(f"Not comparable in full: {movement.tenant_id} {movement.service}: {movement.note}")
    if found.unbilled:
        click.echo(f"In neither catalogue: {', '.join(found.unbilled)}")
    for card, at in found.later:
        click.echo(
            f"Rate card {card} changes on {at:%Y-%m-%dT%H:%M:%SZ}, after this usage; to see what that would have "
            f"come to: --as-of {at:%Y-%m-%dT%H:%M:%SZ}"
        )


def _judge(found: Comparison, threshold: Decimal | None, beyond: tuple[Bill, ...]) -> None:
    if threshold is None:
        return
    if beyond:
        names = ", ".join(f"{bill.tenant_id} ({_percent(bill)} %)" for bill in beyond[:MOST_TENANTS])
        more = f" and {len(beyond) - MOST_TENANTS} more" if len(beyond) > MOST_TENANTS else ""
        click.echo(f"Beyond the threshold of {plain(threshold)} %: {names}{more}")
    elif not found.unclear:
        click.echo(f"Every bill stays within {plain(threshold)} %.")


def _amounts(row: Bill | Revenue) -> tuple[str, str, str, str]:
    return plain(row.current), plain(row.candidate), plain(row.change), _percent(row)


def _percent(row: Bill | Revenue | Movement) -> str:
    if row.percent is not None:
        return plain(row.percent)
    return "new" if row.change else "0"


def _table(head: Sequence[str], rows: Sequence[tuple[object, ...]], *, text: int) -> str:
    """``table`` with numbers to the right: all but the first ``text`` columns."""
    widths = [max(len(str(row[column])) for row in (head, *rows)) for column in range(len(head))]

    def aligned(row: Sequence[object]) -> list[str]:
        return [str(cell) if at < text else str(cell).rjust(widths[at]) for at, cell in enumerate(row)]

    return table(aligned(head), map(aligned, rows))


def _number(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)
