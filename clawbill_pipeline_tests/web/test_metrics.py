"""/metrics over real HTTP: who may read it, and that every figure is what the ledger and the process say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url, text

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import metadata
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.usage.tokens import add_token
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.delivery.conftest import sandbox  # noqa: F401 -- a fixture
from clawbill_pipeline_tests.delivery.conftest import world as delivering  # noqa: F401 -- a fixture
from clawbill_pipeline_tests.delivery.faults import faulty
from clawbill_pipeline_tests.delivery.world import T0
from clawbill_pipeline_tests.delivery.world import World as Delivering
from clawbill_pipeline_tests.rating.scripted import scripted
from clawbill_pipeline_tests.rating.world import World as Rating
from clawbill_pipeline_tests.web.serving import served
from clawbill_pipeline_tests.web.test_ingest import CATALOGUE, event

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(exposition: str) -> Samples:
    """Every sample of a scrape, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def settings_of(ledger_url: str, folder: Path, **more: str) -> Settings:
    (folder / "catalog.yaml").write_text(CATALOGUE)
    (folder / "clock").write_text(NOW.isoformat())
    env = {"CLAWBILL_STATE": str(folder), "CLAWBILL_DATABASE_URL": ledger_url, "CLAWBILL_CLOCK": str(folder / "clock")}
    return Settings.from_env(env | more)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


def scrape(ledger_url: str, folder: Path) -> Samples:
    """What a web app started now says."""
    app = create_app(settings_of(ledger_url, folder), Ledger(ledger_url), live=False)
    with served(app) as address:
        answer = httpx.get(f"{address}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    return samples(answer.text)


def add(ledger: Ledger, table: str, **values: Any) -> None:
    """A row; what it must have and was not given is made up by the column's type."""
    made: dict[str, Any] = {"Text": "x", "DateTime": NOW, "Boolean": False, "Numeric": 1, "Integer": 1, "JSONB": "{}"}
    made["BigInteger"] = 1
    given = {
        column.name: made[type(column.type).__name__]
        for column in metadata.tables[f"ledger.{table}"].columns
        if column.identity is None and not column.nullable and column.server_default is None
    } | values
    names = ", ".join(given)
    with ledger.transaction() as connection:
        connection.execute(
            text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in given)})"), given
        )


