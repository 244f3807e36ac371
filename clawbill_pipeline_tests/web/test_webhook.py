"""The webhook: what is stored, what is refused and how, and what happens while the database is away."""

from __future__ import annotations

import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.webhook import MAX_BODY
from clawbill_pipeline_tests.web.conftest import ROTATED, SECRET, Web, signed, snapshot, thin
from clawbill_pipeline_tests.web.serving import served


def test_a_snapshot_event_is_stored_as_it_was_signed(web: Web) -> None:
    body = snapshot().replace("\n", "\r\n")
    answer = web.post(body, signed(body) | {"Authorization": "Bearer s3cret", "Cookie": "s3cret"})
    assert answer.status_code == 200
    (row,) = web.rows()
    assert (row.event_id, row.type, row.object_id, row.via) == ("evt_1", "invoice.created", "in_1", "webhook")
    assert (row.api_version, row.livemode) == ("2026-10-28.endive", False)
    assert row.created == datetime.fromtimestamp(1_760_000_000, UTC)
    assert row.body == body
    assert row.headers["stripe-signature"].startswith("t=")
    assert "s3cret" not in json.dumps(row.headers)
    assert web.counts == {"landed": 1, "seen_before": 0}


def test_a_thin_event_is_stored_too(web: Web) -> None:
    assert web.post(thin()).status_code == 200
    (row,) = web.rows()
    assert (row.object_id, row.api_version) == ("mtr_1", None)
    assert row.created == datetime(2026, 11, 22, 8, 0, 0, 123_000, tzinfo=UTC)


def test_events_without_an_object_id_are_stored(web: Web) -> None:
    web.post(snapshot(type="invoice.upcoming", data={"object": {"object": "invoice"}}))
    web.post(thin("evt_2", related_object=None))
    assert [row.object_id for row in web.rows()] == [None, None]


def test_the_same_event_again_is_answered_and_not_stored_twice(web: Web) -> None:
    assert [web.post(snapshot()).status_code for _ in range(3)] == [200, 200, 200]
    assert len(web.rows()) == 1
    assert web.counts == {"landed": 1, "seen_before": 2}


def test_each_of_several_secrets_is_good(web: Web) -> None:
    for event_id, secret in (("evt_1", SECRET), ("evt_2", ROTATED)):
        body = snapshot(event_id)
        assert web.post(body, signed(body, secret)).status_code == 200
    assert len(web.rows()) == 2


GOOD = snapshot()


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        pytest.param(GOOD, signed(GOOD, "whsec_forged"), 400, "bad_signature", id="forged"),
        pytest.param(GOOD, signed(GOOD, age=301), 400, "bad_signature", id="replayed"),
        pytest.param(GOOD[:-2], signed(GOOD), 400, "bad_signature", id="cut"),
        pytest.param(GOOD.replace("in_1", "in_2"), signed(GOOD), 400, "bad_signature", id="changed"),
        pytest.param(GOOD + " ", signed(GOOD), 400, "bad_signature", id="padded"),
        pytest.param(b"\xff\xfe", signed(GOOD), 400, "bad_signature", id="not UTF-8"),
        pytest.param(GOOD, signed(GOOD) | {"Stripe-Signature": ""}, 400, "no_signature", id="no signature"),
        pytest.param(GOOD, signed(GOOD) | {"Stripe-Signature": "t=1,v1"}, 400, "bad_signature", id="half a header"),
        pytest.param(GOOD, signed(GOOD) | {"Stripe-Signature": "t=,v1=,v0=x"}, 400, "bad_signature", id="empty parts"),
        pytest.param(
            GOOD, signed(GOOD) | {"Stripe-Signature": b"t=1,v1=\xe9".decode("latin-1")}, 400, "bad_signature", id="é"
        ),
        pytest.param(GOOD, signed(GOOD) | {"Content-Type": "text/plain"}, 415, "content_type", id="content type"),
        pytest.param("[", signed("["), 400, "not_json", id="not JSON"),
        pytest.param("[" * 200_000, signed("[" * 200_000), 400, "not_json", id="nested too deeply"),
        pytest.param("[]", signed("[]"), 400, "not_an_event", id="a list"),
        pytest.param("{}", signed("{}"), 400, "not_an_event", id="an empty object"),
        *(
            pytest.param(body, signed(body), 400, reason, id=name)
            for name, reason, body in [
                ("no id", "not_an_event", snapshot(id=None)),
                ("NUL in the id", "not_an_event", snapshot(id="evt_\0")),
                ("surrogate in the type", "not_an_event", snapshot(type="invoice.\ud800")),
                ("created is text", "not_an_event", snapshot(created="now")),
                ("created in the far future", "not_an_event", snapshot(created=10**18)),
                ("thin without time zone", "not_an_event", thin(created="2026-11-22T08:00:00")),
                ("no data", "not_an_event", snapshot(data=None)),
                ("livemode missing", "not_an_event", snapshot(livemode=None)),
                ("a connected account's", "other_account", snapshot(account="acct_2")),
                ("a connected account's, thin", "other_account", thin(context="acct_2")),
                ("live on a test endpoint", "other_mode", snapshot(livemode=True)),
            ]
        ),
    ],
)
def test_refused_counted_and_not_stored(
    web: Web, body: str | bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    wire = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = web.http.post("/stripe/webhook", content=body, headers=wire)
    assert answer.status_code == status
    assert SECRET not in answer.text
    assert web.counts == {reason: 1}
    assert web.rows() == []


def test_a_live_endpoint_takes_live_events_only(live_web: Web) -> None:
    assert live_web.post(snapshot("evt_test")).status_code == 400
    assert live_web.post(thin("evt_thin_test")).status_code == 400
    assert live_web.post(snapshot("evt_live", livemode=True)).status_code == 200
    assert [row.event_id for row in live_web.rows()] == ["evt_live"]
    assert live_web.counts["other_mode"] == 2


def test_too_large_is_refused_whether_it_says_so_or_not(web: Web) -> None:
    body = snapshot(padding="x" * MAX_BODY)
    assert web.post(body).status_code == 413

    def chunks():
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536].encode()

    assert web.http.post("/stripe/webhook", content=chunks(), headers=signed(body)).status_code == 413
    assert web.counts == {"too_large": 2}
    just_fits = snapshot(padding="x" * (MAX_BODY - 1_000))
    assert web.post(just_fits).status_code == 200


