"""Metering an hour of the lake, to committed rows, against DuckDB and pandas that do nothing but dedupe and sum.

``python -m clawbill_pipeline_tests.benchmarks.metering [--events 10000000]``: (a) one hour of 5,000 tenants × 6
services, 1 % duplicates, without and with a 1 GB memory limit; (b) a late re-run of 1 %; (c) rows by COPY; (d) the
first and the last hour of a 720-hour month with random ids, which is the dearest case for conflicts across hours.
Each candidate of (a) runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset as ds
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.ledger.database import copy_arrow
from clawbill_pipeline.metering import meter
from clawbill_pipeline_tests.benchmarks.common import Took, output_of, peak_megabytes, table, timed

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FILE_EVENTS = 1_000_000
MODULE = "clawbill_pipeline_tests.benchmarks.metering"

_EVENTS = """
COPY (
    SELECT $landing::BIGINT AS landing_id, 'app' AS source, 'file:///logs/app.jsonl' AS uri, i AS line,
           i * 140 AS byte_offset, {event_id} AS event_id, 'tenant-' || h % 5000 AS tenant_id,
           'service.' || h // 5000 % 6 AS service, '' AS dimensions,
           CAST(h // 30000 % 1000000 AS DECIMAL(38, 12)) * 0.001 AS quantity,
           $hour::TIMESTAMPTZ + to_microseconds(h % 3600000000) AS event_time
    FROM (SELECT i, id, (hash($seed, id) >> 2)::BIGINT AS h
          FROM (SELECT i, CASE WHEN i % 100 = 99 THEN i - 7 ELSE i END + $first AS id FROM range($count) t(i)))
) TO '{file}' (FORMAT parquet, COMPRESSION zstd)
"""
_BARE = """
SELECT tenant_id, service, CAST(sum(quantity) AS DECIMAL(38, 12)) AS quantity
FROM (SELECT tenant_id, source, event_id, any_value(service) AS service, any_value(quantity) AS quantity
      FROM read_parquet($files) GROUP BY ALL)
GROUP BY ALL
"""


@cache
def catalogue() -> Catalog:
    services = [f"service.{number}" for number in range(6)]
    prices = {service: {"model": "per_unit", "unit_amount": "1"} for service in services}
    versions = [{"effective_from": "2026-01-01T00:00:00Z", "prices": prices}]
    return parse(
        json.dumps(
            {
                "start": "2026-01-01T00:00:00Z",
                "services": {service: {"unit": "unit"} for service in services},
                "rate_cards": {"card": {"currency": "USD", "versions": versions}},
                "tenants": {f"tenant-{number}": {"rate_card": "card"} for number in range(5000)},
            }
        )
    )


def land(ledger: Ledger, lake: Lake, hour: datetime, events: int, *, first: int = 0, random_ids: bool = False) -> None:
    """Lands so many events of an hour, a million a file. Ids sort by time, or are as random as a UUID."""
    event_id = "md5(id::VARCHAR || $hour)" if random_ids else "epoch($hour::TIMESTAMPTZ)::BIGINT || printf('%012d', id)"
    with duckdb.connect() as db, ledger.transaction() as connection:
        db.execute("SET TimeZone = 'UTC'")
        for begin in range(0, events, FILE_EVENTS):
            count = min(FILE_EVENTS, events - begin)
            landing = connection.scalar(
                text("INSERT INTO landings (source, uri, position, size, sha256, lines, event_lines, events, "
                     "quarantined, skipped, landed_at, run_id) "
                     "VALUES ('app', :uri, '0', 1, '', :n, :n, :n, 0, 0, :now, 'benchmark') RETURNING id"),
                {"uri": f"{hour.isoformat()} {first + begin}", "n": count, "now": hour},
            )  # fmt: skip
            file = lake.events_file(hour, landing)
            db.execute(
                _EVENTS.format(event_id=event_id, file=lake.path(file)),
                {"landing": landing, "hour": hour.isoformat(), "seed": 7, "first": first + begin, "count": count},
            )
            connection.execute(
                text("INSERT INTO landed_hours VALUES (:id, :hour, :events, :file)"),
                {"id": landing, "hour": hour, "events": count, "file": file},
            )


def metering(ledger: Ledger, lake: Lake, hour: datetime, memory_limit: str | None = None) -> str:
    metered = meter(
        ledger, lake, catalogue(), start=hour, end=hour + HOUR, now=hour, run_id="benchmark", memory_limit=memory_limit
    )
    assert all(check.passed for check in metered.checks)
    return str(sum(metered.quantities.values()).normalize())


def bare(files: list[str], memory_limit: str | None = None) -> str:
    """Baseline A: DuckDB alone, the same dedupe and exact decimal sum, nothing else."""
    with duckdb.connect(config={"memory_limit": memory_limit} if memory_limit else {}) as db:
        quantities = db.sql(_BARE, params={"files": files}).to_arrow_table()
    return str(sum(quantities["quantity"].to_pylist()).normalize())


def pandas_(files: list[str]) -> str:
    """Baseline B: pandas with pyarrow. Its sum of Arrow decimals is exact, too."""
    columns = ["tenant_id", "source", "event_id", "service", "quantity"]
    frame = ds.dataset(files).to_table(columns=columns).to_pandas(types_mapper=pd.ArrowDtype)
    frame = frame.drop_duplicates(["tenant_id", "source", "event_id"])
    return str(sum(frame.groupby(["tenant_id", "service"])["quantity"].sum().to_list()).normalize())


def candidate(name: str, url: str, folder: Path) -> tuple[str, Took]:
    """One run of a candidate: what it came to, and how long it took."""
    ledger, lake = Ledger(url), Lake(folder)
    ledger.ensure_partitions([START])
    catalogue()  # read once by a process, and no part of what is measured
    files = [str(path) for path in sorted(folder.glob(f"usage_events/hour={START:%Y-%m-%dT%H}/*.parquet"))]
    works: dict[str, Callable[[], str]] = {
        "metering": lambda: metering(ledger, lake, START),
        "metering, 1 GB": lambda: metering(ledger, lake, START, "1GB"),
        "bare DuckDB": lambda: bare(files),
        "pandas": lambda: pandas_(files),
    }
    came_to: list[str] = []
    took = timed(lambda: came_to.append(works[name]()))
    ledger.dispose()
    return came_to[0], took


def one_hour(url: str, folder: Path, rounds: int) -> str:
    """(a), with the ratio to bare DuckDB. Raises where two candidates differ by a digit."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    sums: set[str] = set()
    for _ in range(rounds):
        for name in ("bare DuckDB", "metering", "metering, 1 GB", "pandas"):
            said = json.loads(output_of(MODULE, "--candidate", name, "--folder", folder, env={"BENCHMARK_URL": url}))
            sums.add(said["sum"])
            found.setdefault(name, []).append((said["wall"], said["cpu"], said["peak"]))
            with Ledger(url).transaction() as connection:  # the next round writes all rows again
                connection.execute(text("DROP TABLE IF EXISTS metered_usage_2026_11"))
    assert len(sums) == 1, f"the candidates differ: {sums}"
    best = {name: [min(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    base = best["bare DuckDB"]
    return table(
        ("one hour", "wall s", "cpu s", "x bare wall", "x bare cpu", "peak MB"),
        [
            (name, f"{wall:.2f}", f"{cpu:.2f}", f"{wall / base[0]:.2f}", f"{cpu / base[1]:.2f}", f"{peak:.0f}")
            for name, (wall, cpu, peak) in best.items()
        ],
    )


def late_and_copy(ledger: Ledger, lake: Lake, events: int) -> str:
    """(b) and (c)."""
    ledger.ensure_partitions([START])
    full = timed(lambda: metering(ledger, lake, START))
    land(ledger, lake, START, max(events // 100, 1), first=events * 10)
    again = timed(lambda: metering(ledger, lake, START))
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        rows = db.sql("""
            SELECT i AS id, 'tenant-' || i AS tenant_id, 'service' AS service, now() AS hour,
                   i::DECIMAL(38, 12) AS quantity
            FROM range(300000) t(i)
        """).to_arrow_table()
    with ledger.transaction() as connection:
        connection.execute(
            text("CREATE TEMP TABLE held (id bigint, tenant_id text, service text, hour timestamptz, "
                 "quantity numeric(38, 12)) ON COMMIT DROP")
        )  # fmt: skip
        copied = timed(lambda: copy_arrow(connection, "held", rows))
    return table(
        ("then", "wall s", "cpu s"),
        [
            ("the whole hour", f"{full.wall:.2f}", f"{full.cpu:.2f}"),
            ("again with 1 % late", f"{again.wall:.2f}", f"{again.cpu:.2f}"),
            (f"COPY, {rows.num_rows / copied.wall:,.0f} rows/s", f"{copied.wall:.2f}", f"{copied.cpu:.2f}"),
        ],
    )


def month(ledger: Ledger, lake: Lake, events: int, hours: int = 720) -> str:
    """(d): every hour of a month is landed and metered in turn; the cost of the first and of the last ones."""
    took = []
    for number in range(hours):
        hour = START + (number + 48) * HOUR
        land(ledger, lake, hour, events, random_ids=True)
        ledger.ensure_partitions([hour])
        took.append(timed(lambda at=hour: metering(ledger, lake, at)))  # type: ignore[misc]

    def mean(part: list[Took]) -> tuple[str, str]:
        return f"{sum(t.wall for t in part) / len(part):.3f}", f"{sum(t.cpu for t in part) / len(part):.3f}"

    slice_ = min(24, hours // 3)
    rows = [
        ("first hours, no neighbours yet", *mean(took[: min(3, hours)])),
        ("the day after the first", *mean(took[slice_ : 2 * slice_])),
        ("the last day", *mean(took[-slice_:])),
    ]
    return table((f"hour of {hours} × {events:,}", "wall s", "cpu s"), rows)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    started = embedded.start(folder, durable=False)
    try:
        migrate(started.url())
        yield started.url()
    finally:
        embedded.stop(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--month-events", type=int, default=20_000, help="a random-id event hour of the month")
    parser.add_argument("--hours", type=int, default=720)
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.candidate:
        came_to, took = candidate(given.candidate, os.environ["BENCHMARK_URL"], given.folder)
        print(json.dumps({"sum": came_to, "wall": took.wall, "cpu": took.cpu, "peak": peak_megabytes()}))  # noqa: T201
        return
    with tempfile.TemporaryDirectory(prefix="clawbill-benchmark-") as name:
        folder = Path(name)
        with server(folder / "postgres") as url:
            ledger, lake = Ledger(url), Lake(folder / "lake")
            land(ledger, lake, START, given.events)
            for part in (
                lambda: one_hour(url, lake.root, given.rounds),
                lambda: late_and_copy(ledger, lake, given.events),
                lambda: month(ledger, lake, given.month_events, given.hours),
            ):
                sys.stdout.write(part() + "\n\n")
                sys.stdout.flush()
            ledger.dispose()


if __name__ == "__main__":
    main()
