"""A plain client of OpenClaw's contract: one rating, one status. Retries and bookings are the stations' affair.

The contract: ``POST /rating`` with exactly ``tenant_id``, ``service`` and ``quantity``; the answer carries at least
``amount_cents``. Numbers are exact both ways: quantities leave as JSON numbers with all their digits, and amounts
are read as Decimal whether they come as numbers or strings.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from clawbill_pipeline.money import LIMIT, SCALE, MoneyError, exact, from_minor, plain, rounded

MAX_ANSWER_BYTES = 1_000_000
_DECIMAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4})?", re.ASCII)


class OpenClawError(RuntimeError):
    """OpenClaw did not give a usable answer. ``retryable`` says whether asking again later can help."""

    def __init__(self, message: str, *, retryable: bool, answer: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.answer = answer
        self.retry_after = retry_after


@dataclass(frozen=True)
class Answer:
    """A rating: ``amount`` in the currency's major unit; ``body`` as OpenClaw wrote it, decimals as strings.

    ``terms`` changes when prices do; it is empty where OpenClaw does not say. ``unlimited`` is the amount before
    ``maximum`` and ``minimum``: the amount itself where it has none, or does not say.
    """

    amount: Decimal
    currency: str
    rate_card_version: str
    body: Mapping[str, Any]
    latency_ms: Decimal
    unlimited: Decimal
    maximum: Decimal | None = None
    minimum: Decimal | None = None

    @property
    def terms(self) -> str:
        return terms_of(self.rate_card_version, self.body.get("terms"))


def terms_of(rate_card_version: str, terms: Any) -> str:
    """``Answer.terms`` of what is on record."""
    return f"{rate_card_version} {terms}" if isinstance(terms, str) else rate_card_version


@dataclass(frozen=True)
class OpenClaw:
    """How to reach OpenClaw. The token never shows."""

    url: str
    token: SecretStr
    status_path: str = "/tenants/{tenant_id}/status"
    timeout: float = 30
    concurrency: int = 16

    @asynccontextmanager
    async def session(self) -> AsyncIterator[OpenClawSession]:
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with AiohttpTransport(limits=limits) as transport:
            yield OpenClawSession(transport, self)


class OpenClawSession:
    """Open connections to OpenClaw, inside one event loop.

    Requests go to httpx's transport as they are: what its client adds to each (cookies, redirects, proxies, URLs put
    together anew) is nothing that the contract has, and a third of the time.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, to: OpenClaw) -> None:
        self._transport = transport
        self._base = to.url.rstrip("/")
        self._rating = httpx.URL(f"{self._base}/rating")
        self._status_path = to.status_path
        self._headers = httpx.Headers(
            {
                "Host": self._rating.netloc.decode("ascii"),
                "Authorization": f"Bearer {to.token.get_secret_value()}",
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # a compressed answer can be a thousand times what was received
            }
        )
        self._timeout = to.timeout
        self._token = to.token
        self._extensions = {"timeout": httpx.Timeout(to.timeout).as_dict()}

    async def rate(
        self, tenant_id: str, service: str, quantity: Decimal, currency: str, *, negative: bool = False
    ) -> Answer:
        """What ``quantity`` of ``service`` (as OpenClaw names it) costs the tenant, who is billed in ``currency``.

        ``negative`` says whether the amount may be. Raises OpenClawError; nothing is tried twice here.
        """
        # json has no exact numbers, so the quantity is written by hand; it is digits, a sign and a point at most.
        body = f'{{"tenant_id":{json.dumps(tenant_id)},"service":{json.dumps(service)},"quantity":{plain(quantity)}}}'
        started = time.perf_counter()
        text = await self._send("POST", self._rating, body)
        elapsed = Decimal(round((time.perf_counter() - started) * 1_000_000)) / 1000
        return read_answer(text, currency, elapsed, negative=negative)

    async def put_status(self, tenant_id: str, status: str) -> None:
        """Tells OpenClaw how the tenant stands (``paid``, ``overdue``, …). Raises OpenClawError."""
        path = self._status_path.format(tenant_id=quote(tenant_id, safe=""))
        await self._send("PUT", httpx.URL(self._base + path), json.dumps({"status": status}))

    async def _send(self, method: str, url: httpx.URL, body: str) -> str:
        request = httpx.Request(method, url, headers=self._headers, content=body, extensions=self._extensions)
        try:
            # The transport's timeouts are those of a single read: a server that drips never meets them.
            async with asyncio.timeout(self._timeout):
                response = await self._transport.handle_async_request(request)
                try:
                    chunks, size = [], 0
                    async for chunk in response.aiter_bytes():
                        size += len(chunk)
                        if size > MAX_ANSWER_BYTES:
                            raise OpenClawError("the answer is larger than 1 MB", retryable=False)
                        chunks.append(chunk)
                finally:
                    await response.aclose()
        # The transport passes some of aiohttp's errors on as they are.
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise OpenClawError(f"OpenClaw can't be reached: {type(error).__name__}", retryable=True) from error
        text = b"".join(chunks).decode("utf-8", "replace")
        if response.is_success:
            return text
        retryable = response.status_code == 429 or response.status_code >= 500
        said = _kept(text.replace(self._token.get_secret_value(), "***"))  # an error page may echo the request
        raise OpenClawError(
            f"OpenClaw answered {response.status_code}: {said[:300]}",
            retryable=retryable,
            answer=said,
            retry_after=_seconds(response.headers.get("Retry-After")),
        )


