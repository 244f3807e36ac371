"""What a row, an event and a run cost: the numbers that ``clawbill capacity`` multiplies by, measured.

``python -m clawbill_pipeline_tests.benchmarks.constants`` prints them as the document that is
``clawbill_pipeline/capacity.toml``; ``--write`` puts it there, and the outputs in docs/scale.md that follow from it.
A line of many tenants with little usage each tells what rows cost, one of few tenants with much of it what events do.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from click.testing import CliRunner
from sqlalchemy import text

from clawbill_pipeline.capacity import MAPS_BYTES, Cost, parsed
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.benchmarks.common import output_of
from clawbill_pipeline_tests.benchmarks.line import HOUR, LAG, START, Line, Step, line, write_log
from clawbill_pipeline_tests.benchmarks.metering import fresh, place

MODULE = "clawbill_pipeline_tests.benchmarks.constants"
ROOT = Path(__file__).parents[2]
FILE = ROOT / "clawbill_pipeline" / "capacity.toml"
PAGE = ROOT / "docs" / "scale.md"
#: Tables that grow with usage, and when they have their rows: by the hour, or at the close.
HOURLY = (
    "metered_usage", "rated_usage", "usage_records", "usage_record_trail", "audit_trail", "planned_totals",
    "usage_summaries", "reconciliations", "stripe_customers", "stripe_items",
)  # fmt: skip
AT_THE_CLOSE = ("stripe_events", "stripe_events_handled", "invoices", "invoice_lines", "tenant_standing")
#: Tables with a row an hour or a file.
FEW = ("landings", "landed_hours", "metered_hours")


@dataclass(frozen=True)
class Size:
    """How much is measured: tenants over some hours, and many in one; events; tenants at the close; hours; runs."""

    tenants: int = 250
    many: int = 1500
    events: int = 2_000_000
    closing: int = 100
    hours: int = 300
    runs: int = 30


SERVICES, HOURS, EACH = 6, 20, 10


def bytes_of(line: Line, empty: Mapping[str, int], tables: Sequence[str], hours: int) -> dict[str, float]:
    """Bytes a row, with indexes. What an hour's replaced versions leave free counts as the rows that will be there."""
    rows, full = line.rows(), line.bytes()
    accounts = line.tenants * line.services
    rows["reconciliations"] *= accounts  # each has all of them
    rows["usage_records"] += 2 * rows["usage_records"] // hours
    return {name: (full[name] - empty[name] - MAPS_BYTES) / rows[name] for name in tables}


def per(unit: str, steps: Sequence[Step], less: Sequence[tuple[Cost, float]] = (), count: float | None = None) -> Cost:
    """What one of ``count`` (or of what the steps did) costs, without so many, for each, of what is known already."""
    every = count or sum(step.count for step in steps)
    known = [[share * each for each in (cost.wall_us, cost.worker_us, cost.database_us)] for cost, share in less]
    parts = [sum(part) for part in zip(*(step[1:] for step in steps), strict=True)]
    # Never below nothing, which noise could make of little.
    return Cost(unit, *(max(part / every * 1e6 - sum(k[at] for k in known), 0.0) for at, part in enumerate(parts)))


def measured(size: Size) -> str:
    """The document."""
    with place() as (server, folder):

        def a_line(name: str, tenants: int) -> AbstractContextManager[Line]:
            return line(folder / name, fresh(server, name), tenants, SERVICES)

        with a_line("few", 2) as few:
            empty = few.bytes()
            for hour in range(size.hours):
                write_log(few.folder / "usage" / f"{hour}.jsonl", START + hour * HOUR, 1, 2, 1)
            few.land(START + size.hours * HOUR)
            few.meter(START, START + size.hours * HOUR)
            few.vacuum()
            tables = bytes_of(few, empty, FEW, 1)

        with a_line("rows", size.tenants) as rows:
            empty = rows.bytes()
            rows.provision()
            windows = size.tenants * SERVICES
            for hour in range(HOURS):
                rows.bill(START + hour * HOUR, windows * EACH)
                rows.vacuum()
                if hour in (0, HOURS - 1):
                    rows.compare(START + (hour + 1) * HOUR + LAG)
            tables |= bytes_of(rows, empty, HOURLY, HOURS)
            ids = rows.lake_bytes("usage_ids") / (size.tenants * HOURS) - 8 * SERVICES * EACH
            with rows.ledger.transaction() as connection:
                waterfall = connection.scalar(text(_IN_MEMORY)) / windows

        with a_line("many", size.many) as many:
            many.provision(stream=True)
            many.bill(START, 100)  # what is done once a process is no cost of a row
            many.vacuum()
            many.steps.clear()
            many.bill(START + HOUR, size.many * SERVICES * EACH)

        with a_line("events", 50) as events:
            events.provision()
            events.bill(START, size.events)
            events.compare(START + HOUR + LAG)
            event = events.lake_bytes("usage_events") / size.events

        with a_line("close", size.closing) as close:
            empty = close.bytes()
            close.provision()
            close.bill(START, size.closing * SERVICES * EACH)
            close.compare(START + HOUR + LAG)
            close.close()
            close.vacuum()
            tables |= bytes_of(close, empty, AT_THE_CLOSE, 1)

    costs = costs_of(rows, many, events, close)
    run = float(output_of(MODULE, "--runs", size.runs).splitlines()[-1])
    return document(costs, tables, event, ids, waterfall, run)


_IN_MEMORY = "SELECT max(pg_column_size(waterfall || '[]'::jsonb)) FROM reconciliations"


