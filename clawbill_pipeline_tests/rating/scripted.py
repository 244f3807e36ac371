"""An HTTP server that answers by a script, for what a good rating server never does."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

#: Status, body (JSON or text) and headers; the last two may be left out.
Step = tuple[Any, ...]


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: str
    client: tuple[str, int]

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body, parse_float=str, parse_int=str)
        return document


@dataclass
class Scripted:
    """``requests`` is what was asked, in order; ``answer`` (if set) answers all that the script does not."""

    url: str
    steps: list[Step]
    answer: Callable[[Asked], Step]
    flood: int = 0
    hang: bool = False
    drip: bool = False
    hang_up: bool = False
    requests: list[Asked] = field(default_factory=list)
    sent: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        asked = Asked(
            request.method,
            scope["raw_path"].decode(),
            dict(request.headers),
            (await request.body()).decode(),
            tuple(scope["client"]),
        )
        self.requests.append(asked)
        if self.hang:
            await asyncio.sleep(5)
        if self.hang_up:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            return
        if self.flood or self.drip:
            await StreamingResponse(self._body(request))(scope, receive, send)
            return
        step = self.steps.pop(0) if self.steps else self.answer(asked)
        status, body, headers = (*step, {}, {})[:3] if len(step) == 1 else (*step, {})[:3]
        content = body if isinstance(body, str) else json.dumps(body)
        await Response(content, status, headers)(scope, receive, send)

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        while self.drip:
            yield b" "
            await asyncio.sleep(0.1)
        while self.sent < self.flood and not await request.is_disconnected():
            self.sent += 100_000
            yield b"9" * 100_000


@contextmanager
def scripted(
    *steps: Step, answer: Callable[[Asked], Step] = lambda _: (200, {"amount_cents": 1}), **more: Any
) -> Iterator[Scripted]:
    """The server, on a free loopback port, in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}", list(steps), answer, **more)
        config = uvicorn.Config(made, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield made
        finally:
            server.should_exit = True
            thread.join()
