"""`clawbill capacity`: what a load needs, as tables or JSON. The model is ``clawbill_pipeline.capacity``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from datetime import timedelta

import click

from clawbill_pipeline.capacity import Limit, Load, Prediction, Size, Stage, constants, predict
from clawbill_pipeline.commands.shared import table

_MANY = click.IntRange(1, 10**15)


@click.command()
@click.option("--events-per-hour", type=_MANY, required=True, help="Usage events of an hour.")
@click.option("--tenants", type=_MANY, required=True, help="Tenants that use something.")
@click.option("--services", type=_MANY, required=True, help="Services that each of them uses.")
@click.option("--dimensions", type=_MANY, default=1, show_default=True, help="Priced combinations of each service.")
@click.option(
    "--revised", type=click.FloatRange(0, 1), default=0.0, show_default=True,
    help="Share of quantities that late usage or a correction changes.",
)  # fmt: skip
@click.option("--stream", is_flag=True, help="Send by Stripe's v2 meter event stream.")
@click.option(
    "--within",
    type=click.IntRange(1, 60),
    default=60,
    show_default=True,
    help="Minutes in which an hour is to be done.",
)
@click.option("--json", "as_json", is_flag=True, help="All of it as an object; seconds and bytes are numbers.")
def capacity(
    events_per_hour: int,
    tenants: int,
    services: int,
    dimensions: int,
    revised: float,
    stream: bool,
    within: int,
    as_json: bool,
) -> None:
    """Predict time, workers, rows, bytes and binding limits for a load, from what was measured."""
    try:
        load = Load(
            events_per_hour, tenants, services, dimensions, revised, stream=stream, within=timedelta(minutes=within)
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    predicted = predict(load)
    click.echo(json.dumps(as_document(predicted), indent=2) if as_json else as_text(predicted))


def as_text(predicted: Prediction) -> str:
    """The prediction for people."""
    load = predicted.load
    minutes = load.within.total_seconds() / 60
    parts = [
        f"An hour: {load.events_per_hour:,} usage events become {predicted.windows:,} quantities and "
        f"{predicted.records:,} usage records.",
        _stages([*predicted.hour, *predicted.day, *predicted.close]),
        f"To be done with an hour in {minutes:.0f} minutes: {_workers(predicted)} as large as what "
        f"measured ({constants().machine}, {predicted.measured}), beside {predicted.database_cores:,.1f} cores of "
        "PostgreSQL.",
        _sizes(predicted),
        _limits(predicted.limits),
        "What binds:" + _binding(predicted),
    ]
    return "\n\n".join(parts)


def as_document(predicted: Prediction) -> dict[str, object]:
    """The prediction for programs."""

    def sizes(of: Iterable[tuple[str, Size]]) -> dict[str, object]:
        return {name: dataclasses.asdict(size) for name, size in of}

    load = {**dataclasses.asdict(predicted.load), "within": predicted.load.within.total_seconds()}
    return {
        "load": load,
        "windows": predicted.windows,
        "records": predicted.records,
        "stages": [dataclasses.asdict(stage) for stage in (*predicted.hour, *predicted.day, *predicted.close)],
        "workers": predicted.workers,
        "database_cores": predicted.database_cores,
        "tables": sizes(predicted.tables.items()),
        "lake": sizes(predicted.lake.items()),
        "limits": [{**dataclasses.asdict(limit), "binds": limit.binds} for limit in predicted.limits],
        "measured": predicted.measured,
    }


def _workers(predicted: Prediction) -> str:
    if predicted.workers is None:
        return "no number of workers, since landing, which one run does, takes longer on one"
    return _many(predicted.workers, "worker")


def _stages(stages: Iterable[Stage]) -> str:
    rows = [
        (s.name, f"{s.count:,}", s.unit, _seconds(s.seconds), _seconds(s.worker), _seconds(s.database)) for s in stages
    ]
    return _table(("stage", "number", "of", "one worker", "its processor", "PostgreSQL's"), rows, right=(1, 3, 4, 5))


def _sizes(predicted: Prediction) -> str:
    tables = sorted(predicted.tables.items(), key=lambda item: -item[1].bytes)
    rows = [(name, f"{size.rows:,}", _bytes(size.bytes)) for name, size in tables]
    rows.append(("PostgreSQL", f"{sum(s.rows for _, s in tables):,}", _bytes(sum(s.bytes for _, s in tables))))
    rows += [(f"lake: {name}", f"{size.rows:,}", _bytes(size.bytes)) for name, size in predicted.lake.items()]
    return _table(("a month", "rows", "bytes"), rows, right=(1, 2))


def _limits(limits: Iterable[Limit]) -> str:
    rows = [
        (each.name, _number(each.needed), _number(each.allowed), each.unit, f"{each.share:.1%}", "binds" * each.binds)
        for each in limits
    ]
    return _table(("limit", "needed", "allowed", "", "share", ""), rows, right=(1, 2, 4))


def _binding(predicted: Prediction) -> str:
    if not predicted.binding:
        nearest = max(predicted.limits, key=lambda limit: limit.share)
        return f" nothing. Nearest: {nearest.name} ({nearest.share:.0%})."
    return "".join(f"\n  {limit.name} ({limit.share:,.1f} times): {limit.remedy}." for limit in predicted.binding)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...]) -> str:
    """A table with numbers to the right."""
    widths = {at: max(len(row[at]) for row in (head, *rows)) for at in right}
    aligned = [
        tuple(cell.rjust(widths[at]) if at in right else cell for at, cell in enumerate(row)) for row in (head, *rows)
    ]
    return table(aligned[0], aligned[1:])


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:,.2f}"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} h"


def _bytes(size: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(size, 1)) // 3), len(units) - 1)
    return f"{size / 1000**power:,.1f} {units[power]}"