def costs_of(rows: Line, many: Line, events: Line, close: Line) -> dict[str, Cost]:
    """By step, of one unit: what an event costs is told by many events of few tenants; then, what a row does."""
    landed = events.steps["landing"][0].count
    counting = per("usage event", events.steps["metering"], count=landed)
    reading = per("usage event of the period", events.steps["reconciling"], count=landed)
    first, last = rows.steps["reconciling"]
    accounts = rows.tenants * rows.services
    hours = Step(accounts * (HOURS - 1), *(b - a for a, b in zip(first[1:], last[1:], strict=True)))
    comparing = per("usage record of the period", [hours], [(reading, EACH)])
    return {
        "landing": per("usage event", events.steps["landing"]),
        "counting": counting,
        "metering": per("window", many.steps["metering"], [(counting, EACH)]),
        "rating": per("window", many.steps["rating"]),
        "planning": per("usage record", many.steps["planning"]),
        "sending, v1": per("usage record", rows.steps["sending"]),
        "sending, v2": per("usage record", many.steps["sending"]),
        "reading back": per("customer and meter", rows.steps["reading back"]),
        "reading the lake": reading,
        "comparing": comparing,
        "summing up": per("account", [first], [(comparing, 1), (reading, EACH)], count=accounts),
        "closing": per("draft", close.steps["closing"]),
    }


def document(
    costs: Mapping[str, Cost],
    tables: Mapping[str, float],
    event: float,
    ids: float,
    waterfall: float,
    run: float,
) -> str:
    """As ``capacity.toml`` is."""
    lines = [
        f"# What `clawbill capacity` multiplies by. Written by `python -m {MODULE} --write`.",
        "# docs/scale.md says what was measured, and on what.",
        f'measured = "{datetime.now(UTC):%Y-%m-%d}"',
        f'machine = "{machine()}"',
        f"event_bytes = {event:.1f}  # of a usage event in the lake, its id as random as a UUID",
        f"tenant_ids_bytes = {ids:.0f}  # of a tenant in an hour's index of ids, beside 8 an event",
        f"waterfall_bytes = {waterfall:.0f}  # of an account in a reconciliation's waterfall, in PostgreSQL's memory",
        f"run_bytes = {run:.0f}  # of an hourly run in Dagster's own tables",
        "",
        "# Microseconds of one unit: by the clock, of the worker's processor, of the database's.",
    ]
    for name, cost in costs.items():
        lines += [f'[costs."{name}"]', f'unit = "{cost.unit}"']
        lines += [f"{part} = {getattr(cost, part):.4g}" for part in ("wall_us", "worker_us", "database_us")]
    lines += ["", "# Bytes a row, with what indexes take of it.", "[row_bytes]"]
    lines += [f"{name} = {each:.0f}" for name, each in sorted(tables.items())]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What measured: the same processors for worker, database and stand-ins."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = " ".join((model[1] if model else platform.processor()).split())
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"


def bytes_a_run(runs: int) -> float:
    """Of an hourly run without usage, in Dagster's own tables. Takes the environment of this process over."""
    from dagster import DagsterInstance

    from clawbill_pipeline.stack import Stack, write_catalog
    from clawbill_pipeline_tests.benchmarks.line import catalogue

    with tempfile.TemporaryDirectory(prefix="clawbill-benchmark-") as name, Stack(Path(name)) as stack:
        write_catalog(stack.state / "catalog.yaml", catalogue(2, SERVICES))
        (stack.state / "usage").mkdir()
        stack.env |= {
            "CLAWBILL_CATALOG": str(stack.state / "catalog.yaml"),
            "OPENCLAW_URL": "http://127.0.0.1:9",  # nobody is asked: there is no usage
            "OPENCLAW_TOKEN": "none",
            "STRIPE_SECRET_KEY": "sk_test_none",
        }
        stack.database()
        stack.dagster_home()
        os.environ.update(stack.env)
        from clawbill_pipeline.definitions import defs
        from clawbill_pipeline.sandbox.demo.lines import Line as Runs

        with DagsterInstance.get() as instance:
            line = Runs(defs, instance)
            ledger = Ledger(stack.settings.need_database())
            sizes = []
            for hour in range(2 * runs):
                if hour in (0, runs):
                    sizes.append(_dagster_bytes(ledger))
                line.hours("hourly_billing", START + hour * HOUR, START + (hour + 1) * HOUR)
            sizes.append(_dagster_bytes(ledger))
            ledger.dispose()
    # The first ones fill pages that were there already.
    return (sizes[2] - sizes[1]) / runs


def _dagster_bytes(ledger: Ledger) -> int:
    query = """SELECT sum(pg_total_relation_size(oid)) FROM pg_class
        WHERE relkind = 'r' AND relnamespace <> 'ledger'::regnamespace
          AND relnamespace::regnamespace::text !~ '^(pg_|information_schema)'"""
    with ledger.transaction() as connection:
        return int(connection.scalar(text(query)) or 0)


def with_outputs(page: str) -> str:
    """The page with what its ``clawbill capacity`` commands print now under each of them."""
    from clawbill_pipeline.cli import cli

    def again(block: re.Match[str]) -> str:
        said = CliRunner().invoke(cli, block[2].split()[1:], catch_exceptions=False)
        if said.exit_code:
            raise ValueError(f"{block[2]}: {said.output}")
        return f"{block[1]}{block[2]}{block[3]}{said.output}```\n"

    pattern = r"(```bash\n)(clawbill capacity [^\n]*)(\n```\n\n```text\n)(?:(?!```).*\n)*```\n"
    return re.sub(pattern, again, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into capacity.toml, and docs/scale.md after it")
    parser.add_argument("--runs", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.runs:
        print(bytes_a_run(given.runs))  # noqa: T201
        return
    text = measured(Size())
    parsed(text)
    if given.write:
        FILE.write_text(text, encoding="utf-8")
        PAGE.write_text(with_outputs(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
