"""Usage over HTTP against a bare Starlette route that inserts the same rows: requests and events a second.

``python -m clawbill_pipeline_tests.benchmarks.ingest [--rounds 5] [--concurrency 16] [--batches 1 100 1000]``: each
server on one core, the client and PostgreSQL on the others; rounds take turns, and the median counts. The bare route
reads the JSON, compares the token, and inserts the request, compressed, over a pool of connections; it looks at no
event. Ours judges each one. Every request is new, and all are there at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvicorn
import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.ledger.tables import SCHEMA
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.usage.tokens import add_token
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.server import listening
from clawbill_pipeline_tests.benchmarks.common import cpu_seconds, table

CATALOGUE = """
version: 1
start: 2026-01-01T00:00:00Z
sources: [{name: posted, kind: http}]
services:
  tokens.input: {unit: token, dimensions: [provider, model]}
  api.requests: {unit: request}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens.input: {model: per_unit, unit_amount: "1"}, api.requests: {model: per_unit, unit_amount: "1"}}
"""
BATCH = "application/cloudevents-batch+json"
#: Requests of a round, by events a request.
REQUESTS = {1: 2_000, 10: 1_000, 100: 300, 1000: 60}


@dataclass(frozen=True)
class Given:
    """What a server is started with."""

    url: str
    dsn: str
    token: str
    state: Path


def bare(given: Given) -> Starlette:
    """What one would write first."""
    pool: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for _ in range(8):
            pool.put_nowait(await psycopg.AsyncConnection.connect(given.dsn, autocommit=True))
        yield

    async def usage(request: Request) -> Response:
        if request.headers["authorization"] != f"Bearer {given.token}":
            return JSONResponse({}, 401)
        body = await request.body()
        events = json.loads(body)
        connection = await pool.get()
        try:
            await connection.execute(
                f"INSERT INTO {SCHEMA}.ingest_requests (source, sha256, token, events, body, received_at)"
                " VALUES ('posted', %s, 'bare', %s, %b, %s) ON CONFLICT (source, sha256) DO NOTHING",
                (hashlib.sha256(body).hexdigest(), len(events), zstandard.compress(body, 1), datetime.now(UTC)),
            )
        finally:
            pool.put_nowait(connection)
        return JSONResponse({"accepted": len(events)})

    return Starlette(routes=[Route("/usage", usage, methods=["POST"])], lifespan=lifespan)


def ours(given: Given) -> Starlette:
    """The web app as it is served."""
    return create_app(Settings(state=given.state), Ledger(given.url), live=False)


def serve(make: Callable[[Given], Starlette], given: Given, core: int | None, tell: Connection) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    with listening("127.0.0.1", 0) as listener:
        tell.send(listener.getsockname()[1])
        config = uvicorn.Config(make(given), log_level="warning", access_log=False, proxy_headers=False)
        uvicorn.Server(config).run(sockets=[listener])


def bodies(name: str, requests: int, batch: int) -> list[bytes]:
    """Batches of events of some 300 bytes, each unlike all others."""
    time_of = "2026-01-01T{:02}:{:02}:{:02}Z"
    return [
        json.dumps(
            [
                {
                    "specversion": "1.0",
                    "id": f"{name}-{number}-{index}",
                    "source": "/gateway/eu-1",
                    "type": "tokens.input" if index % 2 else "api.requests",
                    "subject": f"tenant-{(number * batch + index) % 5000:04}",
                    "time": time_of.format(number % 24, index // 60 % 60, index % 60),
                    "data": {"quantity": 1 + index % 977, "provider": "mockai", "model": "mock-large"},
                }
                for index in range(batch)
            ]
        ).encode()
        for number in range(requests)
    ]


@dataclass(frozen=True)
class Round:
    """``requests`` a second, ``cpu`` microseconds of the server an event, ``p50`` and ``p99`` in milliseconds."""

    requests: float
    cpu: float
    p50: float
    p99: float


async def load(port: int, pid: int | None, given: Given, sent: Sequence[bytes], batch: int, concurrency: int) -> Round:
    """Sends every body once and demands that each was accepted."""
    waiting = iter(sent)
    took: list[float] = []
    headers = {"Authorization": f"Bearer {given.token}", "Content-Type": BATCH}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session:

        async def send() -> None:
            for body in waiting:
                start = time.perf_counter()
                async with session.post("/usage", data=body) as answer:
                    said = await answer.text()
                    if answer.status != 200 or json.loads(said)["accepted"] != batch:
                        raise SystemExit(f"{answer.status}: {said[:500]}")
                took.append(time.perf_counter() - start)

        start, used = time.perf_counter(), cpu_seconds([pid] if pid else [])
        await asyncio.gather(*(send() for _ in range(concurrency)))
        seconds = time.perf_counter() - start
        used = cpu_seconds([pid] if pid else []) - used
    cuts = statistics.quantiles(took, n=100)
    return Round(len(sent) / seconds, used / len(sent) / batch * 1e6, cuts[49] * 1000, cuts[98] * 1000)


def median(rounds: Sequence[Round]) -> Round:
    names = ("requests", "cpu", "p50", "p99")
    return Round(*(statistics.median(getattr(each, name) for each in rounds) for name in names))


def measure(
    url: str, dsn: str, folder: Path, *, requests: dict[int, int], rounds: int, concurrency: int
) -> dict[int, dict[str, Round]]:
    """Per events a request, the median round of ``bare`` and of ``ours``. Raises SystemExit where a row is missing."""
    (folder / "catalog.yaml").write_text(CATALOGUE)
    ledger = Ledger(url)
    token = add_token(ledger, "benchmark", tenants=None, services=None, now=datetime.now(UTC), by="benchmark")
    ledger.dispose()
    given = Given(url, dsn, token, folder)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core = cores[-1] if len(cores) > 1 else None
    if core is not None:
        os.sched_setaffinity(0, set(cores) - {core})
    context = multiprocessing.get_context("spawn")
    servers: dict[str, tuple[int, Any]] = {}
    try:
        for name, make in (("bare", bare), ("ours", ours)):
            hear, tell = context.Pipe(duplex=False)
            process = context.Process(target=serve, args=(make, given, core, tell))
            process.start()
            servers[name] = (hear.recv(), process)
        for name, (port, _) in servers.items():
            asyncio.run(load(port, None, given, bodies(f"warm-{name}", 50, 1), 1, 4))
        found: dict[int, dict[str, Round]] = {}
        for batch, count in requests.items():
            samples: dict[str, list[Round]] = {name: [] for name in servers}
            for number in range(rounds):
                for name, (port, process) in servers.items():
                    sent = bodies(f"{name}-{batch}-{number}", count, batch)
                    samples[name].append(asyncio.run(load(port, process.pid, given, sent, batch, concurrency)))
            found[batch] = {name: median(each) for name, each in samples.items()}
    finally:
        for _, process in servers.values():
            process.terminate()
            process.join()
        if core is not None:
            os.sched_setaffinity(0, set(cores))
    events = 2 * (50 + sum(rounds * count * batch for batch, count in requests.items()))
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"SELECT sum(events) FROM {SCHEMA}.ingest_requests").fetchone()
    if row != (events,):
        raise SystemExit(f"{events} events were sent and {row} are there")
    return found


def shown(found: dict[int, dict[str, Round]]) -> str:
    """The table. ``of bare`` is ours in requests a second over bare's."""
    rows = []
    for batch, both in found.items():
        for name, each in both.items():
            ratio = f"{each.requests / both['bare'].requests:.2f}"
            cells = (f"{each.requests:,.0f}", f"{each.requests * batch:,.0f}", f"{each.cpu:.1f}")
            rows.append((name, f"{batch:,}", *cells, f"{each.p50:.1f}", f"{each.p99:.1f}", ratio))
    head = ("", "events a request", "requests/s", "events/s", "server µs/event", "p50 ms", "p99 ms", "of bare")
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 1000], choices=sorted(REQUESTS))
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="clawbill-benchmark-"))
    try:
        server = embedded.start(folder / "postgres")
        migrate(server.url())
        found = measure(
            server.url(),
            server.dsn(),
            folder,
            requests={batch: REQUESTS[batch] for batch in given.batches},
            rounds=given.rounds,
            concurrency=given.concurrency,
        )
    finally:
        embedded.stop(folder / "postgres")
        if (home := folder / "postgres" / "home").exists():
            shutil.rmtree(home.read_text())
        shutil.rmtree(folder)
    print(shown(found))  # noqa: T201


if __name__ == "__main__":
    main()
