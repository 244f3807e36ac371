"""``POST /usage``: CloudEvents from senders with a token, answered once they are committed. Landing reads them there.

Cheap refusals come first: token, type, size, JSON, then what each event says. A refused request leaves nothing behind;
one that is answered with 200 is in the ledger whatever happens next, and the same request again changes nothing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import pyarrow.compute as pc
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clawbill_pipeline.catalog import Catalog, CatalogError
from clawbill_pipeline.catalog.sources import Http
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.ledger import Ledger, LedgerError
from clawbill_pipeline.usage.event_columns import EventColumns
from clawbill_pipeline.usage.events import Fault, Judge
from clawbill_pipeline.usage.ingested import Posted, posted
from clawbill_pipeline.usage.json_formats import CloudEventRecords, parse
from clawbill_pipeline.usage.tokens import Token, find_token, name_of
from clawbill_pipeline.web.bodies import Refused, check_length, read_body
from clawbill_pipeline.web.finance.catalogue import CatalogFile
from clawbill_pipeline.web.landing import DatabaseAway, GroupWriter
from clawbill_pipeline.web.metrics import WebMetrics

log = logging.getLogger(__name__)

#: Bytes of a request, and of all requests that are being worked on: more are asked to come again.
MAX_BODY, MAX_IN_HAND = 4_000_000, 64_000_000
#: Bytes of a body that is read where it stands; a larger one would keep other requests waiting, and gets a thread.
SMALL_BODY = 32_000
#: Seconds for which a token and the catalogue are remembered.
REMEMBERED = 10.0
RETRY_AFTER = "5"
#: Faulty events that an answer names.
NAMED = 100

#: Events of a request from which on they are looked at together: below, Arrow costs more than they do.
_MANY = 500
_GLANCE = timedelta(seconds=REMEMBERED)
SINGLE, BATCH, BINARY = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"
_FORMAT = CloudEventRecords()


@dataclass(frozen=True)
class Mistake:
    """What is wrong with one event: its place in the request, and the fault in it."""

    index: int
    reason: str
    field: str
    detail: str

    def as_json(self, *, batch: bool) -> dict[str, object]:
        parts = [str(self.index)] if batch else []
        parts += self.field.split(".") if self.field != "line" else []
        pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)
        return {
            "index": self.index,
            "pointer": pointer,
            "field": self.field,
            "reason": self.reason,
            "detail": self.detail,
        }


class Unprocessable(Refused):
    """A request that is refused for its events, with the ``mistakes`` in them."""

    def __init__(self, status: HTTPStatus, reason: str, message: str, mistakes: Sequence[Mistake], batch: bool) -> None:
        super().__init__(status, reason, message)
        self.mistakes = mistakes
        self.batch = batch


@dataclass(frozen=True)
class Reading:
    """A request that was read: what is to be stored, and the events of it that will go to quarantine."""

    row: Posted
    mistakes: Sequence[Mistake]
    batch: bool


class Ingest:
    """The endpoint."""

    def __init__(
        self, catalog: CatalogFile, ledger: Ledger, writer: GroupWriter[Posted], metrics: WebMetrics, clock: Clock
    ) -> None:
        self._catalog = _Remembered(catalog)
        self._tokens = _Tokens(ledger)
        self._writer = writer
        self._metrics = metrics
        self._clock = clock
        self._glance = Glance()
        self._in_hand = 0

    async def __call__(self, request: Request) -> Response:
        started, reason = time.perf_counter(), ""
        try:
            response = await self._answer(request)
        except Unprocessable as refusal:
            reason = refusal.reason
            self._metrics.ingest_events.labels("refused").inc(len(refusal.mistakes))
            errors = [mistake.as_json(batch=refusal.batch) for mistake in refusal.mistakes[:NAMED]]
            response = _problem(refusal, {"errors": errors, "faulty_events": len(refusal.mistakes)})
        except Refused as refusal:
            reason = refusal.reason
            response = _problem(refusal)
        except (DatabaseAway, LedgerError, SQLAlchemyError):
            reason = "database_away"
            response = _problem(Refused(HTTPStatus.SERVICE_UNAVAILABLE, reason, "not stored; post it again"))
        if response.status_code != HTTPStatus.OK:
            log.info("usage refused", extra={"fields": {"status": response.status_code, "reason": reason}})
        self._metrics.ingest_requests.labels(str(response.status_code)).inc()
        self._metrics.ingest_seconds.observe(time.perf_counter() - started)
        return response

    async def _answer(self, request: Request) -> Response:
        token = await self._tokens.of(request.headers.get("authorization", ""))
        kind = _kind(request.headers)
        check_length(request, MAX_BODY)
        catalog, source = await self._source()
        # A chunked body does not say how large it will be; most are small.
        length = int(request.headers.get("content-length", SMALL_BODY))
        if self._in_hand + length > MAX_IN_HAND:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too much usage at once; post it again")
        self._in_hand += length
        try:
            body = await read_body(request, MAX_BODY)
            self._in_hand += len(body) - length
            length = len(body)
            if kind == BINARY:
                body = _structured(request.headers, body)
            lenient = _is_lenient(request.headers)
            given = (body, kind == BATCH, token, source, catalog, self._clock(), lenient, self._glance)
            reading = read_request(*given) if len(body) <= SMALL_BODY else await run_in_threadpool(read_request, *given)
            if reading.row.events:
                await self._writer.land(reading.row)
        finally:
            self._in_hand -= length
        good = reading.row.events - len(reading.mistakes)
        self._metrics.ingest_events.labels("accepted").inc(good)
        self._metrics.ingest_events.labels("quarantined").inc(len(reading.mistakes))
        self._metrics.ingest_bytes.inc(len(body))
        quarantined = [mistake.as_json(batch=reading.batch) for mistake in reading.mistakes]
        headers = {"Preference-Applied": "handling=lenient"} if lenient else None
        return JSONResponse({"accepted": good, "quarantined": quarantined}, headers=headers)

    async def _source(self) -> tuple[Catalog, Http]:
        try:
            catalog = await self._catalog.current()
        except CatalogError as error:
            log.error("usage over HTTP: %s", error)
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "no_catalogue", "the billing catalogue can't be read; post it again"
            ) from None
        for source in catalog.sources:
            if isinstance(source, Http):
                return catalog, source
        raise Refused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "no_source",
            "the billing catalogue has no source of kind http, so no usage is taken here",
        )


def read_request(
    body: bytes,
    batch: bool,
    token: Token,
    source: Http,
    catalog: Catalog,
    now: datetime,
    lenient: bool,
    glance: Glance,
) -> Reading:
    """What a request says. Raises Refused for JSON that is no CloudEvent, or no array of them where it must be one.

    Raises Unprocessable where the token does not cover an event, or an event is no usage; with ``lenient``, the latter
    is stored as well, and landing sets it aside.
    """
    try:
        records = parse(body)
    except Fault as fault:
        raise Refused(HTTPStatus.BAD_REQUEST, fault.reason, fault.detail) from None
    shape = body.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
    if batch and shape != b"[":
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "not_a_batch", "a batch is a JSON array of CloudEvents")
    if not batch and (shape != b"{" or len(records) != 1):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, "not_a_cloudevent", f"one JSON object is one event; post arrays as {BATCH}"
        )
    row = posted(source.name, token.name, body, len(records), now)
    judge = Judge(catalog, now)
    if len(records) >= _MANY and _is_good(body, token, glance.columns(catalog, judge, now)):
        return Reading(row, (), batch)
    forbidden, mistakes = [], []
    for index, record in enumerate(records):
        if isinstance(record, dict) and not token.covers(record.get("subject"), record.get("type")):
            forbidden.append(_not_covered(index, record, token))
            continue
        try:
            for claims in _FORMAT.claims(record) or ():
                judge.event(claims)
        except Fault as fault:
            mistakes.append(Mistake(index, fault.reason, fault.field, fault.detail))
    if forbidden:
        message = f"token {token.name!r} does not cover {len(forbidden)} of the events; nothing was stored"
        raise Unprocessable(HTTPStatus.FORBIDDEN, "not_covered", message, forbidden, batch)
    if mistakes and not lenient:
        message = f"{len(mistakes)} of {len(records)} events are no usage; nothing was stored. Mend them and post again"
        raise Unprocessable(HTTPStatus.UNPROCESSABLE_ENTITY, "not_usage", message, mistakes, batch)
    return Reading(row, mistakes, batch)


class Glance:
    """What looks at many events together, made anew for another catalogue and every few seconds.

    Its clock is late by as much, so it takes fewer events from the future for usage, and never one too many.
    """

    def __init__(self) -> None:
        self._made: tuple[Catalog, datetime, EventColumns] | None = None

    def columns(self, catalog: Catalog, judge: Judge, now: datetime) -> EventColumns:
        made = self._made
        if made is None or made[0] is not catalog or not timedelta(0) <= now - made[1] < _GLANCE:
            made = self._made = (catalog, now, EventColumns(judge))
        return made[2]


def _is_good(body: bytes, token: Token, columns: EventColumns) -> bool:
    """Whether every event is usage, and the token covers it, beyond doubt: a look at columns, not at each event."""
    batches, left = columns.read([(0, body)])
    if left or len(batches) != 1:
        return False
    (events,) = batches
    tenants, services = (pc.unique(events[name]).to_pylist() for name in ("tenant_id", "service"))
    return all(token.covers(tenant, None) for tenant in tenants) and all(
        token.covers(None, service) for service in services
    )


def _not_covered(index: int, record: Mapping[str, Any], token: Token) -> Mistake:
    field = "type" if token.covers(record.get("subject"), None) else "subject"
    kind = "tenant" if field == "subject" else "service"
    return Mistake(index, "not_covered", field, f"the token is not good for {kind} {str(record.get(field))[:80]!r}")


def _kind(headers: Mapping[str, str]) -> str:
    """Which of the three content modes a request is in. Raises Refused."""
    media, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
    charset = next((part.removeprefix("charset=").strip('"') for part in parameters if part[:8] == "charset="), "utf-8")
    if headers.get("content-encoding", "identity") != "identity":
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_encoding", "Content-Encoding: post the body uncompressed"
        )
    if media not in (SINGLE, BATCH, BINARY) or (media == BINARY and "ce-specversion" not in headers):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "content_type",
            f"Content-Type must be {SINGLE}, {BATCH}, or {BINARY} with the event's attributes in ce- headers",
        )
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_type", "Content-Type: the charset must be utf-8")
    return media


def _structured(headers: Mapping[str, str], data: bytes) -> bytes:
    """The event of a request in binary mode (CloudEvents HTTP binding, 3.1) as one JSON object, its data as it is.

    Raises Refused where the data alone is no JSON.
    """
    if data.strip():
        try:
            parse(data)
        except Fault as fault:
            raise Refused(HTTPStatus.BAD_REQUEST, fault.reason, fault.detail) from None
    attributes = {name[3:]: unquote(value) for name, value in headers.items() if name.startswith("ce-")}
    attributes.pop("data", None)
    start = json.dumps(attributes).encode()
    return start[:-1] + b', "data": ' + data + b"}" if data.strip() else start


def _is_lenient(headers: Mapping[str, str]) -> bool:
    """Whether the sender prefers what can be stored to all or nothing (RFC 7240, 4.4)."""
    preferences = (part.replace(" ", "").lower() for part in headers.get("prefer", "").split(","))
    return "handling=lenient" in preferences


def _problem(refusal: Refused, more: Mapping[str, object] | None = None) -> Response:
    """A refusal as RFC 9457 has it."""
    headers = {"Content-Type": "application/problem+json"}
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="usage"'
    if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_AFTER
    document = {
        "type": f"urn:clawbill:problem:{refusal.reason}",
        "title": refusal.status.phrase,
        "status": refusal.status.value,
        "detail": str(refusal),
        **(more or {}),
    }
    return JSONResponse(document, refusal.status, headers)


class _Tokens:
    """The tokens that were shown lately. Those that nobody knows are remembered as well: a flood of them is cheap."""

    _MOST = 10_000

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[str, tuple[float, Token | None]] = {}

    async def of(self, header: str) -> Token:
        """Raises Refused where the header shows no token that is in use."""
        scheme, _, presented = header.partition(" ")
        presented = presented.strip()
        name = name_of(presented) if scheme.lower() == "bearer" else None
        token = await self._find(name) if name is not None else None
        if token is None or not token.opens(presented):
            raise Refused(HTTPStatus.UNAUTHORIZED, "no_token", "Authorization: show a token that is in use, as Bearer")
        return token

    async def _find(self, name: str) -> Token | None:
        at, token = self._known.get(name, (-REMEMBERED, None))
        if time.monotonic() - at < REMEMBERED:
            return token
        token = await run_in_threadpool(find_token, self._ledger, name)
        if len(self._known) >= self._MOST:
            self._known.clear()
        self._known[name] = (time.monotonic(), token)
        return token


@dataclass
class _Remembered:
    """The catalogue, looked at again every few seconds, in a thread: a large one takes a while to read."""

    file: CatalogFile
    _catalog: Catalog | None = None
    _looked: float = field(default=-REMEMBERED)
    _is_broken: bool = False

    async def current(self) -> Catalog:
        """The one that was good last. Raises CatalogError where none was."""
        if self._catalog is None or time.monotonic() - self._looked >= REMEMBERED:
            self._looked = time.monotonic()  # whoever asks meanwhile gets the one there is
            try:
                self._catalog = await run_in_threadpool(self.file.current)
                self._is_broken = False
            except CatalogError as error:
                if self._catalog is None:
                    raise
                if not self._is_broken:
                    log.error("usage over HTTP is judged by the catalogue as it was: %s", error)
                self._is_broken = True
        return self._catalog
