"""Usage that an OpenClaw ClawRouter keeps, over HTTP: ``GET /v1/admin/usage``, newest events first.

As its source has it (openclaw/clawrouter, August 2026: worker/admin.ts, ledgers.ts, pricing.ts): events are kept for 30
days, ids are unique, and an answer holds the newest 100 and no way to older ones. It is asked for older ones all the
same until the last event that was landed is found. Where it is not, usage is missing, and quarantine says between which
events.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import httpx

from clawbill_pipeline.catalog.sources import OPENCLAW_SERVICES, ClawRouter
from clawbill_pipeline.usage.events import Claims, Fault
from clawbill_pipeline.usage.inputs import InputFault, Landing, Line
from clawbill_pipeline.usage.json_formats import parse

PATH = "/v1/admin/usage"
TYPE = "clawrouter.usage.v1"
_EVENTS = 5_000
#: Tries of one request, seconds between the first two (then twice as many), and the most that is waited for one.
_TRIES = 4
_PAUSE = 0.5
_LONGEST_PAUSE = 30
_TIMEOUT = 30
_TOO_MUCH = 256 * 1024 * 1024
#: The year 9999, in milliseconds.
_LATEST = 253_370_764_800_000


class _Event(NamedTuple):
    """An event as it came. Sorted, events are in the order of their times."""

    ms: int
    id: str
    text: bytes

    @property
    def position(self) -> str:
        return f"event {self.id} at {self.ms}"

    def line(self, fault: Fault | None = None) -> Line:
        """A line whose place is the same whenever the event is read: its time, and what tells it from its likes."""
        return Line(self.ms, zlib.crc32(self.id.encode()), self.text, fault)


class EventBlock(NamedTuple):
    """Events in the order of their times; ``gap`` stands for those before them that were not offered."""

    events: list[_Event]
    gap: Line | None = None
    whole: bool = True

    @property
    def data(self) -> bytes:
        return b"\n".join([self.gap.raw if self.gap else b"", *(event.text for event in self.events)])

    @property
    def position(self) -> str:
        return self.events[-1].position

    @property
    def size(self) -> int:
        return sum(len(event.text) for event in self.events)

    def lines(self) -> Iterator[Line]:
        if self.gap is not None:
            yield self.gap
        for event in self.events:
            yield event.line()


class RouterUsage:
    """The events of a gateway as an input. Its position is the newest event that was landed."""

    def __init__(self, source: ClawRouter, env: Mapping[str, str]) -> None:
        self._source = source
        self._env = env
        self.uri = PATH
        self.format = RouterEvents(source)
        self.looks_back = False

    def size(self) -> int:
        return 0

    def stamp(self) -> None:
        return None

    def line_at(self, number: int, offset: int) -> Line:
        for page, _ in self._pages():
            for event in page:
                if event.line()[:2] == (number, offset):
                    return event.line()
            if page and page[0].ms < number:
                break
        raise InputFault("gone", f"the gateway does not offer the event of {_moment(number)} any more")

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[EventBlock]:
        last = _position(landed[-1].position) if landed else None
        since = last.ms - self._source.overlap * 1000 if last else None
        found: dict[str, _Event] = {}
        kept: int | None = None
        complete = False
        for page, at_gateway in self._pages():
            found.update((event.id, event) for event in page)
            kept = at_gateway if kept is None else kept
            if last is not None and max(found.values()).id == last.id:
                return  # nothing new: what is older was landed, or will be with the next one
            complete = last is not None and last.id in found
            if complete and since is not None and page[0].ms < since:
                break
        events = sorted(event for event in found.values() if since is None or event.ms >= since)
        if last is None:
            complete = len(found) >= (kept or 0)
        gap = None if complete or not events else _gap(last, min(found.values()))
        for start in range(0, len(events), _EVENTS):
            yield EventBlock(events[start : start + _EVENTS], gap)
            gap = None

    def _pages(self) -> Iterator[tuple[list[_Event], int]]:
        """``(events of a page by time, how many the gateway says it keeps)``, from the newest page back to where older
        ones are no longer offered."""
        seen: set[str] = set()
        oldest: str | None = None
        with self._client() as client:
            while True:
                events, kept = self._page(client, oldest)
                if seen.issuperset(event.id for event in events):
                    return
                seen.update(event.id for event in events)
                oldest = events[0].id
                yield events, kept
                if self._source.page_by is None:
                    return

    def _client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._secret(self._source.token_env)}", "Accept": "application/json"}
        headers |= {name: self._secret(variable) for name, variable in self._source.headers_env.items()}
        return httpx.Client(headers=headers, timeout=_TIMEOUT)

    def _secret(self, variable: str) -> str:
        found = self._env.get(variable, "").strip()
        if not found or not found.isascii() or not found.isprintable():
            raise OSError(f"set {variable} to what source {self._source.name!r} needs it for; see docs/sources.md")
        return found

    def _page(self, client: httpx.Client, before: str | None) -> tuple[list[_Event], int]:
        query = {self._source.page_by: before} if before and self._source.page_by else {}
        answer = self._answer(client, query)
        try:
            usage = json.loads(answer, parse_float=Decimal)["usage"]
            events = _sorted(usage["events"])
            kept = int((usage.get("summary") or {}).get("requestCount") or 0)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise OSError(f"{self._address} answers no usage events of a ClawRouter; is the url right?") from None
        return events, kept

    @property
    def _address(self) -> str:
        return f"{self._source.url.rstrip('/')}{PATH}"

    def _answer(self, client: httpx.Client, query: Mapping[str, str]) -> bytes:
        """The body of a good answer. What passes by itself is tried again, as late as the gateway asks for."""
        for left in reversed(range(_TRIES)):
            pause = _PAUSE * 2 ** (_TRIES - 1 - left) * random.uniform(0.5, 1.5)  # noqa: S311 - only spreads load
            try:
                with client.stream("GET", self._address, params=query) as answer:
                    if answer.status_code == 200:
                        return self._body(answer)
                    said = f"{answer.status_code} {answer.reason_phrase}".strip()
                    if answer.status_code != 429 and answer.status_code < 500:
                        raise OSError(self._refused(answer.status_code, said))
                    pause = _asked_for(answer.headers.get("Retry-After")) or pause
            except httpx.HTTPError as error:
                said = f"no answer ({type(error).__name__})"
            if left:
                time.sleep(min(pause, _LONGEST_PAUSE))
        raise OSError(f"{self._address}: {said}, after {_TRIES} tries; it is asked again with the next landing")

    def _body(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _TOO_MUCH:
                raise OSError(f"{self._address}: the answer has more than {_TOO_MUCH:,} bytes; is the url right?")
        return bytes(body)

    def _refused(self, status: int, said: str) -> str:
        if status in (401, 403):
            return f"{self._address}: no permission ({said}); set {self._source.token_env} to the gateway's admin token"
        if 300 <= status < 400:
            return (
                f"{self._address}: it sends us elsewhere ({said}); behind Cloudflare Access, give a service token by "
                "headers_env"
            )
        return f"{self._address}: {said}; is the url that of a ClawRouter?"


class RouterEvents:
    """How an event reads."""

    def __init__(self, source: ClawRouter) -> None:
        self._source = source

    def records(self, line: Line) -> list[Any]:
        return parse(line.raw)

    def claims(self, record: Any) -> Sequence[Claims] | None:
        if not isinstance(record, dict):
            raise Fault("not_an_object", "line", "a usage event must be a JSON object")
        tenant = record.get(self._source.tenant)
        if record.get("type", TYPE) != TYPE:
            known = tenant if isinstance(tenant, str) else None
            raise Fault("unknown_schema", "type", f"{str(record['type'])[:80]!r} is not {TYPE}; update clawbill", known)
        dimensions = {
            "provider": record.get("provider"),
            "model": record.get("model"),
            "capability": record.get("capability"),
            "agent": record.get("agent_id"),
        }
        cost = record.get("actual_cost_micros")
        claimed: list[Claims] = []
        for service, (name, count) in _counts(record).items():
            if service in self._source.services and count is not None and count != 0:
                event_id = f"{record.get('id')}#{service}" if record.get("id") else None
                fields = ("id", self._source.tenant, "service", name, "occurred_at_ms")
                # What the provider charged is of the whole event: it stands once.
                told = cost / 1_000_000 if isinstance(cost, Decimal) and cost.is_finite() and not claimed else None
                claimed.append(
                    Claims(event_id, tenant, service, count, record.get("occurred_at_ms"), dimensions, fields, told)
                )
        return claimed

    def shown(self, record: Any) -> Any:
        return record

    def raw(self, line: Line) -> bytes:
        return line.raw


def _counts(record: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """What an event bears by service, with the field's name; a value that is no number is left for the judge.

    ``input_tokens`` counts cached tokens too, by OpenAI's manner and ClawRouter's own pricing; in Anthropic's messages,
    and wherever the cached ones are more, they are apart.
    """
    names = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_input_tokens")
    given, output, read, write = (record.get(name) for name in names)
    cached = sum((value for value in (read, write) if isinstance(value, Decimal)), Decimal(0))
    if isinstance(given, Decimal) and record.get("capability") != "llm.messages" and cached <= given:
        given -= cached
    messages = Decimal(1) if record.get("status") == "success" else None
    counts = dict(zip(OPENCLAW_SERVICES, (given, output, read, write, messages), strict=True))
    return {service: (name, counts[service]) for service, name in zip(counts, (*names, "status"), strict=True)}


def _sorted(given: Sequence[Any]) -> list[_Event]:
    """Events by time. One without a time or an id stands where it came, and is set aside when it is read."""
    events: list[_Event] = []
    for record in reversed(given):  # oldest first
        text = json.dumps(record, default=str).encode()
        members = record if isinstance(record, dict) else {}
        ms, id = members.get("occurred_at_ms"), members.get("id")
        if not isinstance(ms, int) or isinstance(ms, bool) or not 0 <= ms < _LATEST:
            ms = events[-1].ms if events else 0
        if not isinstance(id, str) or not id:
            id = f"?{hashlib.sha256(text).hexdigest()[:20]}"
        events.append(_Event(ms, id, text))
    return sorted(events)


def _position(text: str) -> _Event:
    id, _, ms = text.removeprefix("event ").rpartition(" at ")
    return _Event(int(ms), id, b"")


def _gap(last: _Event | None, oldest: _Event) -> Line:
    """The line that stands for events that were not offered."""
    after = f"{last.id} of {_moment(last.ms)}" if last else "the beginning"
    fault = Fault(
        "gap",
        "events",
        f"the gateway does not offer all events between {after} and {oldest.id} of {_moment(oldest.ms)}: usage may be "
        "missing. Land more often; what is missing can be posted, or put into a file, under the same ids",
    )
    raw = json.dumps({"after": last.id if last else None, "before": oldest.id}).encode()
    return oldest.line(fault)._replace(raw=raw)


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _asked_for(retry_after: str | None) -> float | None:
    """Seconds that the gateway asks us to wait for; None where it does not say."""
    return float(retry_after) if retry_after and retry_after.isdigit() else None
