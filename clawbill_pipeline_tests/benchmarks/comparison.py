"""The comparison of metered with rated usage, classified, against a bare outer join in DuckDB and against pandas.

``python -m clawbill_pipeline_tests.benchmarks.comparison [--rows 5000000] [--no-pandas]``: both sides have that many
rows, of which one in a thousand is missing on the right and one in a thousand differs. pandas merges twice: with exact
decimals, as we do, and with floats, which no amount of money may be compared by. Rounds take turns; medians count, of
wall time and of processor time, which says more on a busy machine. Also timed: the same with the reports of what was
found written, and the comparison of all five steps, which sums four tables by hour and joins what differs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from clawbill_pipeline.catalog import Calendar
from clawbill_pipeline.duck import duck
from clawbill_pipeline.ledger.waterfall import Step
from clawbill_pipeline.reconciliation import hourly
from clawbill_pipeline.reporting.render import FILES
from clawbill_pipeline.reporting.report import Break, Report
from clawbill_pipeline_tests.benchmarks.common import Took, table, taking_turns, timed

KEY = ("hour", "tenant_id", "service", "dimensions", "window_start")
NOW = datetime(2026, 11, 4, tzinfo=UTC)


def fill(db: duckdb.DuckDBPyConnection, rows: int) -> None:
    """The books of a month of ``rows`` windows, as ``read_books`` leaves them."""
    db.execute(f"""
        CREATE TABLE metered AS
        SELECT TIMESTAMPTZ '2026-10-01 00:00:00+00' + INTERVAL (i % 744) HOUR AS hour,
          'tenant-' || (i // 744 // 6) AS tenant_id, 'service.' || (i // 744 % 6) AS service, '' AS dimensions,
          hour AS window_start, 1 AS revision, CAST(i % 1000 + 1 AS DECIMAL(38, 12)) AS quantity,
          CAST(3 AS BIGINT) AS events
        FROM range({rows}) t(i)""")
    db.execute("""
        CREATE TABLE rated AS
        SELECT hour, tenant_id, service, dimensions, window_start,
          CASE WHEN hash(tenant_id, service, hour) % 1000 = 0 THEN quantity - 1 ELSE quantity END AS quantity,
          CAST(quantity * 2 / 1000 AS DECIMAL(38, 12)) AS amount, 'USD' AS currency,
          hour + INTERVAL 1 HOUR AS rated_at
        FROM metered WHERE hash(hour, tenant_id, service, 1) % 1000 <> 0""")
    db.execute("""
        CREATE TABLE failures (hour TIMESTAMPTZ, tenant_id VARCHAR, service VARCHAR, dimensions VARCHAR,
          window_start TIMESTAMPTZ, metered_revision INTEGER, kind VARCHAR, error VARCHAR)""")
    db.execute("CREATE TABLE events AS SELECT hour, tenant_id, service, events, quantity FROM metered")
    db.execute("""
        CREATE TABLE records AS
        SELECT hour, tenant_id, service, CAST(amount * 1000000 AS DECIMAL(38, 12)) AS units, units AS exact_units,
          'delivered' AS state, NULL::VARCHAR AS parked, NULL::VARCHAR AS error, units AS delivered,
          units AS delivered_by_final, rated_at AS settled_at, '' AS "values"
        FROM rated""")
    db.execute("CREATE TABLE tenants AS SELECT DISTINCT tenant_id FROM metered")
    db.execute("CREATE TABLE services AS SELECT DISTINCT service, true AS by_amount, 1000000 AS scale FROM metered")
    db.execute(
        "CREATE TABLE hours AS SELECT DISTINCT hour, 1 AS landed, hour AS landed_at, 1 AS counted,"
        " NULL::VARCHAR AS shards FROM metered"
    )
    db.execute("CREATE TABLE mapped AS SELECT DISTINCT tenant_id, service FROM metered")
    db.execute("CREATE TABLE finals (tenant_id VARCHAR, service VARCHAR, finalized_at TIMESTAMPTZ)")


def bare(db: duckdb.DuckDBPyConnection) -> tuple[int, ...]:
    """What a bare join counts: missing left, missing right, different."""
    same = " AND ".join(f"r.{name} = m.{name}" for name in KEY)
    (counts,) = db.execute(
        "SELECT count(*) FILTER (m.tenant_id IS NULL), count(*) FILTER (r.tenant_id IS NULL),"
        f" count(*) FILTER (m.quantity <> r.quantity) FROM metered m FULL JOIN rated r ON {same}"
    ).fetchall()
    return tuple(counts)


def classified(db: duckdb.DuckDBPyConnection) -> int:
    """The project's own comparison of the same two tables: each row with its difference and cause."""
    db.execute("DROP TABLE IF EXISTS metered_rated")
    db.execute(hourly._METERED_RATED)
    (row,) = db.execute("SELECT count(*) FROM metered_rated").fetchall()
    return int(row[0])


def five_steps(db: duckdb.DuckDBPyConnection) -> int:
    """Raw events, metered, rated, planned and sent, all compared."""
    for name in ("metered_rated", "hourly"):
        db.execute(f"DROP TABLE IF EXISTS {name}")
    return sum(1 for _ in hourly.compare_hours(db, Calendar(), NOW))


def with_files(db: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """The comparison with its reports: workbook, page and CSV of every difference and of each tenant's sums."""
    found = classified(db)
    breaks = tuple(
        Break(tenant, service, hour, "metered_rated", cause, "USD", quantity, quantity, detail, NOW, NOW, None)
        for tenant, service, hour, cause, quantity, detail in db.execute(_FOUND).fetchall()
    )
    steps = tuple(
        Step(tenant, service, "USD", "amount", metered, amount, amount)
        for tenant, service, metered, amount in db.execute(_SUMS).fetchall()
    )
    report = Report("2026-10", 1, NOW, steps, breaks, (), (), ())
    for name, make in FILES.items():
        (folder / name).write_bytes(make(report))
    return found


_FOUND = """
SELECT tenant_id, service, hour, cause, CAST(rated - metered AS DECIMAL(38, 12)), detail FROM metered_rated
ORDER BY tenant_id, service, hour"""
_SUMS = """
SELECT tenant_id, service, CAST(m.metered AS DECIMAL(38, 12)), CAST(r.amount AS DECIMAL(38, 12))
FROM (SELECT tenant_id, service, sum(quantity) AS metered FROM metered GROUP BY ALL) m
LEFT JOIN (SELECT tenant_id, service, sum(amount) AS amount FROM rated GROUP BY ALL) r USING (tenant_id, service)
ORDER BY ALL"""


def frame(db: duckdb.DuckDBPyConnection, name: str, exact: bool) -> Any:
    """A table as pandas has it: with Decimal, which is what money is compared by, or with floats, which are faster."""
    kind = "quantity" if exact else "CAST(quantity AS DOUBLE) AS quantity"
    return db.sql(f"SELECT {', '.join(KEY)}, {kind} FROM {name}").to_arrow_table().to_pandas()


def with_pandas(frames: tuple[Any, Any]) -> int:
    """The outer merge and the count alone, without causes."""
    left, right = frames
    merged = left.merge(right, on=list(KEY), how="outer", suffixes=("", "_rated"), indicator=True)
    return int(((merged["_merge"] != "both") | (merged["quantity"] != merged["quantity_rated"])).sum())


@dataclass(frozen=True)
class Measured:
    """How long each candidate took, the median of its rounds, and how many differences all of them found."""

    times: dict[str, Took]
    differences: int


def measure(rows: int, rounds: int, *, pandas: bool = True) -> Measured:
    """Runs the candidates in turns; raises AssertionError where two of them don't find the same."""
    results: dict[str, int] = {}
    with duck() as db, tempfile.TemporaryDirectory(prefix="clawbill-files-") as folder:
        fill(db, rows)
        works: dict[str, Callable[[], int]] = {
            "bare join and count": lambda: sum(bare(db)),
            "classified": lambda: classified(db),
            "classified, all files written": lambda: with_files(db, Path(folder)),
            "all five steps": lambda: five_steps(db),
        }

        def kept(name: str, work: Callable[[], int]) -> None:
            results[name] = work()

        times = taking_turns({name: partial(kept, name, work) for name, work in works.items()}, rounds)
        if pandas:
            for name, exact in (("pandas outer merge, exact", True), ("pandas outer merge, floats", False)):
                frames = frame(db, "metered", exact), frame(db, "rated", exact)
                times[name] = timed(partial(kept, name, partial(with_pandas, frames)))
    differences = results["classified"]
    assert {name: found for name, found in results.items() if found != differences} == {}
    return Measured(times, differences)


def told(rows: int, found: Measured) -> str:
    """The measurement as a table; the ratios are to the bare join."""
    base = found.times["bare join and count"]
    shown = [
        (name, f"{took.wall:.2f}", f"{took.wall / base.wall:.2f}", f"{took.cpu:.2f}", f"{took.cpu / base.cpu:.2f}")
        for name, took in found.times.items()
    ]
    head = ("", "wall, s", "x bare", "processor, s", "x bare")
    return f"{rows:,} x {rows:,} rows, {found.differences:,} differences\n{table(head, shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-pandas", action="store_true")
    asked = parser.parse_args()
    print(told(asked.rows, measure(asked.rows, asked.rounds, pandas=not asked.no_pandas)))  # noqa: T201


if __name__ == "__main__":
    main()
