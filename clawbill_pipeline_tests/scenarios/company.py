"""A company on a movable clock: usage goes into log files, jobs run as Dagster would run them, Stripe's clock moves.

Everything between is real: the lake, the ledger, an OpenClaw server, the Stripe stand-in, the web app with its webhook.
A story is told by what happens (``use``, ``wait``, ``until_period_end``) and checked by what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.invoicing.close import Closed, close_drafts
from clawbill_pipeline.invoicing.dunning import advance_standing
from clawbill_pipeline.invoicing.inbox import apply_events
from clawbill_pipeline.invoicing.standing import report_standing
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.last_hours import LastHours, bill_last_hours
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import late_hours, meter, meter_unused
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline.reconciliation.compare import Reconciled, reconcile
from clawbill_pipeline.reconciliation.summaries import read_summaries
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.usage import land
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.rating.world import TOKEN
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox
from clawbill_pipeline_tests.web.serving import served

SECRET = "whsec_company"
CATALOGUE = """
version: 1
start: 2026-01-01T00:00:00Z
dunning: {overdue_after_days: 7, suspended_after_days: 14}
sources: [{name: app, kind: json_lines, path: usage}]
services:
  tokens: {unit: token}
  calls: {unit: call, bill_by: quantity}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: &list
          tokens: {model: per_unit, unit_amount: "0.00001"}
          calls: {model: per_unit, unit_amount: "0.01"}
  growing:
    currency: USD
    versions:
      - {effective_from: 2026-01-01T00:00:00Z, prices: *list}
      - effective_from: 2026-06-16T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: "0.000005"}, calls: {model: per_unit, unit_amount: "0.01"}}
  yen:
    currency: JPY
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: "0.8"}, calls: {model: per_unit, unit_amount: 2}}
  krona:
    currency: ISK
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: "0.05"}, calls: {model: per_unit, unit_amount: 2}}
tenants:
  globex: {rate_card: standard}
  initech: {rate_card: standard}
  grower: {rate_card: growing}
  osaka: {rate_card: yen}
  reykjavik: {rate_card: krona}
  leap: {rate_card: standard, anchor_day: 31}
  boston: {rate_card: standard, time_zone: America/New_York}
  salem: {rate_card: standard, time_zone: America/New_York}
