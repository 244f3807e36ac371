"""The ASGI application: routes, token, body limit, errors, request log. What is answered is in the other modules."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from clawbill_pipeline.catalog import UnknownTenant
from clawbill_pipeline.sandbox.openclaw import openapi, rating
from clawbill_pipeline.sandbox.openclaw.problems import Problem
from clawbill_pipeline.sandbox.openclaw.rates import Rates
from clawbill_pipeline.sandbox.openclaw.standing import Standing, Status

log = logging.getLogger(__name__)

#: A rating request has a few hundred bytes.
MAX_BODY_BYTES = 16_384
_STATUS = re.compile(r"[a-z][a-z0-9_]{0,39}")

Document = dict[str, Any]
_Handler = Callable[[Request], Awaitable[Document]]


class Clock:
    """The server's clock, which chooses rate-card versions: the wall's, or standing where it was set."""

    def __init__(self, now: int | None = None) -> None:
        self.set_to = now

    def now(self) -> datetime:
        return datetime.now(UTC) if self.set_to is None else datetime.fromtimestamp(self.set_to, UTC)


def application(rates: Rates, standing: Standing, clock: Clock, token: str, *, access_log: bool = False) -> Starlette:
    """The server as an ASGI application. Callers show ``token``; only health and the OpenAPI document are open.

    A clock that was set can be moved by calls; the wall's can't.
    """
    calls = _Calls(rates, standing, clock)

    def route(method: str, path: str, handler: _Handler, *, is_open: bool = False) -> Route:
        expected = None if is_open else f"Bearer {token}".encode()
        return Route(path, _Endpoint(handler, expected, access_log), methods=[method])

    set_by_calls = [
        route("GET", "/_sandbox/clock", calls.get_clock),
        route("POST", "/_sandbox/clock", calls.set_clock),
    ]
    return Starlette(
        routes=[
            route("POST", "/rating", calls.rate),
            route("PUT", "/tenants/{tenant_id}/status", calls.put_status),
            route("GET", "/tenants/{tenant_id}/status", calls.get_status),
            route("GET", "/healthz", calls.health, is_open=True),
            route("GET", "/openapi.json", calls.openapi, is_open=True),
            *(set_by_calls if clock.set_to is not None else ()),
        ],
        exception_handlers={HTTPException: _no_such_route},
    )


class _Calls:
    """What each route answers."""

    def __init__(self, rates: Rates, standing: Standing, clock: Clock) -> None:
        self._rates, self._standing, self._clock = rates, standing, clock
        self._one_at_a_time = asyncio.Lock()

    async def rate(self, request: Request) -> Document:
        return rating.answer(self._rates.current(), await _body(request), self._clock.now())

    async def put_status(self, request: Request) -> Document:
        tenant_id = self._tenant(request)
        said = rating.read_object(await _body(request))
        status = said.get("status")
        if said.keys() != {"status"} or not isinstance(status, str) or not _STATUS.fullmatch(status):
            raise Problem(422, "bad-status", 'send {"status": ...} with a lower-case word such as paid', field="status")
        reported = Status(status, self._clock.now().isoformat())
        async with self._one_at_a_time:
            kept = await asyncio.to_thread(self._standing.put, tenant_id, reported)
        log.info("status reported", extra={"fields": {"tenant": tenant_id, "status": kept.status}})
        return _standing(tenant_id, kept)

    async def get_status(self, request: Request) -> Document:
        tenant_id = self._tenant(request)
        async with self._one_at_a_time:
            return _standing(tenant_id, await asyncio.to_thread(self._standing.get, tenant_id))

    async def health(self, request: Request) -> Document:
        self._rates.current()
        return {"status": "ok", "now": int(self._clock.now().timestamp()), "catalog_fault": self._rates.fault}

    async def openapi(self, request: Request) -> Document:
        return openapi.DOCUMENT

    async def get_clock(self, request: Request) -> Document:
        return {"now": int(self._clock.now().timestamp())}

    async def set_clock(self, request: Request) -> Document:
        said = rating.read_object(await _body(request))
        now = said.get("now")
        if said.keys() != {"now"} or type(now) is not int or not 0 <= now <= 4_102_444_800:
            raise Problem(422, "bad-time", 'send {"now": ...} with unix seconds', field="now")
        self._clock.set_to = now
        return await self.get_clock(request)

    def _tenant(self, request: Request) -> str:
        tenant_id: str = request.path_params["tenant_id"]
        try:
            self._rates.current().tenant(tenant_id)
        except UnknownTenant as error:
            raise Problem(404, "unknown-tenant", str(error.args[0])) from None
        return tenant_id


class _Endpoint:
    """A handler as an ASGI application: token before, document or problem and a line in the log after."""

    def __init__(self, handler: _Handler, expected: bytes | None, access_log: bool) -> None:
        self._handler, self._expected, self._access_log = handler, expected, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            self._authorise(scope)
            document = await self._handler(Request(scope, receive))
            answer = Response(json.dumps(document), media_type="application/json")
        except Problem as problem:
            answer = problem.response()
            _log(scope, logging.WARNING, started, status=problem.status, problem=problem.kind, detail=problem.detail)
        except ClientDisconnect:
            return
        except Exception:  # noqa: BLE001 - the caller gets an answer, and the log the cause
            answer = Problem(500, "internal", "the server failed; its log says why").response()
            _log(scope, logging.ERROR, started, status=500, exc_info=True)
        else:
            if self._access_log:
                _log(scope, logging.INFO, started, status=200)
        await answer(scope, receive, send)

    def _authorise(self, scope: Scope) -> None:
        if self._expected is None:
            return
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(shown, self._expected):
            raise Problem(401, "token", "show the token: Authorization: Bearer ...")


async def _body(request: Request) -> bytes:
    """The request's body. Raises Problem (413) as soon as it is over the limit."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Problem(413, "too-large", f"the body is larger than {MAX_BODY_BYTES} bytes")
    return body


async def _no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = {404: "no such path", 405: f"{request.url.path} does not take {request.method}"}.get(status, "")
    answer = Problem(status, "route", detail).response()
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


def _log(scope: Scope, level: int, started: float, *, exc_info: bool = False, **fields: Any) -> None:
    took = round((time.perf_counter() - started) * 1000, 3)
    request = {"method": scope["method"], "path": scope["path"], "ms": took, **fields}
    log.log(level, "request", extra={"fields": request}, exc_info=exc_info)


def _standing(tenant_id: str, kept: Status | None) -> Document:
    status, reported_at = (kept.status, kept.reported_at) if kept else (None, None)
    return {"tenant_id": tenant_id, "status": status, "reported_at": reported_at}
