"""``POST /usage`` over real HTTP: who may post what, what is refused and how, and that an answer means it is stored."""

from __future__ import annotations

import concurrent.futures
import json
import logging
from collections.abc import Iterator
from copy import copy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError

from clawbill_pipeline.catalog import load
from clawbill_pipeline.commands.tokens import tokens
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import meter
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.usage import Landed, ingested, land
from clawbill_pipeline.usage.quarantine import entries
from clawbill_pipeline.usage.replay import replay
from clawbill_pipeline.usage.tokens import add_token, revoke_token
from clawbill_pipeline.web import ingest
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.web.serving import served

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
CATALOGUE = """
version: 1
start: 2026-11-01T00:00:00Z
sources: [{name: posted, kind: http}]
services:
  api.calls: {unit: call}
  tokens: {unit: token, dimensions: [model]}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          api.calls: {model: per_unit, unit_amount: "1"}
          tokens: {model: per_unit, unit_amount: "1"}
tenants: {acme: {rate_card: card}, bolt: {rate_card: card}}
"""


def event(event_id: str = "e1", **changes: Any) -> dict[str, Any]:
    """A good event, changed; a change to ``...`` leaves the attribute out."""
    good = {
        "specversion": "1.0",
        "id": event_id,
        "source": "/meters/gateway",
        "type": "api.calls",
        "subject": "acme",
        "time": "2026-11-22T10:15:00Z",
        "data": {"quantity": 3},
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


class Posting:
    """The served app, a token for everything, and the ledger below."""

    def __init__(self, http: httpx.Client, ledger: Ledger, settings: Settings) -> None:
        self.http = http
        self.ledger = ledger
        self.settings = settings
        self.token = self.add_token("everything")

    def add_token(self, name: str, **limits: Any) -> str:
        given: dict[str, Any] = {"tenants": None, "services": None, **limits}
        return add_token(self.ledger, name, **given, now=NOW, by="tests")

    def post(self, body: Any, kind: str | None = None, *, token: str | None = None, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = kind or (BATCH if isinstance(body, list) else SINGLE)
        given = {"Authorization": f"Bearer {token or self.token}", "Content-Type": kind}
        return self.http.post("/usage", content=content, headers={**given, **headers})

    def land(self, now: datetime = NOW) -> Landed:
        lake = Lake(self.settings.lake_root)
        return land(load(self.settings.catalog_file), lake, self.ledger, now=now, run_id="run")

    def rows(self, query: str) -> list[Any]:
        with self.ledger.transaction() as connection:
            return list(connection.execute(text(query)))

    @property
    def stored(self) -> int:
        return len(self.rows("SELECT FROM ingest_requests"))


@pytest.fixture
def posting(ledger_url: str, tmp_path: Path) -> Iterator[Posting]:
    yield from serve_posting(ledger_url, tmp_path)


@pytest.fixture(scope="module")
def refusing(
    postgres_server: AnyServer, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Posting]:
    """One for all requests that leave nothing behind."""
    with fresh_database(postgres_server, template=ledger_template) as name:
        posting = serve_posting(postgres_server.url(name), tmp_path_factory.mktemp("refusing"))
        yield next(posting)
        next(posting, None)


def serve_posting(ledger_url: str, tmp_path: Path) -> Iterator[Posting]:
    catalogue, clock = tmp_path / "catalog.yaml", tmp_path / "clock"
    catalogue.write_text(CATALOGUE)
    clock.write_text(NOW.isoformat())
    env = {"CLAWBILL_STATE": str(tmp_path), "CLAWBILL_DATABASE_URL": ledger_url, "CLAWBILL_CLOCK": str(clock)}
    settings = Settings.from_env(env)
    ledger = Ledger(ledger_url)
    app = create_app(settings, Ledger(ledger_url), live=False)
    with served(app) as address, httpx.Client(base_url=address, trust_env=False, timeout=30) as http:
        yield Posting(http, ledger, settings)
    ledger.dispose()


def problem(response: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """The problem details of a refusal, as RFC 9457 has them."""
    document: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, document["status"], document["type"]) == (
        status,
        status,
        f"urn:clawbill:problem:{reason}",
    )
    assert document["title"]
    assert document["detail"]
    return document


# --- what is stored --------------------------------------------------------------------------------------------------


def test_what_is_answered_with_200_is_landed_once_and_can_be_explained(posting: Posting) -> None:
    assert posting.post(event("e1")).json() == {"accepted": 1, "quarantined": []}
    exact = b'{"specversion":"1.0","id":"e2","source":"/m","type":"api.calls","subject":"acme",'
    exact += b'"time":"2026-11-22T11:00:00Z","data":{"quantity":12345678901234567.123456789012}}'
    assert posting.post(exact, SINGLE).status_code == 200
    batch = [event(f"b{i}", data={"quantity": str(i)}) for i in range(3)]
    assert posting.post(batch).json()["accepted"] == 3
    binary = {
        "ce-specversion": "1.0", "ce-id": "e3", "ce-source": "/m", "ce-type": "tokens", "ce-subject": "caf%65",
        "ce-time": "2026-11-22T10:00:00Z", "ce-model": "large",
    }  # fmt: skip
    assert posting.post({"quantity": 7}, "application/json", **binary).json()["accepted"] == 1

    landed = posting.land()
    assert (landed.lines, landed.event_lines, landed.quarantined, landed.landings) == (6, 6, 0, 1)
    events = read_lake(posting)
    assert {e["event_id"]: (e["tenant_id"], e["service"], e["dimensions"], e["quantity"]) for e in events} == {
        "/meters/gateway e1": ("acme", "api.calls", "", Decimal(3)),
        "/m e2": ("acme", "api.calls", "", Decimal("12345678901234567.123456789012")),
        **{f"/meters/gateway b{i}": ("acme", "api.calls", "", Decimal(i)) for i in range(3)},
        "/m e3": ("cafe", "tokens", "large", Decimal(7)),
    }
    # Source, uri and line, by which explain names an event, lead to the request.
    assert {(e["source"], e["uri"], e["line"]) for e in events} == {("posted", "POST /usage", n) for n in (1, 2, 3, 4)}
    assert posting.land().landings == 0

    posting.post(event("e4"))
    again = posting.land()
    assert (again.landings, again.events) == (1, 1)
    assert [row.position for row in posting.rows("SELECT position FROM landings ORDER BY id")] == [
        "request 4",
        "request 5",
    ]


def read_lake(posting: Posting) -> list[dict[str, Any]]:
    lake = Lake(posting.settings.lake_root)
    files = [row.file for row in posting.rows("SELECT file FROM landed_hours ORDER BY file")]
    return [event for file in files for event in pq.ParquetFile(lake.path(file)).read().to_pylist()]


def test_a_request_that_comes_again_is_stored_once(posting: Posting) -> None:
    for _ in range(3):
        assert posting.post([event("e1"), event("e2")]).json() == {"accepted": 2, "quarantined": []}
    assert posting.stored == 1
    # The same event in another request is a duplicate, which metering finds by (tenant, source, id).
    assert posting.post(event("e1")).status_code == 200
    assert posting.land().events == 3
    assert len({e["event_id"] for e in read_lake(posting)}) == 2


def test_an_event_counts_once_however_often_it_is_posted_and_the_first_one_stands(posting: Posting) -> None:
    posting.post([event("e1"), event("e2")])
    posting.post([event("e2"), event("e3")])
    posting.post(event("e3", data={"quantity": 99}))
    posting.post(event("e1", subject="bolt"))  # another tenant's, whatever it is called
    posting.land()
    lake, catalog = Lake(posting.settings.lake_root), load(posting.settings.catalog_file)
    start = datetime(2026, 11, 22, 10, tzinfo=UTC)
    metered = meter(posting.ledger, lake, catalog, start=start, end=start + timedelta(hours=1), now=NOW, run_id="run")
    assert (metered.duplicates, metered.conflicts) == (1, 1)
    rows = posting.rows("SELECT tenant_id, quantity FROM metered_usage ORDER BY tenant_id")
    assert [tuple(row) for row in rows] == [("acme", 9), ("bolt", 3)]
    (conflict,) = entries(posting.ledger)
    assert (conflict.reason, conflict.uri) == ("conflict", "POST /usage")
    assert conflict.place.startswith("line 3, byte 0")


def test_a_large_batch_is_judged_in_columns_by_the_clock_and_the_catalogue_of_now(
    posting: Posting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "REMEMBERED", 0.0)
    batch = [event(f"e{number}") for number in range(600)]
    assert posting.post(batch).json() == {"accepted": 600, "quarantined": []}
    late = [*batch, event("late", time="2026-11-22T12:06:00Z")]
    (error,) = problem(posting.post(late), 422, "not_usage")["errors"]
    assert (error["index"], error["reason"]) == (600, "in_the_future")
    assert posting.settings.clock is not None
    posting.settings.clock.write_text((NOW + timedelta(minutes=2)).isoformat())
    assert posting.post(late).status_code == 200
    path = posting.settings.catalog_file
    path.write_text(CATALOGUE.replace("api.calls", "api.other"))
    assert problem(posting.post(batch[1:]), 422, "not_usage")["faulty_events"] == 599
    path.write_text(CATALOGUE)
    assert posting.land(NOW + timedelta(minutes=2)).events == 1201


def test_an_empty_batch_is_fine_and_stores_nothing(posting: Posting) -> None:
    assert posting.post([]).json() == {"accepted": 0, "quarantined": []}
    assert posting.stored == 0


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "pointer", "reason"),
    [
        ({"data": {"quantity": "many"}}, "data.quantity", "/data/quantity", "not_a_number"),
        ({"data": {"quantity": -1}}, "data.quantity", "/data/quantity", "negative"),
        ({"data": {}}, "data.quantity", "/data/quantity", "missing_field"),
        ({"data": ...}, "data", "/data", "missing_field"),
        ({"subject": ...}, "subject", "/subject", "missing_field"),
        ({"subject": "no tenant"}, "subject", "/subject", "tenant_syntax"),
        ({"type": "unknown"}, "type", "/type", "unknown_service"),
        ({"type": "tokens"}, "model", "/model", "missing_dimension"),
        ({"time": "yesterday"}, "time", "/time", "time_unreadable"),
        ({"time": "2026-11-22T12:06:00Z"}, "time", "/time", "in_the_future"),
        ({"time": "2026-10-31T23:59:59Z"}, "time", "/time", "before_start"),
        ({"id": ...}, "id", "/id", "missing_field"),
        ({"source": "a b"}, "source", "/source", "not_a_cloudevent"),
        ({"specversion": "0.3"}, "specversion", "/specversion", "not_a_cloudevent"),
    ],
)
def test_an_event_that_is_no_usage_is_refused_by_its_field(
    refusing: Posting, change: dict[str, Any], field: str, pointer: str, reason: str
) -> None:
    (error,) = problem(refusing.post(event(**change)), 422, "not_usage")["errors"]
    assert (error["field"], error["pointer"], error["reason"], error["index"]) == (field, pointer, reason, 0)
    assert error["detail"]
    document = problem(refusing.post([event("good"), event(**change)]), 422, "not_usage")
    assert [(e["index"], e["pointer"]) for e in document["errors"]] == [(1, f"/1{pointer}")]
    assert refusing.stored == 0


