"""The finance pages served over a reconciled month, with accounts, and a draft invoice at the Stripe stand-in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.finance.users import Role, User, hashed, write_users
from clawbill_pipeline_tests.reconciliation.month import CATALOG, END, NOW, PERIOD, Month
from clawbill_pipeline_tests.reporting.conftest import month  # noqa: F401 -- a fixture
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox
from clawbill_pipeline_tests.web.serving import served

PASSWORD = "correct horse battery"
ACCOUNTS: dict[str, tuple[Role, tuple[str, ...] | None]] = {
    "anna": ("finance", None),
    "ed": ("engineer", None),
    "rita": ("read-only", None),
    "gus": ("finance", ("globex",)),
}


@pytest.fixture(scope="session")
def accounts() -> dict[str, User]:
    password = hashed(PASSWORD)
    return {name: User(role=role, password=password, tenants=tenants) for name, (role, tenants) in ACCOUNTS.items()}


@dataclass
class Office:
    """The served pages. At the stand-in, where there is one: ``draft`` is acme's draft, ``globex`` that tenant's
    customer."""

    month: Month
    settings: Settings
    address: str
    account: Account | None = None
    draft: str | None = None
    globex: str | None = None
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, name: str | None = None, password: str = PASSWORD) -> httpx.Client:
        """A browser of its own, signed in where a name is given."""
        client = httpx.Client(base_url=self.address, trust_env=False, timeout=60)
        self.clients.append(client)
        if name is not None:
            answer = sign_in(client, name, password)
            assert answer.status_code == 303, answer.text
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()

    @property
    def items(self) -> list[tuple[int, str]]:
        """``(minor units, proposal)`` of globex's invoice items at the stand-in."""
        assert self.account is not None
        listed = self.account.v1.invoice_items.list({"customer": str(self.globex)}).data
        return [(item.amount, item.metadata["clawbill_adjustment"]) for item in listed]

    def trail(self, kind: str) -> list[tuple[str, str | None, dict[str, object]]]:
        """``(subject, tenant, detail)`` of the rows of the audit trail of a kind."""
        rows = self.month.run(
            "SELECT subject, tenant_id, detail FROM audit_trail WHERE kind = :kind ORDER BY id", kind=kind
        )
        return [tuple(row) for row in rows]


def token_of(answer: httpx.Response) -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', answer.text)
    assert found, answer.text
    return found[1]


def sign_in(client: httpx.Client, name: str, password: str, leads_to: str = "/") -> httpx.Response:
    token = token_of(client.get("/sign-in"))
    return client.post("/sign-in", data={"token": token, "name": name, "password": password, "next": leads_to})


@pytest.fixture
def settings(month: Month, ledger_url: str, tmp_path: Path) -> Settings:  # noqa: F811 -- the fixture
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    (tmp_path / "clock").write_text(NOW.isoformat(), encoding="ascii")
    return Settings.from_env(
        {
            "CLAWBILL_STATE": str(tmp_path / "state"),
            "CLAWBILL_DATABASE_URL": ledger_url,
            "CLAWBILL_CATALOG": str(catalog),
            "CLAWBILL_LAKE": str(month.lake.root),
            "CLAWBILL_CLOCK": str(tmp_path / "clock"),
        }
    )


@pytest.fixture
def office(month: Month, settings: Settings, accounts: dict[str, User]) -> Iterator[Office]:  # noqa: F811
    """With accounts, and with the reports of the month."""
    write_users(settings.users_file, accounts)
    render(month.ledger, month.catalog, period=PERIOD, folder=settings.reports_root, now=NOW, run_id="test")
    propose(month)
    with served(create_app(settings, Ledger(settings.need_database()), live=False)) as address:
        yield from opened(Office(month, settings, address))


@pytest.fixture
def laptop(month: Month, settings: Settings) -> Iterator[Office]:  # noqa: F811
    """Without accounts."""
    with served(create_app(settings, Ledger(settings.need_database()), live=False)) as address:
        yield from opened(Office(month, settings, address))


@pytest.fixture(scope="session")
def stripe_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    sandbox = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield sandbox.account()
    sandbox.stop()


@pytest.fixture
def closing(
    month: Month,  # noqa: F811
    settings: Settings,
    accounts: dict[str, User],
    stripe_account: Account,
) -> Iterator[Office]:
    """As ``office``, with a draft invoice of acme that is at the stand-in and in the ledger."""
    account = Account(stripe_account.sandbox)
    meter = account.meter()
    customer = account.customer()
    subscription = account.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": account.price(meter.id, unit_amount_decimal="0.0001").id}]}
    )
    item = subscription["items"].data[0]
    account.use(customer, 5_000_000, item.current_period_start)
    account.sandbox.move_to(max(item.current_period_end, account.sandbox.now()))
    (draft,) = [each for each in account.v1.invoices.list({"customer": customer}).data if each.status == "draft"]
    month.run("UPDATE invoice_lines SET line_id = 'il_acme_tokens_final' WHERE line_id = 'il_acme_tokens'")
    month.run(
        "INSERT INTO invoices (invoice_id, tenant_id, customer_id, status, currency, subtotal, total, amount_due,"
        " amount_paid, created, object, as_of) VALUES (:id, 'acme', 'cus_acme', 'draft', 'USD', 5, 5, 5, 0, :at, '{}',"
        " :at)",
        id=draft.id,
        at=END,
    )
    month.run(
        "INSERT INTO invoice_lines (invoice_id, line_id, tenant_id, service, quantity, amount, currency, period_start,"
        " period_end, description, object) SELECT :id, 'il_acme_tokens', tenant_id, service, 5000000, 5, currency,"
        " period_start, period_end, '', object FROM invoice_lines WHERE line_id = 'il_acme_tokens_final'",
        id=draft.id,
    )
    globex = account.customer()
    month.run("UPDATE stripe_customers SET customer_id = :c WHERE tenant_id = 'globex'", c=globex)
    write_users(settings.users_file, accounts)
    render(month.ledger, month.catalog, period=PERIOD, folder=settings.reports_root, now=NOW, run_id="test")
    propose(month)
    at_stripe = {"stripe_key": SecretStr(account.key), "stripe_api_base": account.sandbox.url}
    app = create_app(settings.model_copy(update=at_stripe), Ledger(settings.need_database()), live=False)
    with served(app) as address:
        yield from opened(Office(month, settings, address, account, draft.id, globex))


def opened(office: Office) -> Iterator[Office]:
    yield office
    office.close()


def propose(month: Month) -> None:  # noqa: F811
    """An adjustment each of globex and of osaka, as the close writes them."""
    for tenant in ("globex", "osaka"):
        month.run(
            "INSERT INTO audit_trail (at, kind, tenant_id, subject, detail) VALUES (:at, 'adjustment.proposed', :t,"
            " :subject, jsonb_build_object('invoice_id', CAST(:invoice AS text), 'service', 'tokens', 'period_start',"
            " '2026-10-01T00:00:00+00:00', 'period_end', '2026-11-01T00:00:00+00:00', 'currency', 'USD', 'units',"
            " '750000', 'amount', '0.75', 'run_id', 'r'))",
            at=NOW,
            t=tenant,
            subject=f"in_{tenant}/tokens/2026-10-01T00:00:00Z",
            invoice=f"in_{tenant}",
        )
