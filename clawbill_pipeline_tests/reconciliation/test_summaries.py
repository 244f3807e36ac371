"""Stripe's totals are read back over HTTP from the stand-in: few calls, exact values, one failure stops nobody."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from clawbill_pipeline.catalog import Period
from clawbill_pipeline.reconciliation import summaries
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reconciliation.summaries import SummariesRead, _look, read_summaries, whole
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.reconciliation.month import PERIOD, Month, hour
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox

NOW = datetime(2026, 10, 20, tzinfo=UTC)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state", now=int(NOW.timestamp()))
    yield running
    running.stop()


@pytest.fixture
def account(sandbox: Sandbox) -> Account:
    return sandbox.account()


def connect(month: Month, account: Account) -> dict[str, str]:
    """Real customers and meters in the place of the month's made-up ones; returns the customers by tenant."""
    month.map()
    customers = {tenant: account.customer() for tenant in month.catalog.tenants}
    for tenant, customer in customers.items():
        month.run("UPDATE stripe_customers SET customer_id = :c WHERE tenant_id = :t", c=customer, t=tenant)
    meters = {s: account.meter(month.catalog.meter(s)).id for s in month.catalog.services}
    for service, meter in meters.items():
        month.run("UPDATE stripe_items SET meter_id = :m WHERE service = :s", m=meter, s=service)
    return customers


def report(month: Month, account: Account, customers: dict[str, str], **but: int) -> None:
    """Sends every usage record of the ledger; ``tenant_h<number>=units`` sends something else for that hour."""
    for row in month.run("SELECT tenant_id, meter, hour, units FROM usage_records"):
        number = int((row.hour - hour(0)).total_seconds() // 3600)
        units = but.get(f"{row.tenant_id}_h{number}", int(row.units))
        send(account, row.meter, customers[row.tenant_id], units, row.hour)


def send(account: Account, meter: str, customer: str, units: int, at: datetime) -> None:
    payload = {"stripe_customer_id": customer, "value": str(units)}
    account.v1.billing.meter_events.create({"event_name": meter, "payload": payload, "timestamp": int(at.timestamp())})


def read(month: Month, account: Account, now: datetime = NOW) -> SummariesRead:
    api = StripeApi(SecretStr(account.key), account.sandbox.url)
    return read_summaries(month.ledger, month.catalog, api, period=PERIOD, now=now, run_id="test")


def rows(month: Month) -> list[tuple]:
    return [tuple(r) for r in month.run("SELECT tenant_id, service, hour, units FROM usage_summaries ORDER BY id")]


def test_totals_that_agree_are_read_once_and_kept_once(month: Month, account: Account) -> None:
    customers = connect(month, account)
    month.send()
    report(month, account, customers)
    first = read(month, account)
    assert (first.read, first.differing, first.appended, first.unread) == (6, 0, 6, ())
    assert {r[:2]: r[3] for r in rows(month)} == {
        **{(tenant, service): 0 for tenant in customers for service in month.catalog.services},
        **month.totals(),
    }
    assert all(at is None for _, _, at, _ in rows(month))
    before = month.fingerprint()
    assert read(month, account, NOW + timedelta(hours=1)).appended == 0
    assert month.fingerprint() == before


def test_hours_are_read_where_the_period_differs(month: Month, account: Account) -> None:
    customers = connect(month, account)
    month.land_usage()
    month.meter()
    month.rate()
    month.send()
    report(month, account, customers, acme_h2=0, osaka_h1=7)
    result = read(month, account)
    assert result.differing == 3  # acme has two services in hour 2
    with_hours = {r[:2] for r in rows(month) if r[2] is not None}
    assert with_hours == {("acme", "tokens"), ("osaka", "tokens"), ("acme", "requests")}
    reconciled = reconcile(
        month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW + timedelta(hours=1), run_id="test"
    )
    assert [(b.tenant_id, b.service, b.hour, b.cause, b.amount) for b in reconciled.breaks] == [
        ("acme", "requests", hour(2), "lost_after_acknowledgement", Decimal(-1)),
        ("acme", "tokens", hour(2), "lost_after_acknowledgement", Decimal("-1.5225")),
        ("osaka", "tokens", hour(1), "lost_after_acknowledgement", Decimal("-66.599993")),
    ]


def test_hours_that_cancel_out_within_a_period_are_found(month: Month, account: Account) -> None:
    """What is missing in one hour is too much in another, so that the total agrees; by the next morning it is known."""
    customers = connect(month, account)
    month.land_usage()
    month.meter()
    month.rate()
    month.send()
    right = {n: int(month.units("acme", "tokens", Decimal(1001 + 7 * n))) for n in (3, 4)}
    wrong = {"acme_h3": right[3] - 1000, "acme_h4": right[4] + 1000}
    report(month, account, customers, **wrong)
    morning = hour(24 + 6) + timedelta(minutes=30)

    first = read(month, account, morning)
    assert (first.differing, first.read_by_hour, first.checks[1].passed) == (1, 4, False)
    newest = {at: units for tenant, service, at, units in rows(month) if (tenant, service) == ("acme", "tokens")}
    assert newest[None] == month.totals()["acme", "tokens"], "the total agrees"
    assert (newest[hour(3)], newest[hour(4)]) == (wrong["acme_h3"], wrong["acme_h4"])

    def found(at: datetime) -> list[tuple]:
        reconciled = reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=at, run_id="test")
        return [(b.tenant_id, b.service, b.hour, b.step, b.cause, b.amount) for b in reconciled.breaks]

    place = ("acme", "tokens")
    assert found(morning) == [
        (*place, hour(3), "sent_held", "wrong_hour", Decimal("-0.001")),
        (*place, hour(4), "sent_held", "wrong_hour", Decimal("0.001")),
    ]
    # Weeks later it is looked at still, and once it is mended nothing is left.
    for number, units in ((3, 1000), (4, -1000)):
        send(account, month.catalog.meter("tokens"), customers["acme"], units, hour(number))
    later = NOW - timedelta(days=1)
    assert read(month, account, later).differing == 0
    assert found(later) == []


