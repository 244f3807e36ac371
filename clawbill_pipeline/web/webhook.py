"""``POST /stripe/webhook``: verify, store, answer. What an event means is decided later, from the inbox.

Cheap refusals come first: size, headers, signature, JSON, then the database. What is refused is counted and not stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from stripe import SignatureVerificationError, WebhookSignature

from clawbill_pipeline.clock import Clock
from clawbill_pipeline.invoicing.landing import Landed, NotAnEvent, read_envelope
from clawbill_pipeline.web.bodies import Refused, check_length, read_body
from clawbill_pipeline.web.landing import DatabaseAway, GroupWriter

#: Stripe's events are some kilobytes; an invoice embeds ten lines at most.
MAX_BODY = 1_000_000
#: Seconds by which a signature may be old (Stripe's own default), by the machine's clock.
TOLERANCE = 300
RETRY_AFTER = "30"

_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


class Webhook:
    """The endpoint. ``live`` says whether it takes live events or test events, never both."""

    def __init__(
        self,
        secrets: Sequence[SecretStr],
        writer: GroupWriter[Landed],
        counts: Counter[str],
        clock: Clock,
        *,
        live: bool,
    ) -> None:
        self._secrets = [secret.get_secret_value() for secret in secrets]
        self._writer = writer
        self._counts = counts
        self._clock = clock
        self._live = live

    async def __call__(self, request: Request) -> Response:
        try:
            signature = self._signature(request)
            body = verified(await read_body(request, MAX_BODY), signature, self._secrets)
            await self._writer.land(self._event(body, request.headers))
        except Refused as refusal:
            return self._refuse(refusal.status, refusal.reason, str(refusal))
        except DatabaseAway:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "database_away", "not stored; send it again")
        return PlainTextResponse("stored")

    def _signature(self, request: Request) -> str:
        headers = request.headers
        check_length(request, MAX_BODY)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_type", "Content-Type must be application/json")
        signature = headers.get("stripe-signature")
        if not signature:
            raise Refused(HTTPStatus.BAD_REQUEST, "no_signature", "no Stripe-Signature header")
        if not self._secrets:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "no_secret", "no signing secret is set here: set STRIPE_WEBHOOK_SECRET"
            )
        return signature

    def _event(self, body: str, headers: Mapping[str, str]) -> Landed:
        try:
            envelope = read_envelope(body)
        except NotAnEvent as error:
            raise Refused(HTTPStatus.BAD_REQUEST, error.reason, str(error)) from None
        if envelope.livemode != self._live:
            mode, other = ("live", "test") if self._live else ("test", "live")
            raise Refused(HTTPStatus.BAD_REQUEST, "other_mode", f"a {other} event; this endpoint takes {mode} events")
        kept = {name: value for name, value in headers.items() if name not in _SECRET_HEADERS}
        return Landed(envelope, body, kept, "webhook", self._clock())

    def _refuse(self, status: HTTPStatus, reason: str, message: str) -> Response:
        self._counts[reason] += 1
        headers = {"Retry-After": RETRY_AFTER} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return PlainTextResponse(message, status, headers)


def verified(body: bytes, signature: str, secrets: Sequence[str]) -> str:
    """The body as text, once one of ``secrets`` has signed it not longer than TOLERANCE ago. Raises Refused."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(HTTPStatus.BAD_REQUEST, "bad_signature", "the body is not UTF-8") from None
    for secret in secrets:
        try:
            WebhookSignature.verify_header(text, signature, secret, TOLERANCE)
        except (SignatureVerificationError, TypeError):  # TypeError: a signature that is not ASCII
            continue
        return text
    raise Refused(HTTPStatus.BAD_REQUEST, "bad_signature", "no valid signature, or one that is too old")
