"""A served app over a fresh ledger, and signed requests to its webhook."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from stripe import WebhookSignature

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.web.serving import served

SECRET = "whsec_test_first"
ROTATED = "whsec_test_second"


def snapshot(event_id: str = "evt_1", **changes: Any) -> str:
    event = {
        "id": event_id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_760_000_000,
        "data": {"object": {"id": "in_1", "object": "invoice"}},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": "invoice.created",
    }
    return json.dumps(event | changes, indent=2)


def thin(event_id: str = "evt_thin_1", **changes: Any) -> str:
    event = {
        "id": event_id,
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-11-22T08:00:00.123Z",
        "livemode": False,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    }
    return json.dumps(event | changes)


def signed(body: str, secret: str = SECRET, *, age: int = 0) -> dict[str, str]:
    signature = WebhookSignature.generate_signature_header(body, secret, int(time.time()) - age)
    return {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}


@dataclass
class Web:
    """The served app with a client of it and the ledger below it."""

    app: Starlette
    http: httpx.Client
    ledger: Ledger
    settings: Settings

    def post(self, body: str | bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        if headers is None:
            headers = signed(body if isinstance(body, str) else body.decode())
        return self.http.post("/stripe/webhook", content=body, headers=headers)

    def rows(self) -> list[Any]:
        with self.ledger.transaction() as connection:
            return list(connection.execute(text("SELECT * FROM stripe_events ORDER BY id")))

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.app.state.counts)


@pytest.fixture
def settings(ledger_url: str, tmp_path: Path) -> Settings:
    env = {"CLAWBILL_STATE": str(tmp_path / "state"), "CLAWBILL_DATABASE_URL": ledger_url}
    return Settings.from_env(env | {"STRIPE_WEBHOOK_SECRET": f"{SECRET}, {ROTATED}"})


@pytest.fixture
def web(settings: Settings, ledger_url: str) -> Iterator[Web]:
    yield from serve_app(settings, ledger_url, live=False)


@pytest.fixture
def live_web(settings: Settings, ledger_url: str) -> Iterator[Web]:
    yield from serve_app(settings, ledger_url, live=True)


def serve_app(settings: Settings, ledger_url: str, *, live: bool) -> Iterator[Web]:
    app = create_app(settings, Ledger(ledger_url), live=live)
    ledger = Ledger(ledger_url)
    with served(app) as address, httpx.Client(base_url=address, trust_env=False) as http:
        yield Web(app, http, ledger, settings)
    ledger.dispose()