def read_answer(text: str, currency: str, latency_ms: Decimal, *, negative: bool = False) -> Answer:
    """The rating in an answer's JSON text. Raises OpenClawError (final) where it is not one, saying which field."""

    def refuse(why: str) -> OpenClawError:
        return OpenClawError(f"unusable answer: {why}", retryable=False, answer=_kept(text))

    try:
        body = json.loads(text, parse_float=Decimal, parse_constant=Decimal)
        kept = _storable(body, clean="\\u" in text)
    except (ValueError, ArithmeticError, RecursionError):
        raise refuse(f"not JSON: {text[:60]!r}") from None
    if not isinstance(body, dict):
        raise refuse("not a JSON object")
    if "amount_cents" not in body:
        raise refuse(f"amount_cents is missing; there is {', '.join(map(repr, list(body)[:10])) or 'nothing'}")
    said = str(body.get("currency") or currency).upper()
    if said != currency:
        raise refuse(f"currency is {said[:20]!r}, but the account is billed in {currency}")
    cents = body["amount_cents"]
    try:
        if isinstance(cents, bool) or not isinstance(cents, int | str | Decimal):
            raise MoneyError(f"{str(cents)[:60]!r} is not a number")
        amount = _amount(cents, currency)
    except MoneyError as error:
        raise refuse(f"amount_cents: {error}; send a whole number, or a decimal as a string") from None
    if amount < 0 and not negative:
        raise refuse(f"amount_cents is negative ({plain(amount)} {currency}), and the service takes no usage back")
    version = str(kept.get("rate_card_version") or "")[:200]
    return Answer(amount, currency, version, kept, latency_ms, *_limits(body.get("limits"), amount, currency))


def _limits(said: Any, amount: Decimal, currency: str) -> tuple[Decimal, Decimal | None, Decimal | None]:
    """``(unlimited, maximum, minimum)``. No part of the contract: what does not explain the amount is no such thing."""
    if isinstance(said, dict) and "unlimited_cents" in said:
        try:
            unlimited = _amount(said["unlimited_cents"], currency)
            maximum, minimum = (
                _amount(said[key], currency) if key in said else None for key in ("maximum_cents", "minimum_cents")
            )
        except (TypeError, ValueError, ArithmeticError):
            return amount, None, None
        if limited(unlimited, maximum, minimum) == amount:
            return unlimited, maximum, minimum
    return amount, None, None


def limited(amount: Decimal, maximum: Decimal | None, minimum: Decimal | None) -> Decimal:
    """``amount`` within its limits."""
    if maximum is not None and amount > maximum:
        return maximum
    return minimum if minimum is not None and amount < minimum else amount


def _kept(text: str) -> str:
    """What is kept of an unusable answer: PostgreSQL holds no NUL."""
    return text[:10_000].replace("\0", "\ufffd")


def _amount(cents: int | str | Decimal, currency: str) -> Decimal:
    """``cents`` in the major unit, to the last place that the ledger keeps.

    A string has the digits that its writer meant, and is rounded where a price of a fraction of a unit has more of
    them than the ledger. A JSON number with so many digits is what a float made of an amount.
    """
    amount = from_minor(_number(cents), currency)
    if isinstance(cents, str) and amount.copy_abs() < LIMIT:
        amount = rounded(amount, SCALE)
    return exact(amount)


def _number(value: int | str | Decimal) -> Decimal:
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise MoneyError(f"{value[:60]!r} is not a number")
    number = Decimal(value)
    if not number.is_finite():
        raise MoneyError(f"{value!r} is not finite")
    return number


def _storable(value: Any, *, clean: bool) -> Any:
    """The same JSON value as PostgreSQL can hold it: decimals as strings, so that no digit changes, and (``clean``)
    without NULs and half surrogate pairs, which only escapes can bring into JSON."""
    if isinstance(value, dict):
        return {_storable(key, clean=clean): _storable(item, clean=clean) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item, clean=clean) for item in value]
    if clean and isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return str(value) if isinstance(value, Decimal) else value


def _seconds(header: str | None) -> float | None:
    """Seconds to wait by a ``Retry-After`` header, which is a number or a date (RFC 9110, 10.2.3)."""
    if not header:
        return None
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
