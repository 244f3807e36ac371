"""An hour of usage, from its file to committed rows, against DuckDB and pandas that do nothing but dedupe and sum.

``python -m clawbill_pipeline_tests.benchmarks.metering``: (a) one hour of 5,000 tenants × 6 services, 1 % duplicates,
as JSON lines, zstd JSON lines and Parquet: landed and metered by the real functions into a real PostgreSQL, also with
a memory limit; (b) 1 % more usage for that hour, late; (c) rows by COPY; (d) the hours of a month with random ids,
which is the dearest case for conflicts across hours. Each candidate of (a) runs in a process of its own, so that its
memory is its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path

import duckdb
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json as pj
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.ledger.database import copy_arrow
from clawbill_pipeline.metering import meter
from clawbill_pipeline.usage import land
from clawbill_pipeline.usage import uniform as _  # noqa: F401 - loaded before anything is measured, as the others' libraries
from clawbill_pipeline_tests.benchmarks.common import Took, output_of, peak_megabytes, table, timed

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MODULE = "clawbill_pipeline_tests.benchmarks.metering"
KINDS = {"jsonl": "JSON lines", "jsonl.zst": "JSON lines, zstd", "parquet": "Parquet"}
LIMIT = "1GB"
#: Hours before the month whose ids are looked at, too: its first hour has as many neighbours as its last one.
_BEFORE = 24

#: Usage as a service's log would have it: one event in a hundred is there twice.
_EVENTS = """
SELECT {event_id} AS event_id, 'tenant-' || h % 5000 AS tenant_id, 'service.' || h // 5000 % 6 AS service,
       CAST(h // 30000 % 1000000 AS DECIMAL(18, 3)) * 0.001 AS quantity,
       $hour::TIMESTAMPTZ + to_microseconds(h % 3600000000) AS timestamp
FROM (SELECT i, id, (hash($seed, id) >> 2)::BIGINT AS h
      FROM (SELECT i, CASE WHEN i % 100 = 99 THEN i - 7 ELSE i END + $first AS id FROM range($count) t(i)))
"""
_SORTED_IDS = "epoch($hour::TIMESTAMPTZ)::BIGINT || printf('%012d', id)"
_RANDOM_IDS = "md5(id::VARCHAR || $hour)"
_LINE = """
SELECT '{{"event_id": "' || event_id || '", "tenant_id": "' || tenant_id || '", "service": "' || service
       || '", "quantity": "' || quantity || '", "timestamp": "' || strftime(timestamp, '%Y-%m-%dT%H:%M:%S.%fZ') || '"}}'
FROM ({events})
"""
_COLUMNS = "{event_id: 'VARCHAR', tenant_id: 'VARCHAR', service: 'VARCHAR', quantity: 'DECIMAL(38, 12)'}"
#: Baseline A: the leanest query that comes to the same sums. All is one hour of one source: neither is looked at.
_BARE = """
SELECT tenant_id, service, CAST(sum(quantity) AS DECIMAL(38, 12)) AS quantity
FROM (SELECT tenant_id, event_id, any_value(service) AS service, any_value(quantity) AS quantity
      FROM {file} GROUP BY ALL)
GROUP BY ALL
"""


@cache
def catalogue(folder: Path | None = None, kind: str = "jsonl") -> Catalog:
    services = [f"service.{number}" for number in range(6)]
    prices = {service: {"model": "per_unit", "unit_amount": "1"} for service in services}
    versions = [{"effective_from": "2026-01-01T00:00:00Z", "prices": prices}]
    source: dict[str, object] = {"name": "app", "kind": "json_lines", "path": str(folder), "pattern": "*.jsonl"}
    if kind == "parquet":
        fields = {name: name for name in ("event_id", "tenant_id", "timestamp")}
        mapping = {**fields, "usage": [{"service": {"field": "service"}, "quantity": "quantity"}]}
        source |= {"kind": "files", "pattern": "*.parquet", "mapping": mapping}
    return parse(
        json.dumps(
            {
                "start": "2026-01-01T00:00:00Z",
                "sources": [source] if folder else [],
                "services": {service: {"unit": "unit"} for service in services},
                "rate_cards": {"card": {"currency": "USD", "versions": versions}},
                "tenants": {f"tenant-{number}": {"rate_card": "card"} for number in range(5000)},
            }
        )
    )


def log_of(folder: Path, name: str, hour: datetime, events: int, *, first: int = 0, random_ids: bool = False) -> None:
    """Writes a log of so many events of an hour. Ids sort by time, or are as random as a UUID."""
    folder.mkdir(parents=True, exist_ok=True)
    query = _EVENTS.format(event_id=_RANDOM_IDS if random_ids else _SORTED_IDS)
    given = {"hour": hour.isoformat(), "seed": 7, "first": first, "count": events}
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        if name.endswith(".parquet"):
            db.execute(f"COPY ({query}) TO '{folder / name}' (FORMAT parquet, COMPRESSION zstd)", given)
            return
        zstd = ", COMPRESSION zstd" if name.endswith(".zst") else ""
        lines = _LINE.format(events=query)
        db.execute(
            f"COPY ({lines}) TO '{folder / name}' (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIM '\x1f'{zstd})",
            given,
        )


def landing(ledger: Ledger, lake: Lake, folder: Path, kind: str, hour: datetime = START) -> int:
    landed = land(catalogue(folder, kind), lake, ledger, now=hour + HOUR, run_id="benchmark", finished=True)
    assert (landed.quarantined, landed.problems) == (0, ()), landed
    return landed.events


def metering(ledger: Ledger, lake: Lake, hour: datetime = START) -> str:
    metered = meter(ledger, lake, catalogue(), start=hour, end=hour + HOUR, now=hour, run_id="benchmark")
    assert all(check.passed for check in metered.checks)
    return total(metered.quantities.values())


def total(quantities: Iterator[Decimal] | object) -> str:
    return str(sum(quantities, Decimal()).normalize())  # type: ignore[call-overload]


def ours(folder: Path, kind: str, memory_limit: str | None = None) -> tuple[str, Took, Took]:
    """From the file to committed rows: what it came to, and what landing and metering took of it."""
    ledger = Ledger(os.environ["BENCHMARK_URL"])
    ledger.ensure_partitions([START])
    catalogue(folder, kind), catalogue()  # read once by a process, and no part of what is measured
    came_to: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lake-", dir=folder.parent) as root:
        lake = Lake(Path(root), memory_limit)
        landed = timed(lambda: landing(ledger, lake, folder, kind))
        metered = timed(lambda: came_to.append(metering(ledger, lake)))
    ledger.dispose()
    return came_to[0], landed, metered


def bare(folder: Path, kind: str) -> str:
    """Baseline A: DuckDB alone, the same dedupe and exact decimal sum, nothing else."""
    (file,) = folder.iterdir()
    read = f"read_json('{file}', format = 'newline_delimited', columns = {_COLUMNS})"
    with duckdb.connect() as db:
        db.execute("SET preserve_insertion_order = false")
        found = db.sql(_BARE.format(file=f"'{file}'" if kind == "parquet" else read)).to_arrow_table()
    return total(found["quantity"].to_pylist())


def pandas_(folder: Path, kind: str) -> str:
    """Baseline B: pandas with pyarrow. Its sum of Arrow decimals is exact, too."""
    (file,) = folder.iterdir()
    columns = ["tenant_id", "event_id", "service", "quantity"]
    if kind == "parquet":
        found = ds.dataset(file).to_table(columns=columns)
    else:
        types = dict.fromkeys(columns, pa.string()) | {"quantity": pa.decimal128(38, 12)}
        found = pj.read_json(
            pa.input_stream(str(file)),  # which sees by the name that it is compressed
            pj.ReadOptions(block_size=1 << 24),
            pj.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"),
        )
    frame = found.to_pandas(types_mapper=pd.ArrowDtype)
    frame = frame.drop_duplicates(["tenant_id", "event_id"])
    return total(frame.groupby(["tenant_id", "service"])["quantity"].sum().to_list())


def candidate(name: str, folder: Path, kind: str) -> dict[str, object]:
    """One run of a candidate: what it came to, how long it took, and the most memory it held."""
    if name.startswith("clawbill"):
        came_to, landed, metered = ours(folder, kind, LIMIT if LIMIT in name else None)
        took, parts = Took(landed.wall + metered.wall, landed.cpu + metered.cpu), [landed.wall, metered.wall]
    else:
        said: list[str] = []
        work: Callable[[Path, str], str] = bare if name == "DuckDB alone" else pandas_
        took, parts = timed(lambda: said.append(work(folder, kind))), []
        came_to = said[0]
    return {"sum": came_to, "wall": took.wall, "cpu": took.cpu, "peak": peak_megabytes(), "parts": parts}


CANDIDATES = ("DuckDB alone", "clawbill", f"clawbill, {LIMIT}", "pandas")


def one_hour(server: embedded.Server, folder: Path, kind: str, rounds: int) -> str:
    """(a), with the ratio to bare DuckDB. Raises where two candidates differ by a digit."""
    runs: dict[str, list[dict[str, float]]] = {}
    sums: set[object] = set()
    for number in range(rounds):
        for name in CANDIDATES:
            url = fresh(server, f"{kind.replace('.', '_')}_{number}_{CANDIDATES.index(name)}")
            said = json.loads(
                output_of(MODULE, "--candidate", name, "--folder", folder, "--kind", kind, env={"BENCHMARK_URL": url})
            )
            sums.add(said["sum"])
            runs.setdefault(name, []).append(said)
    assert len(sums) == 1, f"the candidates differ: {sums}"
    best = {name: min(of, key=lambda run: run["wall"]) for name, of in runs.items()}
    base = best["DuckDB alone"]
    return table(
        (KINDS[kind], "wall s", "landing", "metering", "cpu s", "x DuckDB wall", "x DuckDB cpu", "peak MB"),
        [
            (
                name,
                f"{run['wall']:.2f}",
                *([f"{part:.2f}" for part in run["parts"]] or ["", ""]),  # type: ignore[attr-defined]
                f"{run['cpu']:.2f}",
                f"{run['wall'] / base['wall']:.2f}",
                f"{run['cpu'] / base['cpu']:.2f}",
                f"{run['peak']:.0f}",
            )
            for name, run in best.items()
        ],
    )


def late(ledger: Ledger, folder: Path, events: int) -> str:
    """(b): the hour in full, then 1 % more of it, which comes late."""
    lake, logs = Lake(folder / "lake-late"), folder / "late"
    log_of(logs, "on time.jsonl", START, events)
    ledger.ensure_partitions([START])
    rows = []
    for name in ("the whole hour", "1 % more, late"):
        time.sleep(3)  # what was written just now is looked at again: its time can't tell that nothing followed
        landed = timed(lambda: landing(ledger, lake, logs, "jsonl"))
        metered = timed(lambda: metering(ledger, lake))
        rows.append((name, *(f"{took:.2f}" for took in (landed.wall, metered.wall, landed.cpu, metered.cpu))))
        log_of(logs, "too late.jsonl", START, max(events // 100, 1), first=events * 10)
    shutil.rmtree(logs)
    shutil.rmtree(lake.root)
    return table(("then", "landing s", "metering s", "landing cpu s", "metering cpu s"), rows)


def copied(ledger: Ledger, count: int = 300_000) -> str:
    """(c)."""
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        rows = db.sql(f"""
            SELECT i AS id, 'tenant-' || i AS tenant_id, 'service' AS service, now() AS hour,
                   i::DECIMAL(38, 12) AS quantity
            FROM range({count}) t(i)
        """).to_arrow_table()
    with ledger.transaction() as connection:
        connection.execute(
            text("CREATE TEMP TABLE held (id bigint, tenant_id text, service text, hour timestamptz, "
                 "quantity numeric(38, 12)) ON COMMIT DROP")
        )  # fmt: skip
        took = timed(lambda: copy_arrow(connection, "held", rows))
    return table(("COPY", "wall s", "rows/s"), [(f"{count:,} rows", f"{took.wall:.2f}", f"{count / took.wall:,.0f}")])


def month(ledger: Ledger, folder: Path, events: int, hours: int = 720) -> str:
    """(d): every hour of a month is landed and metered in turn; the cost of its first hours and of its last ones."""
    lake, logs = Lake(folder / "lake-month"), folder / "month"
    took = []
    for number in range(-_BEFORE, hours):
        hour = START + (number + _BEFORE) * HOUR
        log_of(logs, f"{hour:%Y-%m-%dT%H}.jsonl", hour, events, random_ids=True)
        ledger.ensure_partitions([hour])
        landed = timed(lambda at=hour: landing(ledger, lake, logs, "jsonl", at))  # type: ignore[misc]
        metered = timed(lambda at=hour: metering(ledger, lake, at))  # type: ignore[misc]
        (logs / f"{hour:%Y-%m-%dT%H}.jsonl").unlink()  # its landing stays known
        if number >= 0:
            took.append((landed, metered))

    def mean(part: list[tuple[Took, Took]]) -> list[str]:
        return [
            f"{sum(getattr(took[step], clock) for took in part) / len(part):.3f}"
            for clock in ("wall", "cpu")
            for step in (0, 1)
        ]

    day = min(24, max(hours // 3, 1))
    middle = max((hours - day) // 2, 0)
    parts = {"first": took[:day], "middle": took[middle : middle + day], "last": took[-day:]}
    shutil.rmtree(lake.root)
    shutil.rmtree(logs)
    return table(
        (f"{hours} hours × {events:,}", "landing s", "metering s", "landing cpu s", "metering cpu s"),
        [(f"the {name} {day} hours, each", *mean(part)) for name, part in parts.items()],
    )


def fresh(server: embedded.Server, name: str) -> str:
    """The URL of a new ledger without a row."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    migrate(server.url(name))
    return server.url(name)


@contextmanager
def place() -> Iterator[tuple[embedded.Server, Path]]:
    """A real server, and a folder for logs and lakes."""
    with tempfile.TemporaryDirectory(prefix="clawbill-benchmark-") as name:
        folder = Path(name)
        started = embedded.start(folder / "postgres")
        try:
            yield started, folder
        finally:
            embedded.stop(folder / "postgres")


def parts(given: argparse.Namespace) -> Iterator[str]:
    with place() as (server, folder):
        for kind in given.kinds.split(","):
            logs = folder / "hour" / kind / "logs"
            log_of(logs, f"hour.{kind}", START, given.events)
            yield one_hour(server, logs, kind, given.rounds)
            shutil.rmtree(logs)
        ledger = Ledger(fresh(server, "then"))
        yield late(ledger, folder, given.events)
        yield copied(ledger)
        ledger.dispose()
        if given.hours:
            ledger = Ledger(fresh(server, "month"))
            yield month(ledger, folder, given.month_events, given.hours)
            ledger.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest of each candidate is shown")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of files, such as jsonl,parquet")
    parser.add_argument("--month-events", type=int, default=10_000, help="a random-id event hour of the month")
    parser.add_argument("--hours", type=int, default=720, help="of the month; 0 leaves it out")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.candidate:
        print(json.dumps(candidate(given.candidate, given.folder, given.kind)))  # noqa: T201
        return
    for part in parts(given):
        sys.stdout.write(part + "\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
