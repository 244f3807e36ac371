"""The customer portal: for the host's application alone, to Stripe's own address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import insert

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import stripe_customers
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.server import listening
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox
from clawbill_pipeline_tests.web.serving import served

TOKEN = {"Authorization": "Bearer portal-token"}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running.account()
    running.stop()


def map_tenant(ledger: Ledger, tenant_id: str, customer_id: str) -> None:
    row = {"tenant_id": tenant_id, "customer_id": customer_id, "subscription_id": f"sub_{tenant_id}"}
    with ledger.transaction() as connection:
        now = datetime.now(UTC)
        connection.execute(
            insert(stripe_customers).values(row | {"currency": "USD", "livemode": False, "mapped_at": now})
        )


@pytest.fixture
def http(settings: Settings, ledger_url: str, account: Account) -> Iterator[httpx.Client]:
    """A client of an app with the portal, globex mapped to a customer and gone to one that Stripe does not know."""
    ledger = Ledger(ledger_url)
    map_tenant(ledger, "globex", account.customer())
    map_tenant(ledger, "gone", "cus_gone")
    ledger.dispose()
    stripe = {"stripe_key": SecretStr(account.key), "stripe_api_base": account.sandbox.url}
    app = create_app(
        settings.model_copy(update=stripe), Ledger(ledger_url), live=False, portal_token=SecretStr("portal-token")
    )
    with served(app) as address, httpx.Client(base_url=address, trust_env=False) as http:
        yield http


def test_a_tenant_gets_a_session_of_its_own(http: httpx.Client) -> None:
    answers = [http.get("/tenants/globex/portal", headers=TOKEN) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    urls = {answer.json()["url"] for answer in answers}
    assert len(urls) == 2
    assert all(url.startswith("https://billing.stripe.com/p/session/") for url in urls)
    assert answers[0].headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "portal-token"}],
)
def test_nobody_without_the_token(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.get("/tenants/globex/portal", headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "url" not in answer.json()


@pytest.mark.parametrize(
    ("return_url", "status"),
    [
        ("https://host.example/account", 200),
        ("http://localhost:3000/account", 200),
        ("http://host.example/account", 400),
        ("javascript:alert(1)", 400),
        ("/account", 400),
        ("", 400),
    ],
)
def test_where_it_leads_back_to(http: httpx.Client, return_url: str, status: int) -> None:
    answer = http.get("/tenants/globex/portal", headers=TOKEN, params={"return_url": return_url})
    assert answer.status_code == status


def test_a_tenant_that_nobody_knows(http: httpx.Client) -> None:
    for tenant_id in ("nobody", "%00"):
        assert http.get(f"/tenants/{tenant_id}/portal", headers=TOKEN).status_code == 404


def test_what_stripe_refuses_is_said(http: httpx.Client, account: Account) -> None:
    answer = http.get("/tenants/gone/portal", headers=TOKEN)
    assert (answer.status_code, "No such customer" in answer.json()["error"]) == (502, True)
    assert account.key not in answer.text


def test_while_stripe_is_away(settings: Settings, ledger_url: str) -> None:
    map_tenant(ledger := Ledger(ledger_url), "globex", "cus_1")
    with listening("127.0.0.1", 0) as closed:
        base = f"http://127.0.0.1:{closed.getsockname()[1]}"
    stripe = {"stripe_key": SecretStr("sk_test_secret"), "stripe_api_base": base}
    app = create_app(settings.model_copy(update=stripe), ledger, live=False, portal_token=SecretStr("portal-token"))
    with served(app) as address:
        answer = httpx.get(f"{address}/tenants/globex/portal", headers=TOKEN, trust_env=False)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "sk_test_secret" not in answer.text


def test_without_a_token_there_is_no_portal(settings: Settings, ledger_url: str) -> None:
    with served(create_app(settings, Ledger(ledger_url), live=False)) as address:
        assert httpx.get(f"{address}/tenants/globex/portal", headers=TOKEN, trust_env=False).status_code == 404


def test_the_page_of_the_documentation_leads_a_tenant_there(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "portal.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.setenv("CLAWBILL_WEB_URL", str(http.base_url).rstrip("/"))
    monkeypatch.setenv("CLAWBILL_PORTAL_TOKEN", "portal-token")
    names: dict[str, Any] = {}
    exec(compile(program, "docs/portal.md", "exec"), names)
    with served(names["app"]) as address:
        answer = httpx.get(f"{address}/billing", headers={"x-signed-in-tenant": "globex"}, trust_env=False)
        assert (answer.status_code, answer.headers["location"][:36]) == (303, "https://billing.stripe.com/p/session")
        answer = httpx.get(f"{address}/billing", headers={"x-signed-in-tenant": "nobody"}, trust_env=False)
        assert answer.status_code == 503
