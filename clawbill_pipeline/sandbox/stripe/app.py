"""The request pipeline of the API: authentication, routing, types, idempotency keys, one transaction, the answer.

What a call does is in its resource module; this module only lists them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from hashlib import sha256
from itertools import count
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from clawbill_pipeline.sandbox.stripe import (
    customers,
    event_summaries,
    events,
    invoices,
    invoicing,
    meter_events,
    meters,
    portal,
    prices,
    products,
    renewal,
    subscription_items,
    subscriptions,
    webhooks,
)
from clawbill_pipeline.sandbox.stripe.clock import Clock
from clawbill_pipeline.sandbox.stripe.core import CURRENT, LEGACY, Call, Document, Route, expanded
from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.form import decode
from clawbill_pipeline.sandbox.stripe.store import Store

# The busiest route first: Starlette tries them in order.
ROUTES: list[Route] = [
    route
    for module in (
        meter_events,
        event_summaries,
        meters,
        customers,
        products,
        prices,
        subscriptions,
        subscription_items,
        invoices,
        events,
        webhooks,
        portal,
    )
    for route in module.ROUTES
]
EFFECTS: dict[str, Callable[[Call, str], None]] = {
    "subscription": renewal.due,
    "invoice_finalize": invoicing.finalize_due,
}
#: Stripe forgets idempotency keys after a day.
_KEY_SECONDS = 86_400


class Api:
    """All calls of the API on one store and one clock."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.keys_in_use: set[tuple[str, str]] = set()
        self._run = secrets.token_hex(3)
        self._requests = count(1)

    def routes(self) -> list[BaseRoute]:
        return [HttpRoute(route.path, _Endpoint(self, route), methods=[route.method]) for route in ROUTES]

    def new_request_id(self) -> str:
        return f"req_{self._run}{next(self._requests):08d}"


class _Endpoint:
    """One route as an ASGI application (Starlette's own request wrapper costs a fifth of a meter event)."""

    def __init__(self, api: Api, route: Route) -> None:
        self._api = api
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request_id = self._api.new_request_id()
        headers: dict[str, str] = {}
        try:
            status, body = await self._answer(request, request_id, headers)
        except ApiError as error:
            status, body = error.status, _encoded(error.body())
            headers.update(error.headers)
        await _respond(send, status, body, {**headers, "request-id": request_id})

    async def _answer(self, request: Request, request_id: str, headers: dict[str, str]) -> tuple[int, bytes]:
        account = authenticated(request.headers.get("authorization"))
        version = request.headers.get("stripe-version", CURRENT)
        _check_version(version, self._route)
        headers["stripe-version"] = version
        if "stripe-account" in request.headers:
            raise ApiError(
                403, "The provided key does not have access to the account of Stripe-Account.", code="account_invalid"
            )
        body = await request.body()
        is_get = request.method != "POST"
        raw = request.scope["query_string"].decode() if is_get else body.decode()
        key = None if request.method == "GET" else request.headers.get("idempotency-key")
        if key is None:
            return await self._perform(
                Call(self._api.store, self._api.clock, account, version, request_id), request, raw
            )
        headers["idempotency-key"] = key
        return await self._perform_once(account, version, request_id, key, request, raw, headers)

    async def _perform_once(
        self, account: str, version: str, request_id: str, key: str, request: Request, raw: str, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        store, now = self._api.store, self._api.clock.now()
        fingerprint = sha256(f"{request.method} {request.url.path}\n{raw}".encode()).hexdigest()
        sql = "SELECT request, status, body FROM idempotency WHERE account = ? AND key = ? AND at > ?"
        known = store.db.execute(sql, (account, key, now - _KEY_SECONDS)).fetchone()
        if known is not None:
            if known["request"] != fingerprint:
                raise ApiError(
                    400,
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                    f" Try using a key other than '{key}' if you meant to execute a different request.",
                    kind="idempotency_error",
                )
            headers["idempotent-replayed"] = "true"
            await store.durable()
            return known["status"], known["body"]
        if (account, key) in self._api.keys_in_use:
            raise ApiError(
                409,
                f"There is currently another in-progress request using this Idempotent Key ({key}).",
                kind="idempotency_error",
                code="idempotency_key_in_use",
            )
        self._api.keys_in_use.add((account, key))
        try:
            call = Call(store, self._api.clock, account, version, request_id, key)
            return await self._perform(call, request, raw, fingerprint)
        finally:
            self._api.keys_in_use.discard((account, key))

    async def _perform(self, call: Call, request: Request, raw: str, fingerprint: str = "") -> tuple[int, bytes]:
        route = self._route
        params = route.contract.check(decode(raw) if route.contract.form else _json(raw))
        status, body = 200, b""
        try:
            with call.store.savepoint():
                answer = route.handler(call, params, **{k: unquote(v) for k, v in request.path_params.items()})
                body = _encoded(expanded(call, answer, params.get("expand", [])))
        except ApiError as error:
            if not error.kept:
                raise
            status, body = error.status, _encoded(error.body())
        if fingerprint:
            call.store.begin()
            call.store.db.execute(
                "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)",
                (call.account, call.idempotency_key, fingerprint, status, body, call.now),
            )
        await call.store.durable()
        return status, body


def authenticated(authorization: str | None) -> str:
    """The account of a test key: each key has one of its own. Raises ApiError (401), and never shows the key."""
    scheme, _, key = (authorization or "").partition(" ")
    if not key:
        raise ApiError(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer"
            " auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        )
    if scheme != "Bearer" or not key.startswith(("sk_test_", "rk_test_")):
        raise ApiError(401, f"Invalid API Key provided: {key[:8]}{'*' * 8}")
    return account_of(key)


def account_of(key: str) -> str:
    """``acct_…`` of a key; the key itself is never kept."""
    return f"acct_{sha256(key.encode()).hexdigest()[:16]}"


async def not_found(request: Request, exc: Exception) -> Response:
    """404 as Stripe says it, for a path or a method that is not kept."""
    message = (
        f"Unrecognized request URL ({request.method}: {request.url.path}). The clawbill sandbox keeps no such call."
    )
    return JSONResponse(ApiError(404, message).body(), status_code=404)


async def failed(request: Request, exc: Exception) -> Response:
    """500 for an error of the sandbox itself; Starlette logs it."""
    return JSONResponse(ApiError(500, "An error of the clawbill sandbox.", kind="api_error").body(), status_code=500)


def _check_version(version: str, route: Route) -> None:
    if version not in (CURRENT, LEGACY):
        message = f"Invalid Stripe API version: {version}. The clawbill sandbox keeps {CURRENT} and {LEGACY}."
        raise ApiError(400, message)
    if route.only_version not in (None, version):
        message = f"Unrecognized request URL. This call left the API after {route.only_version}."
        raise ApiError(404, message)


def _json(raw: str) -> Document:
    try:
        value = json.loads(raw or "{}")
    except ValueError:
        raise ApiError(400, "The request body is not JSON.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The request body is not a JSON object.")
    return value


def _encoded(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