def test_every_figure_is_what_the_ledger_says(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    hour = datetime(2026, 11, 22, 10, tzinfo=UTC)
    ledger.ensure_partitions([hour])
    for number in (2, 1):
        add(ledger, "metered_hours", hour=hour - timedelta(hours=number - 1))
    add(ledger, "reconciliations", as_of=NOW - timedelta(hours=6), waterfall="[]")
    records: list[dict[str, Any]] = [
        {"state": "planned", "planned_at": NOW - timedelta(minutes=10)},
        {"state": "planned", "planned_at": NOW - timedelta(minutes=90)},
        {"state": "planned", "parked": "too_old"},
        {"state": "rejected"},
        {"state": "unknown"},
        {"state": "delivered", "settled_at": NOW, "planned_at": NOW - timedelta(days=9)},
    ]
    for number, record in enumerate(records):
        add(ledger, "usage_records", hour=hour, identifier=f"i{number}", customer_id=f"c{number}", **record)
    for number, kind in enumerate(("retry", "retry", "unmapped")):
        add(ledger, "rating_failures", tenant_id=f"t{number}", kind=kind)
    for number in range(1, 6):
        add(
            ledger,
            "stripe_events",
            event_id=f"evt_{number}",
            via="webhook",
            received_at=NOW - timedelta(seconds=number),
        )
    add(ledger, "stripe_events_handled", inbox_id=1, outcome="applied")
    add(ledger, "stripe_events_handled", inbox_id=2, outcome="failed")
    add(ledger, "stripe_events_handled", inbox_id=3, outcome="failed")
    add(ledger, "audit_trail", kind="stripe_event.applied_again", subject="evt_3")
    breaks: list[dict[str, Any]] = [
        {"cause": "in_flight", "currency": "USD", "amount": "-1.5"},
        {"cause": "in_flight", "currency": "USD", "amount": "2.5"},
        {"cause": "in_flight", "currency": "JPY", "amount": "100"},
        {"cause": "unmapped_tenant", "currency": None, "amount": "0"},
        {"cause": "in_flight", "currency": "USD", "amount": "9", "closed_at": NOW},
    ]
    for number, found in enumerate(breaks):
        add(ledger, "breaks", tenant_id=f"t{number}", **found)
    for number, decisions in enumerate([["hold"], ["hold", "release"], []]):
        add(ledger, "invoices", invoice_id=f"in_{number}", status="draft")
        for decision in decisions:
            add(ledger, "audit_trail", kind=f"close.{decision}", subject=f"in_{number}")
    add(ledger, "invoices", invoice_id="in_9", status="paid")

    found = scrape(ledger_url, tmp_path)
    said = {
        (name.removeprefix("clawbill_"), *(value for _, value in labels)): value
        for (name, labels), value in found.items()
    }
    expected = {
        ("ledger_up",): 1,
        ("metered_hour_age_seconds",): 3600,
        ("reconciliation_age_seconds",): 6 * 3600,
        ("outbox_rows", "false", "planned"): 2,
        ("outbox_rows", "true", "planned"): 1,
        ("outbox_rows", "false", "rejected"): 1,
        ("outbox_rows", "false", "unknown"): 1,
        ("outbox_rows", "false", "sending"): 0,
        ("outbox_oldest_age_seconds", "false", "planned"): 5400,
        ("outbox_oldest_age_seconds", "false", "sending"): 0,
        ("rating_queue_rows", "retry"): 2,
        ("rating_queue_rows", "refused"): 0,
        ("rating_queue_rows", "unmapped"): 1,
        ("webhook_events_waiting",): 2,
        ("webhook_events_oldest_age_seconds",): 5,
        ("webhook_events_failed",): 1,
        ("breaks_open", "in_flight"): 3,
        ("breaks_open", "unmapped_tenant"): 1,
        ("breaks_open_amount", "in_flight", "USD"): 4,
        ("breaks_open_amount", "in_flight", "JPY"): 100,
        ("invoices_draft",): 3,
        ("invoices_held",): 1,
        ("ingest_waiting_requests",): 0,
        ("webhook_requests_total", "landed"): 0,
    }
    assert {key: said.get(key) for key in expected} == expected
    assert ("outbox_rows", "false", "delivered") not in said


def test_an_empty_ledger_has_no_age_and_no_break(ledger_url: str, tmp_path: Path) -> None:
    names = {name for name, _ in scrape(ledger_url, tmp_path)}
    assert "clawbill_metered_hour_age_seconds" not in names
    assert "clawbill_breaks_open" not in names
    assert "clawbill_outbox_rows" in names


def test_ratings_are_timed_and_their_failures_counted(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    with scripted(
        answer=lambda asked: (400, "no") if asked.json["tenant_id"] == "globex" else (200, {"amount_cents": "100"})
    ) as server:
        world = Rating(ledger, server.url)
        for hour in range(2):
            world.meter(hour, 1)
        world.meter(0, 1, tenant="globex")
        world.meter(0, 1, tenant="nobody")
        world.rate(hours=2)
    said = scrape(ledger_url, tmp_path)
    assert said["clawbill_rating_seconds_count", ()] == 2
    assert said["clawbill_rating_seconds_bucket", (("le", "+Inf"),)] == 2
    assert 0 < said["clawbill_rating_seconds_sum", ()] < 60
    buckets = [value for (name, _), value in said.items() if name == "clawbill_rating_seconds_bucket"]
    assert buckets == sorted(buckets)
    failures = {labels[0][1]: v for (name, labels), v in said.items() if name == "clawbill_rating_failures_total"}
    assert failures == {"refused": 1, "retry": 0, "unmapped": 1}


def test_deliveries_and_stripes_limits_are_counted(
    delivering: Delivering,  # noqa: F811
    ledger_url: str,
    tmp_path: Path,
) -> None:
    assert not delivering.provision().failed
    delivering.rate("acme", "tokens", T0, "1")
    delivering.rate("globex", "tokens", T0, "1")
    delivering.plan()
    with faulty(delivering.sandbox.url) as proxy:
        delivering.base = proxy.url
        proxy.script("429")
        assert delivering.deliver().rate_limited == 1
    said = scrape(ledger_url, tmp_path)
    assert said["clawbill_delivery_records_total", (("outcome", "delivered"),)] == 2
    assert said["clawbill_delivery_rate_limited_total", ()] == 1
    assert said["clawbill_delivery_retries_total", ()] >= 1


def test_what_is_posted_is_counted(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    token = add_token(ledger, "t", tenants=None, services=None, now=NOW, by="tests")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents-batch+json"}
    app = create_app(settings_of(ledger_url, tmp_path), Ledger(ledger_url), live=False)
    with served(app) as address, httpx.Client(base_url=address, headers=headers, trust_env=False) as http:
        good = json.dumps([event("1"), event("2")])
        http.post("/usage", content=good)
        http.post("/usage", content=good)
        http.post(
            "/usage", content=json.dumps([event("3"), event("4", data={})]), headers={"Prefer": "handling=lenient"}
        )
        http.post("/usage", content=json.dumps([event("5", data={})]))
        http.post("/usage", content="{", headers={"Authorization": "Bearer x"})
        http.post("/stripe/webhook", content="{}")
        said = samples(http.get("/metrics", headers={"Authorization": ""}).text)
    requests = {labels[0][1]: v for (name, labels), v in said.items() if name == "clawbill_ingest_requests_total"}
    assert requests == {"200": 3, "422": 1, "401": 1}
    events = {labels[0][1]: v for (name, labels), v in said.items() if name == "clawbill_ingest_events_total"}
    assert events == {"accepted": 5, "quarantined": 1, "refused": 1}
    assert said["clawbill_ingest_seconds_count", ()] == 5
    assert said["clawbill_ingest_bytes_total", ()] > len(good) * 2
    assert said["clawbill_ingest_waiting_requests", ()] == 2
    assert said["clawbill_webhook_requests_total", (("result", "content_type"),)] == 1


def test_it_is_for_this_machine_or_for_whoever_has_its_token(ledger_url: str, tmp_path: Path) -> None:
    with served(create_app(settings_of(ledger_url, tmp_path), Ledger(ledger_url), live=False)) as address:
        assert httpx.get(f"{address}/metrics", trust_env=False).status_code == 200
        for header in ({"Host": "metrics.example.com"}, {"X-Forwarded-For": "10.0.0.1"}):
            assert httpx.get(f"{address}/metrics", headers=header, trust_env=False).status_code == 403
    settings = settings_of(ledger_url, tmp_path, CLAWBILL_METRICS_TOKEN="metrics-secret")
    with served(create_app(settings, Ledger(ledger_url), live=False)) as address:
        for shown in ({}, {"Authorization": "Bearer metrics-secre"}, {"Authorization": "metrics-secret"}):
            answer = httpx.get(f"{address}/metrics", headers=shown, trust_env=False)
            assert answer.status_code == 401
            assert "metrics-secret" not in answer.text
        shown = {"Authorization": "Bearer metrics-secret", "Host": "metrics.example.com"}
        assert "clawbill_ledger_up 1.0" in httpx.get(f"{address}/metrics", headers=shown, trust_env=False).text


def test_while_the_ledger_is_away_it_says_so_and_keeps_its_own_counts(ledger_url: str, tmp_path: Path) -> None:
    away = make_url(ledger_url).set(database="clawbill_gone").render_as_string(hide_password=False)
    names = {name: value for (name, _), value in scrape(away, tmp_path).items()}
    assert names["clawbill_ledger_up"] == 0
    assert "clawbill_ingest_seconds_count" in names
    assert "clawbill_outbox_rows" not in names


def test_scrapes_that_follow_one_another_ask_the_ledger_once(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    app = create_app(settings_of(ledger_url, tmp_path), Ledger(ledger_url), live=False)
    with served(app) as address:
        before = httpx.get(f"{address}/metrics", trust_env=False).text
        add(ledger, "breaks", cause="in_flight")
        assert samples(before).keys() == samples(httpx.get(f"{address}/metrics", trust_env=False).text).keys()
