"""The request pipeline of the API: authentication, routing, types, idempotency keys, one transaction, the answer.

What a call does is in its resource module; this module only lists them.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import count
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from clawbill_pipeline.sandbox.stripe import (
    adjustments,
    balance_transactions,
    coupons,
    credit_grants,
    credit_notes,
    customers,
    event_summaries,
    events,
    invoice_items,
    invoices,
    invoicing,
    item_changes,
    meter_events,
    meter_stream,
    meters,
    payments,
    portal,
    prices,
    products,
    promotion_codes,
    rejections,
    renewal,
    subscription_items,
    subscriptions,
    tax_rates,
    thin_events,
    usage_records,
    webhooks,
)
from clawbill_pipeline.sandbox.stripe.clock import Clock
from clawbill_pipeline.sandbox.stripe.core import CURRENT, LEGACY, Call, Document, Route, expanded
from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.faults import Faults, HungUp
from clawbill_pipeline.sandbox.stripe.form import decode
from clawbill_pipeline.sandbox.stripe.limits import Limiter
from clawbill_pipeline.sandbox.stripe.store import Store

# The busiest route first: Starlette tries them in order.
ROUTES: list[Route] = [
    route
    for module in (
        meter_events,
        meter_stream,
        event_summaries,
        adjustments,
        usage_records,
        meters,
        customers,
        balance_transactions,
        products,
        prices,
        tax_rates,
        coupons,
        promotion_codes,
        credit_grants,
        subscriptions,
        subscription_items,
        item_changes,
        invoices,
        invoice_items,
        credit_notes,
        events,
        thin_events,
        webhooks,
        portal,
    )
    for route in module.ROUTES
]
EFFECTS: dict[str, Callable[[Call, str], None]] = {
    "subscription": renewal.due,
    "invoice_finalize": invoicing.finalize_due,
    "invoice_charge": payments.charge_due,
    "invoice_overdue": payments.overdue,
    "meter_report": rejections.report,
}
#: Stripe forgets idempotency keys after a day.
_KEY_SECONDS = 86_400


class Api:
    """All calls of the API on one store and one clock."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.faults = Faults()
        self.limiter = Limiter()
        #: Idempotency keys and (customer, meter) pairs that a call works on now.
        self.under_way: set[tuple[str, ...]] = set()
        self._run = secrets.token_hex(3)
        self._requests = count(1)

    def routes(self) -> list[BaseRoute]:
        return [HttpRoute(route.path, _Endpoint(self, route), methods=[route.method]) for route in ROUTES]

    def new_request_id(self) -> str:
        return f"req_{self._run}{next(self._requests):08d}"

    @contextmanager
    def taken(self, what: tuple[str, ...], refusal: Callable[[], ApiError]) -> Iterator[None]:
        """Works on ``what`` alone; raises the refusal where another call does."""
        if what in self.under_way:
            raise refusal()
        self.under_way.add(what)
        try:
            yield
        finally:
            self.under_way.discard(what)


