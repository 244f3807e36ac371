"""The sandbox's own calls, under ``/_sandbox``: its clock, webhooks, settings and counts. Not part of Stripe's API.

A call is about the account of the ``Authorization`` header's test key, and about all accounts without one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from clawbill_pipeline.sandbox.stripe.app import Api, authenticated
from clawbill_pipeline.sandbox.stripe.core import Call
from clawbill_pipeline.sandbox.stripe.delivery import Delivery
from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.faults import Fault
from clawbill_pipeline.sandbox.stripe.webhooks import register

_EVERY_ACCOUNT = "*"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ClockRequest(_Strict):
    """``now``: unix seconds, not before the clock's own."""

    now: int = Field(ge=0, le=4_102_444_800)


class WebhookRequest(_Strict):
    """An endpoint with a signing secret of the caller's own."""

    url: str
    secret: str | None = Field(default=None, pattern="^whsec_.+$")
    enabled_events: list[str] = ["*"]
    thin: bool = False


class PaymentsRequest(_Strict):
    """How charges of a customer go from now on."""

    customer: str
    outcome: Literal["succeed", "fail"]


class SettingsRequest(_Strict):
    """What an account can be set to; what is left out stays."""

    invoice_grace_seconds: int | None = Field(default=None, ge=0, le=72 * 3_600)
    summary_delay_seconds: int | None = Field(default=None, ge=0)
    rejection_delay_seconds: int | None = Field(default=None, ge=0)
    one_call_per_customer_and_meter: bool | None = None
    after_failed_payments: Literal["past_due", "unpaid", "canceled"] | None = None
    meter_calls_per_second: int | None = Field(default=None, ge=1)
    webhook_retry_seconds: float | None = Field(default=None, gt=0)
    webhook_shuffle_seconds: float | None = Field(default=None, ge=0)
    webhook_duplicates: float | None = Field(default=None, ge=0, le=1)


_Model = TypeVar("_Model", bound=BaseModel)


class Control:
    """Handlers over one API and its delivery worker."""

    def __init__(self, api: Api, delivery: Delivery) -> None:
        self._api = api
        self._delivery = delivery

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/_sandbox/health", _answering(self.health), methods=["GET"]),
            Route("/_sandbox/clock", _answering(self.read_clock), methods=["GET"]),
            Route("/_sandbox/clock", _answering(self.set_clock), methods=["POST"]),
            Route("/_sandbox/webhooks", _answering(self.add_webhook), methods=["POST"]),
            Route("/_sandbox/webhooks/flush", _answering(self.flush), methods=["POST"]),
            Route("/_sandbox/settings", _answering(self.settings), methods=["POST"]),
            Route("/_sandbox/payments", _answering(self.set_payments), methods=["POST"]),
            Route("/_sandbox/faults", _answering(self.add_fault), methods=["POST"]),
            Route("/_sandbox/faults", _answering(self.list_faults), methods=["GET"]),
            Route("/_sandbox/faults", _answering(self.clear_faults), methods=["DELETE"]),
            Route("/_sandbox/stats", _answering(self.stats), methods=["GET"]),
        ]

    async def health(self, request: Request) -> dict[str, Any]:
        return {"status": "ok", "now": self._api.clock.now()}

    async def read_clock(self, request: Request) -> dict[str, Any]:
        return {"now": self._api.clock.now(), "follows_the_wall": self._api.clock.follows_the_wall}

    async def set_clock(self, request: Request) -> dict[str, Any]:
        wanted = await _body(request, ClockRequest)
        happened = await self._api.clock.set(wanted.now)
        return {"now": self._api.clock.now(), "happened": happened}

    async def add_webhook(self, request: Request) -> dict[str, Any]:
        wanted = await _body(request, WebhookRequest)
        store, account = self._api.store, _account(request)
        with store.savepoint():
            call = Call(store, self._api.clock, account)
            for other in store.select(account, "webhook_endpoint"):
                if (other["url"], other["_thin"]) == (wanted.url, wanted.thin):
                    # Asked again by a caller that was started again: the same endpoint, with what it says now.
                    other["enabled_events"] = wanted.enabled_events
                    other["_secret"] = wanted.secret or other["_secret"]
                    endpoint = call.put("webhook_endpoint", other)
                    break
            else:
                endpoint = register(call, wanted.url, wanted.enabled_events, secret=wanted.secret, thin=wanted.thin)
                call.put("webhook_endpoint", endpoint)
        await store.durable()
        return {"id": endpoint["id"], "url": endpoint["url"], "secret": endpoint["_secret"]}

    async def flush(self, request: Request) -> dict[str, Any]:
        account = _account(request)
        return dict(await self._delivery.flush(None if account == _EVERY_ACCOUNT else account))

    async def settings(self, request: Request) -> dict[str, Any]:
        wanted = await _body(request, SettingsRequest)
        store, account = self._api.store, _account(request)
        chosen = wanted.model_dump(exclude_none=True)
        with store.savepoint():
            for name, value in chosen.items():
                store.set_setting(account, name, value)
        await store.durable()
        return {name: store.setting(account, name, None) for name in SettingsRequest.model_fields}

    async def set_payments(self, request: Request) -> dict[str, Any]:
        wanted = await _body(request, PaymentsRequest)
        store, account = self._api.store, _account(request)
        with store.savepoint():
            store.set_setting(account, f"payments_of_{wanted.customer}", wanted.outcome)
        await store.durable()
        return wanted.model_dump()

    async def add_fault(self, request: Request) -> dict[str, Any]:
        fault = await _body(request, Fault)
        fault.account, fault.struck = _account(request), 0
        self._api.faults.all.append(fault)
        return fault.model_dump(exclude={"account"})

    async def list_faults(self, request: Request) -> dict[str, Any]:
        return {"faults": [fault.model_dump(exclude={"account"}) for fault in self._faults_of(request)]}

    async def clear_faults(self, request: Request) -> dict[str, Any]:
        cleared = self._faults_of(request)
        self._api.faults.all = [fault for fault in self._api.faults.all if fault not in cleared]
        return {"cleared": len(cleared)}

    def _faults_of(self, request: Request) -> list[Fault]:
        account = _account(request)
        return [fault for fault in self._api.faults.all if account in (_EVERY_ACCOUNT, fault.account)]

    async def stats(self, request: Request) -> dict[str, Any]:
        account = _account(request)
        where, values = ("", ()) if account == _EVERY_ACCOUNT else (" WHERE account = ?", (account,))
        db = self._api.store.db

        def counted(table: str, column: str) -> dict[str, int]:
            sql = f"SELECT {column} AS name, count(*) AS n FROM {table}{where} GROUP BY 1 ORDER BY 1"  # noqa: S608
            return {row["name"]: row["n"] for row in db.execute(sql, values)}

        return {
            "objects": counted("objects", "kind"),
            "meter_events": counted("meter_events", "state"),
            "events": counted("events", "type"),
            "deliveries": counted("deliveries", "state"),
        }


def _account(request: Request) -> str:
    header = request.headers.get("authorization")
    return _EVERY_ACCOUNT if header is None else authenticated(header)


async def _body(request: Request, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        param = ".".join(map(str, fault["loc"]))
        raise ApiError(400, f"{param or 'body'}: {fault['msg']}", param=param or None) from None


def _answering(handler: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return JSONResponse(await handler(request))
        except ApiError as error:
            return JSONResponse(error.body(), status_code=error.status)

    return answer
