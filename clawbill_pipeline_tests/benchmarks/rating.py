"""Rating: through HTTP, vectorised, and the memory that both take, with baselines in the same run.

``python -m clawbill_pipeline_tests.benchmarks.rating [--rows 10000000] [--requests 100000] [--rounds 3]``. Candidates
take turns and medians count, of wall time and of this process's processor time, which says more on a busy machine.

(a) HTTP: the same bodies, against the rating server with one and with two worker processes, by bare aiohttp, by bare
httpx on its aiohttp transport (neither parses nor stores), by our client (which parses and checks every answer), and
by the whole station (which reads due rows from PostgreSQL and books the answers there).
(b) Vectorised: graduated tiers, against the scalar path over a sample, scaled to all rows, and against DuckDB's own
arithmetic: a range join with ``base + (quantity - from) * price``. Every row is compared. The scalar path is shown
three times: the engine (what a row costs that is rated by itself), the leanest Decimal loop that reads rows from a
table and writes amounts into one, as the others do, and that loop's arithmetic alone, over rows that lie ready as
Python objects: DuckDB's own arithmetic on one core is but eight times as fast as that, so nothing in it can be twelve.
(c) Memory: the peak of a process that rates, at half of the rows and at all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from functools import partial
from pathlib import Path

import aiohttp
import duckdb
import httpx
import pyarrow as pa
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr, TypeAdapter
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.catalog.prices import Graduated, Price
from clawbill_pipeline.duck import duck
from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.money import EXACT
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating import station
from clawbill_pipeline.rating.asking import Asker
from clawbill_pipeline.rating.engine import rate
from clawbill_pipeline.rating.vectorised import Priced, rated
from clawbill_pipeline_tests.benchmarks.common import (
    Took,
    cpu_seconds,
    output_of,
    peak_megabytes,
    table,
    taking_turns,
)

TOKEN = "benchmark"
TENANTS = 1_000
CONCURRENCY = 32
START = datetime(2026, 1, 1, tzinfo=UTC)
TIERS = '[{up_to: 1000, unit_amount: "0.001"}, {up_to: 10000, unit_amount: "0.0005"}, {unit_amount: "0.0002"}]'
CATALOG = f"""
start: 2026-01-01T00:00:00Z
rating: {{concurrency: {CONCURRENCY}}}
services: {{requests: {{unit: request}}}}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {{requests: {{model: graduated, tiers: {TIERS}}}}}
tenants:
{"".join(f"  tenant-{number}: {{rate_card: standard}}{chr(10)}" for number in range(TENANTS))}"""


# --- (a) through HTTP ----------------------------------------------------------------------------------------------


def quantity(row: int) -> Decimal:
    return Decimal(row * 7919 % 20_000_000) / 1000


def tenant(row: int) -> str:
    return f"tenant-{row % TENANTS}"


@dataclass(frozen=True)
class Server:
    """A rating server with its processes' ids."""

    url: str
    pids: tuple[int, ...]