class _Endpoint:
    """One route as an ASGI application (Starlette's own request wrapper costs a fifth of a meter event)."""

    def __init__(self, api: Api, route: Route) -> None:
        self._api = api
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = {"request-id": self._api.new_request_id()}
        try:
            status, body = await self._answer(request, headers)
        except ApiError as error:
            status, body = error.status, _encoded(error.body())
            headers.update(error.headers)
        except HungUp:
            return
        await _respond(send, status, body, headers)

    async def _answer(self, request: Request, headers: dict[str, str]) -> tuple[int, bytes]:
        api, route = self._api, self._route
        call = Call(api.store, api.clock, self._account(request), request_id=headers["request-id"])
        call.version = headers["stripe-version"] = request.headers.get("stripe-version", CURRENT)
        _check_version(call.version, route)
        if "stripe-account" in request.headers:
            message = "The provided key does not have access to the account of Stripe-Account."
            raise ApiError(403, message, code="account_invalid")
        body = await request.body()
        try:
            raw = (body if request.method == "POST" else request.scope["query_string"]).decode()
        except UnicodeDecodeError:
            raise ApiError(400, "The request is not UTF-8.") from None
        fault = api.faults.chosen(call.account, request.method, request.url.path) if api.faults.all else None
        with ExitStack() as held:
            if request.method != "GET" and "idempotency-key" in request.headers:
                key = call.idempotency_key = headers["idempotency-key"] = request.headers["idempotency-key"]
                held.enter_context(api.taken(("key", call.account, key), lambda: _key_in_use(key)))
            params = route.contract.check(decode(raw) if route.contract.form else _json(raw))
            if route.alone:
                rate = call.store.setting(call.account, "meter_calls_per_second", None)
                if rate is not None:
                    api.limiter.take(call.account, rate, time.monotonic())
                if call.store.setting(call.account, "one_call_per_customer_and_meter", True):
                    held.enter_context(api.taken(("alone", call.account, *route.alone(params)), _not_alone))
            if fault and fault.when == "before":
                await api.faults.happen(fault, request.receive)
            answer = await self._perform_once(call, request, raw, params, headers)
            if fault and fault.when == "after":
                await api.faults.happen(fault, request.receive)
            return answer

    def _account(self, request: Request) -> str:
        authorization = request.headers.get("authorization")
        if self._route.by_session:
            token = (authorization or "").removeprefix("Bearer ")
            return meter_stream.account_of_session(self._api.store, token, self._api.clock.now())
        return authenticated(authorization)

    async def _perform_once(
        self, call: Call, request: Request, raw: str, params: Document, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if call.idempotency_key is None:
            return await self._perform(call, request, params, "")
        fingerprint = sha256(f"{request.method} {request.url.path}\n{raw}".encode()).hexdigest()
        sql = "SELECT request, status, body FROM idempotency WHERE account = ? AND key = ? AND at > ?"
        values = (call.account, call.idempotency_key, call.now - _KEY_SECONDS)
        known = call.store.db.execute(sql, values).fetchone()
        if known is None:
            return await self._perform(call, request, params, fingerprint)
        if known["request"] != fingerprint:
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with."
                f" Try using a key other than '{call.idempotency_key}' if you meant to execute a different request."
            )
            raise ApiError(400, message, kind="idempotency_error")
        headers["idempotent-replayed"] = "true"
        await call.store.durable()
        return known["status"], known["body"]

    async def _perform(self, call: Call, request: Request, params: Document, fingerprint: str) -> tuple[int, bytes]:
        route = self._route
        status, body = 200, b""
        try:
            with call.store.joined() if route.lean else call.store.savepoint():
                try:
                    answer = route.handler(call, params, **{k: unquote(v) for k, v in request.path_params.items()})
                    body = _encoded(expanded(call, answer, params.get("expand", [])))
                except ApiError as error:
                    if not error.effects_stay:
                        raise
                    status, body = error.status, _encoded(error.body())
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
    if scheme.lower() == "basic":
        key = _user_of(key)
    if not key:
        raise ApiError(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer"
            " auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'), or as the user name of HTTP basic auth.",
        )
    if scheme.lower() not in ("bearer", "basic") or not key.startswith(("sk_test_", "rk_test_")):
        raise ApiError(401, f"Invalid API Key provided: {key[:8]}{'*' * 8}")
    return account_of(key)


def _user_of(credentials: str) -> str:
    """The user name of HTTP basic auth, which is where a key goes; empty for what can't be read."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def account_of(key: str) -> str:
    """``acct_…`` of a key; the key itself is never kept."""
    return f"acct_{sha256(key.encode()).hexdigest()[:16]}"


def _key_in_use(key: str) -> ApiError:
    message = f"There is currently another in-progress request using this Idempotent Key ({key})."
    return ApiError(409, message, kind="idempotency_error", code="idempotency_key_in_use")


def _not_alone() -> ApiError:
    message = "Stripe takes one call at a time for each customer and meter. Another one is under way."
    return ApiError(429, message, code="rate_limit", headers={"stripe-rate-limited-reason": "resource-specific"})


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