"""


@dataclass
class Company:
    """``tenants`` of the catalogue above, with a Stripe account, a ledger and a lake of their own."""

    sandbox: Sandbox
    openclaw_url: str
    ledger: Ledger
    folder: Path
    tenants: tuple[str, ...] = ("globex",)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = datetime.fromtimestamp(self.sandbox.now(), UTC)
        whole = parse(CATALOGUE).at(self.folder)
        self.catalog: Catalog = whole.model_copy(update={"tenants": {n: whole.tenants[n] for n in self.tenants}})
        (self.folder / "usage").mkdir()
        self.lake = Lake(self.folder / "lake")
        self.account: Account = self.sandbox.account()
        self.api = StripeApi(SecretStr(self.account.key), self.sandbox.url)
        self.openclaw = OpenClaw(self.openclaw_url, SecretStr(TOKEN), timeout=10)
        self.lines = 0
        self.metered_to = utc_hour(self.now)
        self.last_hours: LastHours | None = None
        self.closed: Closed | None = None

    # --- time ------------------------------------------------------------------------------------------------------

    def clock(self) -> datetime:
        return self.now

    def begin(self, month: int, day: int = 1) -> None:
        """It is the next first (or another day) of that month; everybody in the catalogue subscribes."""
        at = self.now.replace(month=month, day=day, hour=0, minute=0, second=0)
        self.move_to(at if at > self.now else at.replace(year=at.year + 1))
        self.provision()

    def provision(self) -> None:
        made = provision(self.ledger, self.catalog, self.api, now=self.now, run_id="story")
        assert made.failed == ()
        self.metered_to = utc_hour(self.now)
        self.handle()

    def move_to(self, at: datetime) -> None:
        """Stripe and OpenClaw live at the same moment: prices are those of when an hour is rated."""
        self.sandbox.move_to(int(at.timestamp()))
        body, token = {"now": int(at.timestamp())}, {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{self.openclaw_url}/_sandbox/clock", json=body, headers=token, trust_env=False)
        assert answer.status_code == 200, answer.text
        self.now = at

    def wait(self, *, days: float = 0, hours: float = 0) -> None:
        """Time goes by, with its hourly runs; Stripe's events are handled, and open drafts every half hour."""
        until = self.now + timedelta(days=days, hours=hours)
        while self.now < until:
            is_close = any(status == "draft" for tenant in self.tenants for status, _ in self.bills(tenant))
            self.move_to(min(until, self.now + HOUR / 2) if is_close else until)
            self.run_hours()
            self.handle()

    def skip(self, *, days: float) -> None:
        """Time goes by in one leap: nothing runs on the way, as where everything was down."""
        self.move_to(self.now + timedelta(days=days))
        self.run_hours()
        self.handle()

    def until_period_end(self, tenant: str = "") -> None:
        """To the moment at which Stripe drafts the invoice: the hourly run of the last hour is still to come."""
        ends = datetime.fromtimestamp(self.subscription(tenant)["items"].data[0].current_period_end, UTC)
        if ends - HOUR / 2 > self.now:
            self.move_to(ends - HOUR / 2)
            self.run_hours()
        self.move_to(ends)
        self.handle()

    # --- the jobs --------------------------------------------------------------------------------------------------

    def run_hours(self) -> None:
        """The hourly runs up to now, and the late ones."""
        until = utc_hour(self.now - self.catalog.calendar.metering_lag)
        land(self.catalog, self.lake, self.ledger, now=self.now, run_id="hourly")
        spans = [(self.metered_to, until)] if until > self.metered_to else []
        spans += [(hour, hour + HOUR) for hour, _ in late_hours(self.ledger, before=self.metered_to)]
        for start, end in spans:
            given: dict[str, Any] = {"start": start, "end": end, "now": self.now, "run_id": "hourly"}
            meter(self.ledger, self.lake, self.catalog, **given)
            meter_unused(self.ledger, self.catalog, **given)
            rate(self.ledger, self.catalog, self.openclaw, **given)
            plan(self.ledger, self.catalog, hours=(start, end), now=self.now, run_id="hourly")
        deliver(self.ledger, self.catalog, self.api, now=self.clock, run_id="hourly")
        self.metered_to = max(until, self.metered_to)

    def handle(self) -> None:
        """The job of Stripe's events: invoices, their drafts with the last hours, standing."""
        while self.account.v1.webhook_endpoints.list().data and self.account.flush()["pending"]:
            pass
        applied = apply_events(self.ledger, self.catalog, self.api, through=None, now=self.now, run_id="events")
        self.look_at_drafts()
        advance_standing(self.ledger, self.catalog.dunning, now=self.now)
        told = report_standing(self.ledger, self.openclaw, now=self.now, run_id="events")
        self.problems += [*applied.problems, *told.problems]

    def look_at_drafts(self) -> None:
        """As the asset ``invoice_drafts`` does."""
        works: tuple[Any, ...] = (self.ledger, self.catalog, self.lake, self.openclaw, self.api)
        self.last_hours = bill_last_hours(*works, now=self.clock, run_id="events")
        closing = self.catalog.closing
        self.closed = close_drafts(self.ledger, self.catalog, self.api, closing, now=self.now, run_id="events")
        self.problems += [*self.last_hours.hindrances, *self.closed.problems]

    def reconcile(self, period: str) -> Reconciled:
        given: dict[str, Any] = {"period": period, "now": self.now, "run_id": "daily"}
        read_summaries(self.ledger, self.catalog, self.api, **given)
        return reconcile(self.ledger, self.catalog, self.lake, **given)

    def books_agree(self, period: str) -> None:
        """From the raw lines to the payments nothing differs, and every step but rounding is the same amount."""
        found = self.reconcile(period)
        assert [(b.tenant_id, b.service, b.step, b.cause, b.detail) for b in found.breaks] == []
        for step in found.waterfall:
            if step.invoiced_amount is not None and step.rated_amount is not None:
                assert step.invoiced_amount - step.rated_amount == (step.rounding or 0), step

    # --- what happens ----------------------------------------------------------------------------------------------

    def use(
        self, quantity: int, service: str = "tokens", *, tenant: str = "", at: datetime | None = None, again: int = 0
    ) -> None:
        """A line in the tenant's log, written ``again`` as often."""
        tenant = tenant or self.tenants[0]
        self.lines += 1
        line = {
            "event_id": f"e{self.lines}", "tenant_id": tenant, "service": service, "quantity": str(quantity),
            "timestamp": (at or self.now).isoformat(),
        }  # fmt: skip
        with (self.folder / "usage" / f"{tenant}.jsonl").open("a") as log:
            log.write((json.dumps(line) + "\n") * (1 + again))

    def card(self, outcome: str, tenant: str = "") -> None:
        body = {"customer": self.customer(tenant), "outcome": outcome}
        assert self.sandbox.control.post("/_sandbox/payments", json=body, headers=self.account.auth).status_code == 200

    @contextmanager
    def webhook(self, ledger_url: str, **settings: Any) -> Iterator[None]:
        """While it lasts, Stripe reaches the app."""
        app = create_app(Settings(stripe_webhook_secrets=(SecretStr(SECRET),)), Ledger(ledger_url), live=False)
        if settings:
            self.account.set(**settings)
        with served(app) as address:
            for is_thin in (False, True):
                endpoint = {"url": f"{address}/stripe/webhook", "secret": SECRET, "thin": is_thin}
                answer = self.sandbox.control.post("/_sandbox/webhooks", json=endpoint, headers=self.account.auth)
                assert answer.status_code == 200, answer.text
            yield
        for each in self.account.v1.webhook_endpoints.list({"limit": 100}).data:
            self.account.v1.webhook_endpoints.delete(each.id)

    # --- what came of it -------------------------------------------------------------------------------------------

    def rows(self, query: str, **values: Any) -> list[Any]:
        with self.ledger.transaction() as connection:
            return list(connection.execute(text(query), values))

    def customer(self, tenant: str = "") -> str:
        query = "SELECT customer_id FROM stripe_customers WHERE tenant_id = :tenant"
        return str(self.rows(query, tenant=tenant or self.tenants[0])[0].customer_id)

    def subscription(self, tenant: str = "") -> Any:
        query = "SELECT subscription_id FROM stripe_customers WHERE tenant_id = :tenant"
        identifier = self.rows(query, tenant=tenant or self.tenants[0])[0].subscription_id
        return self.account.v1.subscriptions.retrieve(identifier)

    def bills(self, tenant: str = "") -> list[tuple[str, Decimal]]:
        """Status and total of each of the tenant's invoices, oldest first, as the ledger knows them."""
        query = "SELECT status, total FROM invoices WHERE tenant_id = :tenant ORDER BY created, invoice_id"
        return [(row.status, row.total) for row in self.rows(query, tenant=tenant or self.tenants[0])]

    def standings(self, tenant: str = "") -> list[str]:
        query = "SELECT standing FROM tenant_standing WHERE tenant_id = :tenant ORDER BY id"
        return [row.standing for row in self.rows(query, tenant=tenant or self.tenants[0])]

    def decisions(self) -> list[str]:
        """What was decided on drafts, and the breaks of drafts: (cause, open)."""
        query = "SELECT kind FROM audit_trail WHERE kind IN ('close.hold', 'close.release') ORDER BY id"
        return [row.kind.removeprefix("close.") for row in self.rows(query)]

    def draft_breaks(self) -> list[tuple[str, str, bool]]:
        query = "SELECT service, cause, closed_at FROM breaks WHERE step = 'ledger_drafted' ORDER BY id"
        return [(row.service, row.cause, row.closed_at is None) for row in self.rows(query)]
