"""Faults on demand: answers that never come, dropped connections, errors, slowness. Asked for by ``/_sandbox/faults``.

A fault strikes before the call took effect or after it (then the effect stays). They are kept in memory: a sandbox that
is started again has none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from starlette.types import Receive

from clawbill_pipeline.sandbox.stripe.errors import ApiError

_MESSAGES = {
    409: "This object cannot be accessed right now because another API request is currently accessing it.",
    429: "Request rate limit exceeded.",
}


class HungUp(Exception):
    """The connection is gone; there is nobody to answer."""


class Fault(BaseModel):
    """What strikes which calls, and how often.

    ``kind``: ``timeout`` (no answer for ``seconds``, then the connection drops), ``drop`` (it drops at once), ``error``
    (``status``, with ``retry_after`` as the ``Retry-After`` header), ``slow`` (``seconds`` of delay, then the answer).
    ``when``: before or after the effect. ``path`` is a pattern (``/v1/billing/*``). The first ``skip`` matching calls
    are spared; then each is struck with ``probability`` (drawn from ``seed``), ``count`` times at most.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["timeout", "drop", "error", "slow"]
    when: Literal["before", "after"] = "before"
    method: Literal["GET", "POST", "DELETE", "*"] = "*"
    path: str = "*"
    status: int = Field(default=500, ge=400, le=599)
    retry_after: int | None = Field(default=None, ge=0)
    seconds: float = Field(default=60.0, ge=0)
    skip: int = Field(default=0, ge=0)
    count: int | None = Field(default=1, ge=1)
    probability: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0

    account: str = "*"
    struck: int = 0
    _dice: random.Random = PrivateAttr()
    _seen: int = PrivateAttr(default=0)

    def model_post_init(self, context: Any) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 (a schedule, not a secret)

    def strikes(self, account: str, method: str, path: str) -> bool:
        """Whether it strikes this call; counts it if so."""
        if self.account not in ("*", account) or self.method not in ("*", method) or not fnmatchcase(path, self.path):
            return False
        if self.count is not None and self.struck >= self.count:
            return False
        self._seen += 1
        if self._seen <= self.skip or self._dice.random() >= self.probability:
            return False
        self.struck += 1
        return True


class Faults:
    """The faults that are asked for now."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def chosen(self, account: str, method: str, path: str) -> Fault | None:
        """The first fault that strikes this call."""
        return next((fault for fault in self.all if fault.strikes(account, method, path)), None)

    async def happen(self, fault: Fault, receive: Receive) -> None:
        """Lets it happen. Raises ApiError for an error, HungUp when the connection is gone; returns after slowness."""
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        elif fault.kind == "error":
            headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
            kind = "api_error" if fault.status >= 500 else "invalid_request_error"
            code = {409: "lock_timeout", 429: "rate_limit"}.get(fault.status)
            message = _MESSAGES.get(fault.status, "An unknown error occurred.")
            raise ApiError(fault.status, message, kind=kind, code=code, headers=headers)
        else:
            if fault.kind == "timeout":
                await _gone_within(receive, fault.seconds)
            # Only the transport can hang up without a word; ASGI has no message for it. uvicorn's request object,
            # which ``receive`` is bound to, holds the transport in each of its HTTP implementations.
            receive.__self__.transport.abort()  # type: ignore[attr-defined]
            await _gone_within(receive, 5)
            raise HungUp


async def _gone_within(receive: Callable[[], Awaitable[Any]], seconds: float) -> None:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(gone(), seconds)
    except TimeoutError:
        return