def test_a_lenient_sender_gets_the_good_events_stored_and_the_others_into_quarantine(posting: Posting) -> None:
    batch = [event("e1"), event("e2", data={"quantity": "many"}), event("e3", type="later"), event("e4")]
    answer = posting.post(batch, Prefer="respond-async, Handling = lenient")
    assert answer.headers["preference-applied"] == "handling=lenient"
    assert answer.json()["accepted"] == 2
    assert [(q["pointer"], q["reason"]) for q in answer.json()["quarantined"]] == [
        ("/1/data/quantity", "not_a_number"),
        ("/2/type", "unknown_service"),
    ]
    landed = posting.land()
    assert (landed.lines, landed.event_lines, landed.quarantined) == (4, 2, 2)
    found = entries(posting.ledger)
    assert [(e.source, e.uri, e.place, e.reason, e.field, e.tenant_id) for e in found] == [
        ("posted", "POST /usage", "line 1, byte 0, record 2", "not_a_number", "data.quantity", "acme"),
        ("posted", "POST /usage", "line 1, byte 0, record 3", "unknown_service", "type", "acme"),
    ]
    assert "many" in found[0].raw

    # Once the catalogue knows the service, the event is landed from the request that is kept.
    path = posting.settings.catalog_file
    path.write_text(
        CATALOGUE.replace("services:", "services:\n  later: {unit: x}").replace(
            "prices:", 'prices:\n          later: {model: per_unit, unit_amount: "1"}'
        )
    )
    ids = [entry.id for entry in found]
    lake = Lake(posting.settings.lake_root)
    done = replay(load(path), lake, posting.ledger, ids, now=NOW, run_id="replay")
    assert [each.landed for each in done] == [False, True]
    assert {e["event_id"] for e in read_lake(posting)} == {f"/meters/gateway e{n}" for n in (1, 3, 4)}


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"{", SINGLE, 400, "not_json"),
        (b'{"a": "\xff"}', SINGLE, 400, "broken_utf8"),
        (b"", SINGLE, 400, "not_json"),
        (b"{}\r{}", SINGLE, 422, "not_a_cloudevent"),
        (b"[]", SINGLE, 422, "not_a_cloudevent"),
        (b"7", SINGLE, 422, "not_a_cloudevent"),
        (b"{}", BATCH, 422, "not_a_batch"),
        (b"[7]", BATCH, 422, "not_usage"),
        (b'[{"id": 1, "id": 2}]', BATCH, 400, "ambiguous"),
        (b"{}", "application/json", 415, "content_type"),
        (b"{}", "text/plain", 415, "content_type"),
        (b"{}", f"{SINGLE}; charset=latin-1", 415, "content_type"),
    ],
)
def test_what_is_no_cloudevent_is_refused(refusing: Posting, body: bytes, kind: str, status: int, reason: str) -> None:
    problem(refusing.post(body, kind), status, reason)
    assert refusing.stored == 0


