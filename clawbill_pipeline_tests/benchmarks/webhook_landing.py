"""Webhook landing against a bare Starlette route that verifies the signature and inserts the same row.

``python -m clawbill_pipeline_tests.benchmarks.webhook_landing``: each server on one core of its own, the client and
PostgreSQL on the others; rounds take turns, and the median counts. Every event is new and is there at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import stripe
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.ledger.tables import SCHEMA
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.server import listening
from clawbill_pipeline_tests.invoicing.objects import END, event, invoice, line

SECRET = "whsec_benchmark"
PATH = "/stripe/webhook"


def bare(dsn: str) -> Starlette:
    """What one would write first: verify with the SDK, insert over a small pool, answer."""
    pool: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for _ in range(8):
            pool.put_nowait(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
        yield

    async def webhook(request: Request) -> Response:
        body = await request.body()
        event = stripe.Webhook.construct_event(body, request.headers["stripe-signature"], SECRET)
        connection = await pool.get()
        try:
            await connection.execute(
                f"INSERT INTO {SCHEMA}.stripe_events (event_id, type, object_id, api_version, livemode, created, body,"
                " headers, via, received_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'webhook', %s)"
                " ON CONFLICT (event_id) DO NOTHING",
                (
                    event.id,
                    event.type,
                    event.data.object["id"],
                    event.api_version,
                    event.livemode,
                    datetime.fromtimestamp(event.created, UTC),
                    body.decode(),
                    json.dumps(dict(request.headers)),
                    datetime.now(UTC),
                ),
            )
        finally:
            pool.put_nowait(connection)
        return PlainTextResponse("stored")

    return Starlette(routes=[Route(PATH, webhook, methods=["POST"])], lifespan=lifespan)


def ours(url: str) -> Starlette:
    """The web app as it is served."""
    return create_app(Settings(stripe_webhook_secrets=(SecretStr(SECRET),)), Ledger(url), live=False)


def serve(make: Callable[[str], Starlette], url: str, core: int | None, tell: Connection) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    with listening("127.0.0.1", 0) as listener:
        tell.send(listener.getsockname()[1])
        config = uvicorn.Config(make(url), log_level="warning", access_log=False, proxy_headers=False)
        uvicorn.Server(config).run(sockets=[listener])


@dataclass(frozen=True)
class Round:
    """``rate`` in requests a second, ``p50`` and ``p99`` in milliseconds."""

    rate: float
    p50: float
    p99: float


async def load(port: int, bodies: list[str], concurrency: int) -> Round:
    """Sends every body once and demands a 200 for each."""
    signed = [
        (body.encode(), {"Stripe-Signature": sign(body), "Content-Type": "application/json; charset=utf-8"})
        for body in bodies
    ]
    waiting = iter(signed)
    took: list[float] = []

    async def worker(http: aiohttp.ClientSession) -> None:
        for body, headers in waiting:
            started = time.perf_counter()
            async with http.post(f"http://127.0.0.1:{port}{PATH}", data=body, headers=headers) as answer:
                await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"answered {answer.status}")
            took.append(time.perf_counter() - started)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as http:
        started = time.perf_counter()
        await asyncio.gather(*(worker(http) for _ in range(concurrency)))
        elapsed = time.perf_counter() - started
    took.sort()
    return Round(len(took) / elapsed, took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3)


def sign(body: str) -> str:
    return stripe.WebhookSignature.generate_signature_header(body, SECRET)


def bodies(name: str, count: int) -> list[str]:
    """Events of an invoice with four lines, about 3 kB, indented as Stripe's are."""
    obj = invoice("open", lines=[line(f"il_{number}") for number in range(4)])
    return [
        json.dumps(json.loads(event(f"evt_{name}_{number}", "invoice.finalized", obj, END)), indent=2)
        for number in range(count)
    ]


def median(rounds: list[Round]) -> Round:
    return Round(*(statistics.median(getattr(each, name) for each in rounds) for name in ("rate", "p50", "p99")))


def measure(url: str, dsn: str, *, requests: int, rounds: int, concurrencies: list[int]) -> dict[int, dict[str, Round]]:
    """Per concurrency, the median round of ``bare`` and of ``ours``."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core = cores[-1] if len(cores) > 1 else None
    if core is not None:
        os.sched_setaffinity(0, set(cores) - {core})
    context = multiprocessing.get_context("spawn")
    ports, servers = {}, []
    for name, make, address in (("bare", bare, dsn), ("ours", ours, url)):
        hear, tell = context.Pipe(duplex=False)
        servers.append(context.Process(target=serve, args=(make, address, core, tell)))
        servers[-1].start()
        ports[name] = hear.recv()
    try:
        for name, port in ports.items():
            asyncio.run(load(port, bodies(f"warm_{name}", 200), 8))
        found: dict[int, dict[str, Round]] = {}
        for concurrency in concurrencies:
            samples: dict[str, list[Round]] = {name: [] for name in ports}
            for number in range(rounds):
                for name, port in ports.items():
                    fresh = bodies(f"{name}_{concurrency}_{number}", requests)
                    samples[name].append(asyncio.run(load(port, fresh, concurrency)))
            found[concurrency] = {name: median(each) for name, each in samples.items()}
        return found
    finally:
        for server in servers:
            server.terminate()
            server.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3_000, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32])
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="clawbill-benchmark-"))
    try:
        server = embedded.start(folder)
        migrate(server.url())
        found = measure(
            server.url(),
            server.dsn(),
            requests=given.requests,
            rounds=given.rounds,
            concurrencies=given.concurrency,
        )
        with psycopg.connect(server.dsn()) as connection:
            row = connection.execute(f"SELECT count(*) FROM {SCHEMA}.stripe_events").fetchone()
        sent = 2 * (200 + len(given.concurrency) * given.rounds * given.requests)
        if row != (sent,):
            raise SystemExit(f"{sent} events were sent and {row} are there")
    finally:
        embedded.stop(folder)
        if (home := folder / "home").exists():
            shutil.rmtree(home.read_text())
        shutil.rmtree(folder)
    print(f"{'concurrency':>11} {'server':>6} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6}")  # noqa: T201
    for concurrency, both in found.items():
        for name, each in both.items():
            ratio = f"{each.rate / both['bare'].rate:6.2f}"
            print(f"{concurrency:>11} {name:>6} {each.rate:>10,.0f} {each.p50:>8.2f} {each.p99:>8.2f} {ratio}")  # noqa: T201


if __name__ == "__main__":
    main()
