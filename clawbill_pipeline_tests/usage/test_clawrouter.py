"""ClawRouter over HTTP: read back to the last event that was landed, once, politely; what it withholds is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from clawbill_pipeline.usage import clawrouter
from clawbill_pipeline.usage.replay import replay
from clawbill_pipeline_tests.usage.conftest import NOW, Place, catalogue, check

TOKEN = "hunter2-admin"
START = int(datetime(2026, 11, 22, 10, tzinfo=UTC).timestamp() * 1000)


@dataclass
class Router:
    """What a ClawRouter answers. ``pages``: it knows ``before``; today's doesn't. ``answers`` come first, in order."""

    url: str = ""
    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    limit: int = 100
    pages: bool = False
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def use(self, number: int, minutes: float | None = None, **changes: Any) -> None:
        """An event so many minutes (its number's by default) after START."""
        at = START + round(60_000 * (number if minutes is None else minutes))
        event = {
            "id": f"usage_{number:04d}", "type": "clawrouter.usage.v1", "occurred_at_ms": at, "tenant_id": "acme",
            "policy_id": "p1", "principal_id": None, "session_id": "s", "agent_id": "main", "request_id": f"r{number}",
            "provider": "openai", "capability": "llm.chat", "model": "openai/gpt", "input_tokens": 100,
            "output_tokens": 7, "total_tokens": 107, "cached_input_tokens": 60, "cache_write_input_tokens": None,
            "actual_cost_micros": 1500, "pricing_ref": "p", "cost_basis": "manifest_pricing", "status": "success",
        }  # fmt: skip
        event |= changes
        self.events.append((at, {name: value for name, value in event.items() if value is not ...}))

    def answer(self, path: str) -> dict[str, Any]:
        query = parse_qs(urlsplit(path).query)
        newest = [event for _, event in sorted(self.events, key=lambda kept: kept[0], reverse=True)]
        if self.pages and "before" in query:
            ids = [event["id"] for event in newest]
            newest = newest[ids.index(query["before"][0]) + 1 :]
        summary = {"requestCount": len(self.events)}
        return {"policies": [], "usage": {"ledger": "l", "summary": summary, "events": newest[: self.limit]}}


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    made = Router()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            made.headers = dict(self.headers)
            status, headers = made.answers.pop(0) if made.answers else (200, {})
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                status = 403
            body = json.dumps(made.answer(self.path)).encode() if status == 200 else b'{"error":"hunter2-in-the-body"}'
            if headers.get("close"):
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("CLAWROUTER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setattr(clawrouter, "_PAUSE", 0.001)
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def place(place: Place, router: Router) -> Place:
    place.sources = ({"name": "router", "kind": "clawrouter", "url": router.url},)
    return place


def landed_ids(place: Place) -> list[str]:
    return [event["event_id"].partition("#")[0] for event in place.events() if event["service"] == "messages"]


def test_an_event_becomes_usage_by_service(place: Place, router: Router) -> None:
    router.use(1)
    # Anthropic's messages count cached tokens apart.
    router.use(2, capability="llm.messages", provider="anthropic", model="anthropic/x", cache_write_input_tokens=5)
    router.use(3, status="denied", input_tokens=None, output_tokens=None, cached_input_tokens=None, model=None)
    assert place.land().problems == ()
    told = {(e["event_id"], e["quantity"], e["dimensions"], e["cost"]) for e in place.events()}
    openai, anthropic = "openai/openai%2Fgpt", "anthropic/anthropic%2Fx"
    cost = Decimal("0.0015")
    assert told == {
        ("usage_0001#tokens.input", 40, openai, cost),
        ("usage_0001#tokens.output", 7, openai, None),
        ("usage_0001#tokens.cache_read", 60, openai, None),
        ("usage_0001#messages", 1, "", None),
        ("usage_0002#tokens.input", 100, anthropic, cost),
        ("usage_0002#tokens.output", 7, anthropic, None),
        ("usage_0002#tokens.cache_read", 60, anthropic, None),
        ("usage_0002#tokens.cache_write", 5, anthropic, None),
        ("usage_0002#messages", 1, "", None),
    }
    assert {e["tenant_id"] for e in place.events()} == {"acme"}
    assert place.events()[0]["event_time"] == datetime(2026, 11, 22, 10, 1, tzinfo=UTC)


def test_pages_are_read_back_to_the_last_event_and_no_further(place: Place, router: Router) -> None:
    router.pages, router.limit = True, 10
    for number in range(25):
        router.use(number)
    landed = place.land()
    assert (landed.event_lines, landed.quarantined) == (25, 0)
    assert [path.partition("?")[2] for path in router.asked] == [
        "", "before=usage_0015", "before=usage_0005", "before=usage_0000"
    ]  # fmt: skip
    router.asked.clear()
    again = place.land()
    assert (again.landings, again.lines, len(router.asked)) == (0, 0, 1)
    for number in range(25, 40):
        router.use(number)
    router.asked.clear()
    assert place.land().quarantined == 0
    # Back to the last one, and ten minutes further, for those that come late.
    assert len(router.asked) == 3
    assert set(landed_ids(place)) == {f"usage_{number:04d}" for number in range(40)}


def test_an_event_that_comes_late_is_read_with_the_next_one(place: Place, router: Router) -> None:
    for number in (1, 5):
        router.use(number)
    place.land()
    router.use(3)
    assert place.land().landings == 0
    router.use(6)
    place.land()
    assert set(landed_ids(place)) == {"usage_0001", "usage_0003", "usage_0005", "usage_0006"}


def test_what_the_gateway_does_not_offer_any_more_is_told_once(place: Place, router: Router) -> None:
    router.limit = 5
    for number in range(5):
        router.use(number)
    assert place.land().quarantined == 0
    for number in range(5, 20):
        router.use(number)
    landed = place.land()
    assert (landed.event_lines, landed.quarantined) == (5, 1)
    (entry,) = place.quarantine()
    assert (entry["reason"], json.loads(entry["raw"])) == ("gap", {"after": "usage_0004", "before": "usage_0015"})
    assert not check(landed, "no_quarantine").passed
    router.use(20)
    assert place.land().quarantined == 0
    assert len(place.quarantine()) == 1


def test_a_first_answer_that_is_not_all_is_told(place: Place, router: Router) -> None:
    router.limit = 5
    for number in range(6):
        router.use(number)
    assert (place.land().event_lines, [entry["reason"] for entry in place.quarantine()]) == (5, ["gap"])


def test_one_bad_event_is_set_aside_under_a_place_that_stays(place: Place, router: Router) -> None:
    router.use(1)
    router.use(2, tenant_id="no tenant!")
    router.use(3, id=...)
    router.use(4, occurred_at_ms="yesterday")
    router.use(5, input_tokens=-1)
    router.use(6, type="clawrouter.usage.v2")
    router.use(7)
    landed = place.land()
    assert (landed.event_lines, landed.quarantined) == (2, 5)
    reasons = sorted(entry["reason"] for entry in place.quarantine())
    assert reasons == ["missing_field", "negative", "tenant_syntax", "time_unreadable", "unknown_schema"]
    router.use(8)
    place.land()
    assert len(place.quarantine()) == 5
    entry = next(entry for entry in place.quarantine() if entry["reason"] == "tenant_syntax")
    next(event for _, event in router.events if event.get("id") == "usage_0002")["tenant_id"] = "globex"
    (said,) = replay(catalogue(*place.sources), place.lake, place.ledger, [entry["id"]], now=NOW, run_id="replay")
    assert said.landed, said.said
    assert "usage_0002" in landed_ids(place)


@pytest.mark.parametrize("passing", [(429, {"Retry-After": "0"}), (503, {}), (200, {"close": "yes"})])
def test_what_passes_by_itself_is_tried_again(
    place: Place, router: Router, passing: tuple[int, dict[str, str]]
) -> None:
    router.use(1)
    router.answers = [passing, passing]
    landed = place.land()
    assert (landed.problems, landed.event_lines, len(router.asked)) == ((), 1, 4)


def test_the_gateway_says_how_long_to_wait(place: Place, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(clawrouter.time, "sleep", waited.append)
    router.use(1)
    router.answers = [(429, {"Retry-After": "7"}), (429, {"Retry-After": "3600"})]
    assert place.land().event_lines == 1
    assert waited == [7, 30]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([(503, {})] * 4, "503 Service Unavailable, after 4 tries; it is asked again with the next landing"),
        ([(200, {"close": "yes"})] * 4, "no answer (RemoteProtocolError), after 4 tries"),
        ([(404, {})], "404 Not Found; is the url that of a ClawRouter?"),
        ([(401, {})], "no permission (401 Unauthorized); set CLAWROUTER_ADMIN_TOKEN to the gateway's admin token"),
        ([(302, {"Location": "https://login.example.com"})], "behind Cloudflare Access, give a service token"),
    ],
)
def test_errors_say_what_to_do_and_are_mended_by_the_next_landing(
    place: Place, router: Router, answers: list[tuple[int, dict[str, str]]], says: str
) -> None:
    router.use(1)
    router.answers = list(answers)
    (problem,) = place.land().problems
    assert says in problem
    assert "hunter2" not in problem
    landed = place.land()
    assert (landed.problems, landed.event_lines) == ((), 1)


def test_a_missing_token_and_another_server_are_named(
    place: Place, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "answer", lambda _: {"usage": None})
    (problem,) = place.land().problems
    assert "answers no usage events of a ClawRouter" in problem
    monkeypatch.delenv("CLAWROUTER_ADMIN_TOKEN")
    (problem,) = place.land().problems
    assert "set CLAWROUTER_ADMIN_TOKEN" in problem


def test_more_headers_and_another_tenant(place: Place, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESS_SECRET", "hunter2-access")
    more = {
        "headers_env": {"CF-Access-Client-Secret": "ACCESS_SECRET"},
        "tenant": "policy_id",
        "services": ["messages"],
    }
    place.sources = ({**place.sources[0], **more},)
    router.use(1)
    place.land()
    assert router.headers["CF-Access-Client-Secret"] == "hunter2-access"
    assert [(e["tenant_id"], e["service"]) for e in place.events()] == [("p1", "messages")]