def test_a_body_that_ends_early_stores_nothing(web: Web) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(GOOD).items())
    with socket.create_connection((web.http.base_url.host, web.http.base_url.port or 0)) as connection:
        request = f"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(GOOD)}\r\n\r\n{GOOD[:50]}"
        connection.sendall(request.encode())
    assert web.post(snapshot("evt_2")).status_code == 200
    assert [row.event_id for row in web.rows()] == ["evt_2"]


def test_other_methods_are_refused(web: Web) -> None:
    assert web.http.get("/stripe/webhook").status_code == 405


def test_without_a_secret_nothing_is_taken(settings: Settings, ledger_url: str) -> None:
    bare = settings.model_copy(update={"stripe_webhook_secrets": ()})
    app = create_app(bare, Ledger(ledger_url), live=False)
    with served(app) as address:
        answer = httpx.post(f"{address}/stripe/webhook", content=GOOD, headers=signed(GOOD), trust_env=False)
        assert answer.status_code == 503
        health = httpx.get(f"{address}/healthz", trust_env=False)
        assert (health.status_code, health.json()["missing"]) == (503, ["webhook_secret"])


def test_inbox_numbers_follow_each_other_under_load(web: Web) -> None:
    """Many at once, in any order, each twice: every event is there once."""
    bodies = [snapshot(f"evt_{number % 100}") for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(web.post, bodies)} == {200}
    assert sorted(row.event_id for row in web.rows()) == sorted(f"evt_{number}" for number in range(100))
    assert web.counts == {"landed": 100, "seen_before": 100}


def test_a_database_that_is_away_gives_503_until_it_is_back(
    web: Web, ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert web.post(snapshot("evt_1")).status_code == 200
    with database_closed(ledger_url), caplog.at_level(logging.WARNING):
        answer = web.post(snapshot("evt_2"))
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert web.http.get("/healthz").json()["missing"] == ["database", "ledger"]
    password = make_url(ledger_url).password
    assert password
    assert password not in caplog.text
    assert web.post(snapshot("evt_2")).status_code == 200
    assert [row.event_id for row in web.rows()] == ["evt_1", "evt_2"]
    assert web.counts == {"landed": 2, "seen_before": 0, "database_away": 1}


def test_a_connection_lost_while_idle_costs_nothing(web: Web, ledger_url: str) -> None:
    assert web.post(snapshot("evt_1")).status_code == 200
    with database_closed(ledger_url):
        pass
    assert web.post(snapshot("evt_2")).status_code == 200
    assert web.counts == {"landed": 2, "seen_before": 0}


class database_closed:
    """While it lasts, the database lets nobody in; connections that were open are cut."""

    def __init__(self, url: str) -> None:
        self._name = make_url(url).database or ""
        _, self._given = Ledger(url).engine.dialect.create_connect_args(make_url(url).set(database="postgres"))

    def __enter__(self) -> None:
        self._allow(False)

    def __exit__(self, *_: object) -> None:
        self._allow(True)

    def _allow(self, allowed: bool) -> None:
        with psycopg.connect(**self._given, autocommit=True) as connection:
            statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            connection.execute(statement.format(sql.Identifier(self._name), sql.Literal(allowed)))
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self._name,)
            )