def test_binary_data_cannot_reach_out_of_its_place(refusing: Posting) -> None:
    headers = {f"ce-{name}": str(value) for name, value in event(subject=..., data=...).items()}
    body = b'{"quantity": 1}, "subject": "acme"'
    problem(refusing.post(body, "application/json", **headers), 400, "not_json")
    problem(refusing.post(event(), Prefer="handling=strict", **{"Content-Encoding": "gzip"}), 415, "content_encoding")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(refusing: Posting, chunked: bool) -> None:
    body = b"[" + b" " * ingest.MAX_BODY + b"]"
    content = iter([body[:100], body[100:]]) if chunked else body
    headers = {"Authorization": f"Bearer {refusing.token}", "Content-Type": BATCH}
    problem(refusing.http.post("/usage", content=content, headers=headers), 413, "too_large")
    assert refusing.stored == 0


def test_too_much_at_once_is_asked_to_come_again(posting: Posting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_IN_HAND", 1_000)
    large = [event(f"e{number}") for number in range(20)]
    assert problem(posting.post(large), 503, "busy")["detail"]
    assert posting.post(event()).status_code == 200  # nothing is left in hand


# --- who may post what -----------------------------------------------------------------------------------------------


def test_without_a_token_that_is_in_use_nothing_is_read(posting: Posting, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = f"{posting.token[:-1]}{'a' if posting.token[-1] != 'a' else 'b'}"
    for token in (forged, "clawbill_nobody_" + "x" * 43, "sk_test_1", "clawbill_everything_"):
        answer = posting.post(b"{", token=token)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        problem(answer, 401, "no_token")
    headers = {"Content-Type": SINGLE}
    problem(posting.http.post("/usage", content=b"{", headers=headers), 401, "no_token")
    basic = {"Authorization": f"Basic {posting.token}"}
    problem(posting.http.post("/usage", content=b"{", headers={**headers, **basic}), 401, "no_token")
    monkeypatch.setattr(ingest, "REMEMBERED", 0.0)
    assert posting.post(event()).status_code == 200
    revoke_token(posting.ledger, "everything", now=NOW, by="tests")
    problem(posting.post(event()), 401, "no_token")


@pytest.mark.parametrize("many", [1, 500], ids=["in columns", "one by one"])
def test_a_token_brings_the_usage_of_its_tenants_and_services_alone(
    posting: Posting, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(ingest, "_MANY", many)
    acme = posting.add_token("acme", tenants=["acme"])
    calls = posting.add_token("calls", services=["api.calls"])
    assert posting.post([event("1"), event("2", type="tokens", model="m")], token=acme).status_code == 200
    assert posting.post([event("1"), event("2", subject="bolt")], token=calls).status_code == 200
    document = problem(posting.post([event("1"), event("2", subject="bolt")], token=acme), 403, "not_covered")
    assert [(e["pointer"], e["field"]) for e in document["errors"]] == [("/1/subject", "subject")]
    document = problem(posting.post(event(type="tokens", model="m"), token=calls), 403, "not_covered")
    assert [(e["pointer"], e["field"]) for e in document["errors"]] == [("/type", "type")]
    # Not even as something to look at in quarantine.
    lenient = posting.post([event(subject="bolt", data={})], token=acme, Prefer="handling=lenient")
    problem(lenient, 403, "not_covered")
    assert posting.stored == 2


def test_no_token_reaches_the_log_the_ledger_or_an_answer(posting: Posting, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = posting.token.rpartition("_")[2]
    said = [posting.post(body).text for body in (event(), {}, b"{", event(subject="bolt"), event(data=...))]
    posting.post(event("masked", data={"quantity": posting.token}), Prefer="handling=lenient")
    posting.land()
    kept = [str(entry) for entry in entries(posting.ledger)]
    assert len(kept) == 1
    rows = posting.rows("SELECT t::text FROM ingest_tokens t UNION ALL SELECT t::text FROM audit_trail t")
    everything = "\n".join([*said, *kept, *(str(row) for row in rows), caplog.text])
    assert "everything" in everything
    assert secret not in everything


# --- when things go wrong --------------------------------------------------------------------------------------------


def test_while_the_database_is_away_senders_are_asked_to_come_again(ledger_url: str, tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(CATALOGUE)
    away = make_url(ledger_url).set(database="clawbill_gone").render_as_string(hide_password=False)
    settings = Settings.from_env({"CLAWBILL_STATE": str(tmp_path), "CLAWBILL_DATABASE_URL": away})
    ledger = Ledger(ledger_url)
    token = add_token(ledger, "t", tenants=None, services=None, now=NOW, by="tests")
    ledger.dispose()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": SINGLE}
    with served(create_app(settings, Ledger(away), live=False)) as address:
        answer = httpx.post(f"{address}/usage", json=event(), headers=headers, trust_env=False)
    problem(answer, 503, "database_away")
    assert int(answer.headers["retry-after"]) > 0


def test_no_answer_is_given_before_the_commit_and_an_outage_loses_nothing(posting: Posting, ledger_url: str) -> None:
    dsn = ledger_url.replace("postgresql+psycopg", "postgresql")
    with concurrent.futures.ThreadPoolExecutor() as pool, psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE ledger.ingest_requests IN SHARE MODE")
        answer = pool.submit(posting.post, event("e1"))
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.3)
        # The writer's session ends in the middle of its statement, as with a restart of the server.
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%INSERT INTO ledger.ingest%' "
                "AND pid <> pg_backend_pid()"
            )
        blocker.rollback()
        first = answer.result(timeout=20)
    assert first.status_code in (200, 503)
    assert posting.post(event("e1")).status_code == 200
    assert posting.stored == 1


def test_without_a_source_for_it_senders_are_asked_to_come_again(posting: Posting) -> None:
    posting.settings.catalog_file.write_text(CATALOGUE.replace("[{name: posted, kind: http}]", "[]"))
    problem(posting.post(event()), 503, "no_source")


def test_many_senders_to_two_web_apps_and_landings_between_lose_and_double_nothing(posting: Posting) -> None:
    def send(sender: int) -> int:
        batches = [[event(f"{sender}-{number}-{i}") for i in range(5)] for number in range(8)]
        to = posting if sender % 2 else second
        return sum(to.post(batch).json()["accepted"] for batch in batches)

    other = create_app(posting.settings, Ledger(posting.settings.need_database()), live=False)
    with (
        served(other) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=30) as http,
        concurrent.futures.ThreadPoolExecutor(9) as pool,
    ):
        second = copy(posting)
        second.http = http
        sending = [pool.submit(send, sender) for sender in range(6)]
        landed = [posting.land().events for _ in range(6)]
        assert sum(done.result() for done in sending) == 240
    landed.append(posting.land().events)
    assert sum(landed) == 240
    assert len({e["event_id"] for e in read_lake(posting)}) == 240


def test_numbers_given_out_and_not_committed_yet_are_waited_for(posting: Posting, ledger_url: str) -> None:
    """A lower number that commits after a higher one was landed would never be read."""
    slow = psycopg.connect(ledger_url.replace("postgresql+psycopg", "postgresql"))
    other = ingested.posted("posted", "t", json.dumps(event("lower")).encode(), 1, NOW)
    slow.execute(ingested.INSERT, ingested.insert_values([other]))
    assert posting.post(event("higher")).status_code == 200
    with concurrent.futures.ThreadPoolExecutor() as pool:
        landing = pool.submit(posting.land)
        with pytest.raises(TimeoutError):
            landing.result(timeout=0.3)
        slow.commit()
        assert landing.result(timeout=20).events == 2
    slow.close()


# --- how long it is kept ---------------------------------------------------------------------------------------------


def test_what_was_landed_goes_after_its_time_and_nothing_else_does(posting: Posting) -> None:
    posting.post(event("e1"))
    posting.post([event("e2"), event("bad", data={})], Prefer="handling=lenient")
    posting.land()
    posting.post(event("e3"))
    later = NOW + timedelta(days=30)
    posting.land(later)
    assert [row.id for row in posting.rows("SELECT id FROM ingest_requests ORDER BY id")] == [1, 2, 3]
    posting.land(later + timedelta(seconds=1))
    # The second has an event in quarantine, which may be replayed.
    assert [row.id for row in posting.rows("SELECT id FROM ingest_requests ORDER BY id")] == [2]
    with pytest.raises(IntegrityError, match="append-only"), posting.ledger.transaction() as connection:
        connection.execute(text("UPDATE ingest_requests SET token = 'other'"))


# --- the command -----------------------------------------------------------------------------------------------------


def test_tokens_are_made_listed_and_revoked_by_the_command(posting: Posting) -> None:
    env = {"CLAWBILL_STATE": str(posting.settings.state), "CLAWBILL_DATABASE_URL": posting.settings.need_database()}

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(tokens, arguments, env=env)

    token = run("add", "acme-prod", "--tenant", "acme").stdout.strip()
    assert posting.post(event(), token=token).status_code == 200
    problem(posting.post(event(subject="bolt"), token=token), 403, "not_covered")
    listed = run("list").output
    assert "acme-prod" in listed
    assert token not in listed
    assert run("revoke", "acme-prod").exit_code == 0
    assert "no token" in run("revoke", "acme-prod").stderr
    assert "another name" in run("add", "acme-prod", "--unlimited").stderr
    assert "no tenant typo" in run("add", "x", "--tenant", "typo").stderr
    assert "lower-case" in run("add", "X_Y", "--unlimited").stderr
    assert "--unlimited" in run("add", "x").stderr
    kinds = [row.kind for row in posting.rows("SELECT kind FROM audit_trail WHERE subject = 'acme-prod' ORDER BY id")]
    assert kinds == ["ingest_token.added", "ingest_token.revoked"]
