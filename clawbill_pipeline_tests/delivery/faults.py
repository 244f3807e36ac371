"""A proxy in front of the Stripe stand-in that fails on demand, and notes who was called when. For meter calls only."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

#: What can go wrong with a call: before it has its effect, or after it.
FAULTS = ("lost_before", "lost_after", "409", "429", "500_before", "500_after", "slow")

#: Final noes, which are not among the random faults.
_REFUSALS = {
    "missing": {
        "type": "invalid_request_error",
        "code": "resource_missing",
        "param": "payload[stripe_customer_id]",
        "message": "No such customer: 'cus_nobody'",
    },
    "refused": {"type": "invalid_request_error", "message": "on demand: refused"},
}
_ERRORS = {"409": "lock_timeout", "429": "rate_limit", "500_before": "api_error", "500_after": "api_error"}


@dataclass
class Faulty:
    """``plan`` names the fault of each meter event call, given its parameters; None lets it pass."""

    target: str
    url: str = ""
    plan: Callable[[dict[str, str]], str | None] = lambda params: None
    retry_after: str | None = None
    #: Whether idempotency keys are dropped, so that Stripe knows a repetition by the event's identifier alone.
    forgetful: bool = False
    calls: list[dict[str, str]] = field(default_factory=list)
    #: Path and parameters of every other POST.
    posts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    #: How many calls were under way at once, at most, for one customer and meter; and for all.
    most_a_lane: int = 0
    most: int = 0
    _calls: int = 0
    _open: Counter[tuple[str, str]] = field(default_factory=Counter)

    def script(self, *faults: str | None) -> None:
        """These faults for the next calls, then none."""
        remaining = iter(faults)
        self.plan = lambda params: next(remaining, None)

    def chance(self, seed: int, probability: float) -> None:
        """Random faults."""
        random_ = random.Random(seed)
        self.plan = lambda params: random_.choice(FAULTS) if random_.random() < probability else None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = None
        lane = None
        params = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        if not request.path.endswith(("/meter_events", "/usage_records", "/meter_event_stream")):
            self.posts += [(request.path, params)] if request.method == "POST" else []
        else:
            self.calls.append(params)
            fault = self.plan(params)
            # A call of the stream carries many lanes; which are in it is not looked into.
            stream = request.path.endswith("_stream")
            customer = params.get("payload[stripe_customer_id]", str(self._calls) if stream else request.path)
            self._calls += 1
            lane = (customer, params.get("event_name", ""))
            self._open[lane] += 1
            self.most_a_lane = max(self.most_a_lane, self._open[lane])
            self.most = max(self.most, self._open.total())
        try:
            return await self._answer(request, body, fault)
        finally:
            if lane is not None:
                self._open[lane] -= 1

    async def _answer(self, request: web.Request, body: bytes, fault: str | None) -> web.StreamResponse:
        if fault in ("409", "429", "500_before"):
            return self._error(fault)
        if fault in _REFUSALS:
            return web.json_response({"error": _REFUSALS[fault]}, status=400)
        if fault == "lost_before":
            return self._hang_up(request)
        dropped = ("host", "idempotency-key") if self.forgetful else ("host",)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        async with self.session.request(
            request.method, self.target + request.path_qs, data=body, headers=headers
        ) as got:
            content = await got.read()
        if fault == "lost_after":
            return self._hang_up(request)
        if fault == "500_after":
            return self._error(fault)
        if fault == "slow":
            await asyncio.sleep(0.02)
        return web.Response(status=got.status, body=content, content_type="application/json")

    def _error(self, fault: str) -> web.Response:
        headers = {"Retry-After": self.retry_after} if fault == "429" and self.retry_after else {}
        error = {"type": _ERRORS[fault], "code": _ERRORS[fault], "message": f"on demand: {fault}"}
        return web.json_response({"error": error}, status=int(fault[:3]), headers=headers)

    def _hang_up(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()


@contextmanager
def faulty(target: str) -> Iterator[Faulty]:
    """The proxy, running in a thread of its own."""
    proxy = Faulty(target)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as proxy.session:
            started.set()
            await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
