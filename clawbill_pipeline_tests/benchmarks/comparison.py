"""The comparison of metered with rated usage, classified, against a bare outer join in DuckDB and against pandas.

``python -m clawbill_pipeline_tests.benchmarks.comparison [--rows 5000000] [--no-pandas]``: both sides have that many
rows, of which one in a thousand is missing on the right and one in a thousand differs. Rounds take turns; medians
count, of wall time and of processor time, which says more on a busy machine. Also timed: the comparison of all five
steps, which sums four tables by hour and joins what differs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import duckdb

from clawbill_pipeline.catalog import Calendar
from clawbill_pipeline.duck import duck
from clawbill_pipeline.reconciliation import hourly

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
    db.execute("CREATE TABLE hours AS SELECT DISTINCT hour, 1 AS landed, hour AS landed_at, 1 AS counted FROM metered")
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


def with_pandas(frames: tuple[Any, Any]) -> int:
    left, right = frames
    merged = left.merge(right, on=list(KEY), how="outer", suffixes=("", "_rated"), indicator=True)
    return int(((merged["_merge"] != "both") | (merged["quantity"] != merged["quantity_rated"])).sum())


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """``((wall, processor seconds of all threads), result)``."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - start, time.process_time() - used), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-pandas", action="store_true")
    asked = parser.parse_args()
    with duck() as db:
        fill(db, asked.rows)
        works: dict[str, Callable[[], Any]] = {
            "bare join and count": lambda: bare(db),
            "classified": lambda: classified(db),
            "all five steps": lambda: five_steps(db),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        results: dict[str, Any] = {}
        for _ in range(asked.rounds):
            for name, work in works.items():
                seconds, results[name] = timed(work)
                times[name].append(seconds)
        assert sum(results["bare join and count"]) == results["classified"], results
        if not asked.no_pandas:
            # Floats, which pandas merges fastest: it has no fast exact decimal.
            query = f"SELECT {', '.join(KEY)}, CAST(quantity AS DOUBLE) AS quantity FROM"
            frames = db.sql(f"{query} metered").df(), db.sql(f"{query} rated").df()
            seconds, found = timed(lambda: with_pandas(frames))
            assert found == results["classified"]
            times["pandas outer merge"] = [seconds]
    print(f"{asked.rows:,} x {asked.rows:,} rows, {results['classified']:,} differences")  # noqa: T201
    medians = {name: [statistics.median(clock) for clock in zip(*of, strict=True)] for name, of in times.items()}
    wall_bare, used_bare = medians["bare join and count"]
    for name, (wall, used) in medians.items():
        shown = f"{wall:7.2f} s {wall / wall_bare:6.2f} x bare    {used:7.2f} s of processor {used / used_bare:6.2f} x"
        print(f"{name:22} {shown}")  # noqa: T201


if __name__ == "__main__":
    main()