def test_the_hours_of_everybody_take_turns(month: Month) -> None:
    calendar, period = month.catalog.calendar, Period(hour(0), hour(31 * 24), PERIOD)

    def look(at: datetime, last: datetime | None) -> tuple[datetime, datetime] | None:
        return _look(period, last, calendar, at)

    assert look(hour(30), None) is None, "nothing was sent"
    assert look(hour(30) + timedelta(minutes=30), hour(29)) == (hour(0), hour(29))
    assert look(hour(0), hour(0)) is None
    assert look(hour(500) + timedelta(minutes=30), hour(499)) == (hour(403), hour(499)), "one call lists so many"
    assert look(hour(500), hour(300)) is None, "nothing was sent of late"
    mornings = [hour(24 * day + 6) + timedelta(minutes=30) for day in range(1, 34)]
    seen = [found for at in mornings if (found := look(at, min(at, hour(743)))) is not None]
    for number in range(744):
        assert sum(since <= hour(number) < until for since, until in seen) >= (4 if number < 640 else 1)
    assert (hour(0), hour(744)) in seen, "all of it before it is closed for good"


def test_an_hour_that_stripe_empties_is_empty_here_too(month: Month, account: Account) -> None:
    customers = connect(month, account)
    month.send()
    report(month, account, customers, acme_h0=1)
    month.held("acme", "tokens", 5, hour(9))
    read(month, account)
    newest = {r[2]: r[3] for r in rows(month) if r[:2] == ("acme", "tokens")}
    assert (newest[hour(0)], newest[hour(9)]) == (1, 0)


def test_one_customer_that_fails_stops_nobody_else(month: Month, account: Account) -> None:
    customers = connect(month, account)
    month.send()
    report(month, account, customers)
    month.run("UPDATE stripe_customers SET customer_id = 'cus_gone' WHERE tenant_id = 'acme'")
    result = read(month, account)
    assert (result.read, {u.tenant_id for u in result.unread}, result.checks[0].passed) == (4, {"acme"}, False)
    assert "cus_gone" in result.unread[0].error
    audit = month.run("SELECT tenant_id, subject, detail FROM audit_trail WHERE kind = 'usage_summary.unread'")
    assert [(r.tenant_id, r.subject, r.detail["period"]) for r in audit] == [
        ("acme", "requests", PERIOD),
        ("acme", "tokens", PERIOD),
    ]


def test_more_hours_than_a_page(month: Month, account: Account) -> None:
    month.usage.clear()
    for number in range(130):
        month.used("acme", "tokens", hour(number), 2)
    customers = connect(month, account)
    month.send()
    report(month, account, customers, acme_h129=1)
    read(month, account)
    hours = {r[2]: r[3] for r in rows(month) if r[2] is not None}
    assert (len(hours), sum(hours.values())) == (130, 129 * 3000 + 1)


def test_periods_that_have_not_begun_are_not_asked_for(month: Month, account: Account) -> None:
    connect(month, account)
    assert read(month, account, hour(0) - timedelta(days=1)).read == 0


def test_a_total_beyond_exact_floats_is_the_sum_of_its_hours(month: Month, account: Account) -> None:
    month.usage.clear()
    month.used("acme", "tokens", hour(0), 1)
    month.used("acme", "tokens", hour(1), 1)
    customers = connect(month, account)
    # 2^53 + 1 has no float: two hours of a little more than half of it each have.
    units = {hour(0): 2**52 + 1, hour(1): 2**52}
    for at, value in units.items():
        for part in (*[value // 10] * 9, value - value // 10 * 9):
            send(account, month.catalog.meter("tokens"), customers["acme"], part, at)
    read(month, account)
    held = {r[2]: r[3] for r in rows(month) if r[:2] == ("acme", "tokens")}
    assert held == {**units, None: 2**53 + 1}


@pytest.mark.parametrize("value", [0.5, 1e-6, float("1.25")])
def test_a_part_of_a_unit_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="no whole number"):
        whole(value)


def test_a_rate_limit_is_waited_out(month: Month, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    waits: list[float] = []
    sleep = asyncio.sleep

    async def no_wait(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    class Limited(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls[self.path] += 1
            body = b'{"error": {"type": "invalid_request_error", "code": "rate_limit", "message": "Too many requests"}}'
            if calls[self.path] == 3:
                body = b'{"object": "list", "data": [], "has_more": false, "url": "/x"}'
            self.send_response(200 if calls[self.path] == 3 else 429)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr(summaries.asyncio, "sleep", no_wait)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Limited)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        month.map()
        api = StripeApi(SecretStr("sk_test_x"), f"http://127.0.0.1:{server.server_port}")
        result = read_summaries(month.ledger, month.catalog, api, period=PERIOD, now=NOW, run_id="test")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (result.read, result.unread) == (6, ())
    assert set(calls.values()) == {3}
    assert len([wait for wait in waits if wait > 0.1]) == 12