@contextmanager
def serving(folder: Path, workers: int) -> Iterator[Server]:
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "clawbill_pipeline.sandbox.openclaw", "--port", "0", "--workers", str(workers)]
    command += ["--state", str(folder / f"openclaw-{workers}"), "--catalog", str(folder / "catalog.yaml")]
    with (folder / "openclaw.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--port-file", str(port_file)], env={**os.environ, "OPENCLAW_TOKEN": TOKEN}, stderr=log
        )
    try:
        while not port_file.exists():
            if process.poll() is not None:
                raise RuntimeError((folder / "openclaw.log").read_text())
            time.sleep(0.05)
        yield Server(f"http://127.0.0.1:{int(port_file.read_text())}", (process.pid, *_children(process.pid)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # no Linux
        return []


async def pump(rows: int, send: Callable[[int], Awaitable[object]]) -> None:
    """``send`` for every row, ``CONCURRENCY`` at a time."""
    waiting = iter(range(rows))

    async def worker() -> None:
        for row in waiting:
            await send(row)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


async def by_aiohttp(url: str, bodies: list[bytes], headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as http:

        async def send(row: int) -> None:
            async with http.post(f"{url}/rating", data=bodies[row], headers=headers) as answer:
                await answer.read()
                assert answer.status == 200

        await pump(len(bodies), send)


async def by_httpx(url: str, bodies: list[bytes], headers: dict[str, str]) -> None:
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, transport=AiohttpTransport(limits=limits), trust_env=False
    ) as http:

        async def send(row: int) -> None:
            answer = await http.post("/rating", content=bodies[row])
            assert answer.status_code == 200

        await pump(len(bodies), send)


async def by_client(url: str, rows: int) -> Decimal:
    """The sum of what is answered."""
    async with OpenClaw(url, SecretStr(TOKEN), concurrency=CONCURRENCY).session() as session:
        asker = Asker(session, attempts=1, concurrency=CONCURRENCY)
        amounts: list[Decimal] = []

        async def send(row: int) -> None:
            amounts.append((await asker.rate(tenant(row), "requests", quantity(row), "USD")).amount)

        await pump(rows, send)
        return exact_sum(amounts)


def exact_sum(amounts: list[Decimal]) -> Decimal:
    with localcontext(EXACT):
        return sum(amounts, Decimal(0))


def hours_of(rows: int) -> int:
    return -(-rows // TENANTS)


def meter(ledger: Ledger, first: datetime, rows: int) -> None:
    """Metered usage of ``rows`` rows in the hours from ``first`` on."""
    hours = [first + timedelta(hours=hour) for hour in range(hours_of(rows))]
    ledger.ensure_partitions(hours)
    with ledger.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity,"
                " events, reason, metered_at, run_id) VALUES (:at, :tenant, 'requests', '', :at, 1, :quantity, 1,"
                " 'first', :at, 'benchmark')"
            ),
            [{"at": hours[row // TENANTS], "tenant": tenant(row), "quantity": quantity(row)} for row in range(rows)],
        )


def by_station(ledger: Ledger, catalog: Catalog, url: str, first: datetime, rows: int) -> Decimal:
    """Rates what ``meter`` made; the sum of what was booked."""
    done = station.rate(
        ledger,
        catalog,
        OpenClaw(url, SecretStr(TOKEN), concurrency=CONCURRENCY),
        start=first,
        end=first + timedelta(hours=hours_of(rows)),
        now=START + timedelta(days=3650),
        run_id="benchmark",
    )
    if done.booked != rows:
        raise SystemExit(f"{done.booked} of {rows} rows were booked: {done}")
    return done.amounts["USD"]


@contextmanager
def ledger_in(folder: Path) -> Iterator[tuple[Ledger, str]]:
    """A ledger in a server of its own, with its URL."""
    server = embedded.start(folder / "postgres")
    try:
        migrate(server.url())
        ledger = Ledger(server.url())
        yield ledger, server.url()
        ledger.dispose()
    finally:
        embedded.stop(folder / "postgres")
        if (home := folder / "postgres" / "home").exists():
            shutil.rmtree(home.read_text())


def _run(work: Callable[..., Coroutine[object, object, object]], *arguments: object) -> None:
    asyncio.run(work(*arguments))


def http(rows: int, rounds: int, ledger: Ledger, folder: Path) -> str:
    """The table of (a)."""
    catalog = load(folder / "catalog.yaml")
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    bodies = [
        f'{{"tenant_id":"{tenant(row)}","service":"requests","quantity":{quantity(row)}}}'.encode()
        for row in range(rows)
    ]
    price = catalog.rate_cards["standard"].versions[0].prices["requests"]
    expected = exact_sum([rate(price, quantity(row)).amount for row in range(rows)])
    spans = [START + number * timedelta(hours=hours_of(rows)) for number in range(2 * rounds)]
    for span in spans:
        meter(ledger, span, rows)
    lines = []
    for workers in (1, 2):
        with serving(folder, workers) as server:
            url, sums = server.url, list[Decimal]()
            candidates: dict[str, Callable[[], object]] = {
                "bare aiohttp": partial(_run, by_aiohttp, url, bodies, headers),
                "bare httpx on aiohttp": partial(_run, by_httpx, url, bodies, headers),
                "our client": lambda url=url, sums=sums: sums.append(asyncio.run(by_client(url, rows))),
                "the station": lambda url=url, sums=sums: sums.append(
                    by_station(ledger, catalog, url, spans.pop(), rows)
                ),
            }
            asyncio.run(by_aiohttp(url, bodies[: rows // 10], headers))  # warm
            before = cpu_seconds(server.pids)
            took = taking_turns(candidates, rounds)
            served = (cpu_seconds(server.pids) - before) / (rows * rounds * len(candidates))
        if set(sums) != {expected}:
            raise SystemExit(f"the sums differ: {sums} instead of {expected}")
        for name, each in took.items():
            lines.append(
                (
                    f"{name}, {workers} worker{'s' * (workers > 1)}", f"{rows / each.wall:,.0f}",
                    f"{each.cpu / rows * 1e6:,.0f}", f"{took['bare httpx on aiohttp'].wall / each.wall:.2f}",
                    f"{took['bare aiohttp'].wall / each.wall:.2f}",
                    f"{took['bare httpx on aiohttp'].cpu / each.cpu:.2f}", f"{served * 1e6:,.0f}",
                )
            )  # fmt: skip
    head = ("through HTTP", "rows/s", "CPU µs/row", "× httpx", "× aiohttp", "× httpx CPU", "server CPU µs")
    return table(head, lines)


# --- (b) vectorised ------------------------------------------------------------------------------------------------

CARDS: dict[str, Graduated] = {
    f"card-{number}": TypeAdapter(Price).validate_python(
        {
            "model": "graduated",
            "tiers": [
                {"up_to": up_to, "unit_amount": str(Decimal(number + 1).scaleb(-3 - tier))}
                for tier, up_to in enumerate((1_000, 10_000, 100_000, None))
            ],
        }
    )
    for number in range(8)
}
USAGE = """
SELECT i AS row, 'card-' || (i % 8) AS price,
       ((hash(i) % 200000000000 + 1)::DECIMAL(38, 12) / 1000000)::DECIMAL(38, 12) AS quantity
FROM range({rows}) AS r(i)
"""
#: What one would write by hand for these very prices.
BARE = """
SELECT u.row, (t.base + (u.quantity - t.above) * t.unit)::DECIMAL(38, 20) AS amount
FROM usage AS u JOIN tiers AS t ON u.price = t.price AND u.quantity > t.above AND u.quantity <= t.up_to
"""
LARGEST = Decimal(10) ** 12


def tiers_of(price: Graduated) -> list[tuple[Decimal, Decimal, Decimal, Decimal]]:
    """``(above, up_to, base, unit)`` of every tier: an amount is ``base + (quantity - above) * unit``."""
    found, above, base = [], Decimal(0), Decimal(0)
    for tier in price.tiers:
        up_to = tier.up_to or LARGEST
        found.append((above, up_to, base, tier.unit_amount))
        above, base = up_to, base + (up_to - above) * tier.unit_amount
    return found


def bare_loop(sample: list[tuple[str, Decimal]]) -> list[Decimal]:
    """The leanest exact loop over these very prices: nothing is checked or explained."""
    tables = {name: tiers_of(card) for name, card in CARDS.items()}
    bounds = {name: [up_to for _, up_to, _, _ in rows] for name, rows in tables.items()}
    amounts = []
    for name, units in sample:
        above, _, base, unit = tables[name][bisect_left(bounds[name], units)]
        amounts.append(base + (units - above) * unit)
    return amounts


def read_and_kept(db: duckdb.DuckDBPyConnection, sample: int) -> None:
    """``bare_loop`` from a table to a table."""
    rows = db.sql(f"SELECT row, price, quantity FROM usage ORDER BY row LIMIT {sample}").fetchall()
    amounts = bare_loop([(price, units) for _, price, units in rows])
    kept = pa.table({"row": [row for row, _, _ in rows], "amount": pa.array(amounts, pa.decimal128(38, 20))})
    db.register("kept", kept)
    db.execute("CREATE OR REPLACE TABLE by_loop AS FROM kept")
    db.unregister("kept")


def fill(db: duckdb.DuckDBPyConnection, rows: int) -> None:
    db.execute("CREATE TABLE usage AS " + USAGE.format(rows=rows))
    db.execute(
        "CREATE TABLE tiers (price VARCHAR, above DECIMAL(38, 12), up_to DECIMAL(38, 12), base DECIMAL(38, 20),"
        " unit DECIMAL(38, 8))"
    )
    rows_of = [(name, *tier) for name, card in CARDS.items() for tier in tiers_of(card)]
    db.executemany("INSERT INTO tiers VALUES (?, ?, ?, ?, ?)", rows_of)


def vectorised(rows: int, sample: int, rounds: int) -> str:
    """The table of (b). Raises SystemExit where one row differs."""
    prices = {name: Priced(card) for name, card in CARDS.items()}
    with duck() as db:
        fill(db, rows)
        some = db.sql(f"SELECT price, quantity FROM usage ORDER BY row LIMIT {sample}").fetchall()

        def ours() -> None:
            with rated(db, "FROM usage", prices) as view:
                db.execute(f"CREATE OR REPLACE TABLE ours AS SELECT row, amount, error FROM {view}")

        def by_engine() -> list[Decimal]:
            return [rate(CARDS[name], units).amount for name, units in some]

        ours()  # what is imported and compiled once is not counted
        took = taking_turns(
            {
                "vectorised": ours,
                "bare DuckDB range join": lambda: db.execute(f"CREATE OR REPLACE TABLE bare AS {BARE}"),
                "the engine, row by row": by_engine,
                "Decimal loop, read and kept": lambda: read_and_kept(db, sample),
                "Decimal loop, arithmetic alone": lambda: bare_loop(some),
            },
            rounds,
        )
        for name in list(took)[2:]:
            took[name] = Took(took[name].wall * rows / len(some), took[name].cpu * rows / len(some))
        ((equal,),) = db.sql(
            "SELECT count(*) FROM ours JOIN bare USING (row) WHERE ours.amount = bare.amount"
        ).fetchall()
        found = [amount for (amount,) in db.sql(f"SELECT amount FROM ours ORDER BY row LIMIT {sample}").fetchall()]
        if equal != rows or not found == by_engine() == bare_loop(some):
            raise SystemExit(f"{equal} of {rows} rows agree with DuckDB, or the sample not with the engine")
    lines = [
        (
            name, f"{each.wall:,.2f}", f"{each.cpu:,.2f}", f"{each.cpu / rows * 1e6:,.3f}",
            f"{each.wall / took['vectorised'].wall:,.2f}", f"{each.cpu / took['vectorised'].cpu:,.2f}",
        )
        for name, each in took.items()
    ]  # fmt: skip
    note = f"{rows:,} rows, all equal; loops over {len(some):,} of them, scaled"
    return table((note, "wall s", "CPU s", "CPU µs/row", "× vectorised", "× its CPU"), lines)


# --- (c) memory ----------------------------------------------------------------------------------------------------


def vectorised_in_flow(rows: int) -> None:
    """Rates usage that is made as it is rated, as it would be read out of a file."""
    prices = {name: Priced(card) for name, card in CARDS.items()}
    with duck() as db, rated(db, USAGE.format(rows=rows), prices) as view:
        ((amounts, errors, _),) = db.sql(f"SELECT count(amount), count(error), sum(amount) FROM {view}").fetchall()
    if (amounts, errors) != (rows, 0):
        raise SystemExit(f"{amounts} of {rows} rows have an amount")


def memory(rows: int, requests: int, ledger: Ledger, ledger_url: str, folder: Path) -> str:
    """The table of (c): each number is the peak of a process of its own."""
    lines = []

    def line(name: str, few: float, many: float) -> None:
        lines.append((name, f"{few:,.0f}", f"{many:,.0f}", f"{many / few:.2f}"))

    line("vectorised", *(_peak("vectorised", "--rows", count) for count in (rows // 2, rows)))
    with serving(folder, 1) as server:
        peaks = []
        for count, year in ((requests // 2, 2030), (requests, 2031)):
            meter(ledger, START.replace(year=year), count)
            given = ("--database", ledger_url, "--openclaw", server.url, "--folder", folder, "--year", year)
            peaks.append(_peak("station", "--requests", count, *given))
        line("the station", *peaks)
    return table(("peak memory, MB", "half of the rows", "all", "ratio"), lines)


def _peak(of: str, *options: object) -> float:
    return float(output_of("clawbill_pipeline_tests.benchmarks.rating", "--peak", of, *options))


def print_peak(given: argparse.Namespace) -> None:
    """In the process that is measured: rates, and prints its peak in MB."""
    if given.peak == "vectorised":
        vectorised_in_flow(given.rows)
    else:
        ledger = Ledger(given.database)
        catalog = load(Path(given.folder) / "catalog.yaml")
        by_station(ledger, catalog, given.openclaw, START.replace(year=given.year), given.requests)
        ledger.dispose()
    print(peak_megabytes())  # noqa: T201


# --- the command ---------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of (b) and (c)")
    parser.add_argument("--requests", type=int, default=100_000, help="of (a) and (c)")
    parser.add_argument("--sample", type=int, default=100_000, help="rows that loops in Python go through")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("http", "vectorised", "memory"))
    inner = parser.add_argument_group("the processes of (c)")
    inner.add_argument("--peak", choices=("vectorised", "station"), help=argparse.SUPPRESS)
    for name in ("--database", "--openclaw", "--folder"):
        inner.add_argument(name, help=argparse.SUPPRESS)
    inner.add_argument("--year", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.peak:
        print_peak(given)
        return
    folder = Path(tempfile.mkdtemp(prefix="clawbill-benchmark-"))
    try:
        (folder / "catalog.yaml").write_text(CATALOG)
        if given.only in (None, "vectorised"):
            print(vectorised(given.rows, min(given.sample, given.rows), given.rounds), flush=True)  # noqa: T201
        if given.only in (None, "http", "memory"):
            with ledger_in(folder) as (ledger, url):
                if given.only != "memory":
                    print(f"\n{http(given.requests, given.rounds, ledger, folder)}", flush=True)  # noqa: T201
                if given.only != "http":
                    print(f"\n{memory(given.rows, given.requests, ledger, url, folder)}")  # noqa: T201
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
