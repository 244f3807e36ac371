"""Health: which part is missing, by name."""

from __future__ import annotations

import httpx
from sqlalchemy import text

from clawbill_pipeline.ledger import Ledger, migrate, migration_state
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.web.conftest import Web
from clawbill_pipeline_tests.web.serving import served


def test_all_ready(web: Web) -> None:
    answer = web.http.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "missing": [],
        "parts": {"database": True, "ledger": True, "webhook_secret": True},
        "webhook": {},
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]


def test_a_database_that_was_never_migrated(settings: Settings, database_url: str) -> None:
    with served(create_app(settings, Ledger(database_url), live=False)) as address:
        answer = httpx.get(f"{address}/healthz", trust_env=False)
        assert httpx.get(f"{address}/livez", trust_env=False).json() == {"alive": True}
    assert (answer.status_code, answer.json()["missing"]) == (503, ["ledger"])


def test_a_database_that_a_later_version_migrated_serves_this_one(settings: Settings, ledger_url: str) -> None:
    """As in a rolling upgrade: the new version migrates first, and the old one answers until it is replaced."""
    ledger = Ledger(ledger_url)
    with ledger.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrate(ledger_url)
    assert migration_state(ledger_url)[0] == "9999"
    with served(create_app(settings, ledger, live=False)) as address:
        assert httpx.get(f"{address}/healthz", trust_env=False).status_code == 200


def test_parts_of_others(settings: Settings, ledger_url: str) -> None:
    parts = {"dagster": False, "openclaw": True}
    with served(create_app(settings, Ledger(ledger_url), live=False, ready=lambda: parts)) as address:
        answer = httpx.get(f"{address}/healthz", trust_env=False)
        assert (answer.status_code, answer.json()["missing"]) == (503, ["dagster"])
        parts["dagster"] = True
        assert httpx.get(f"{address}/healthz", trust_env=False).status_code == 200
