"""From an open break to a mailbox: once, to the right people, in one message, and again when it is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.alerts.composing import LISTED
from clawbill_pipeline.alerts.matters import Matter
from clawbill_pipeline.alerts.routes import parse_routes
from clawbill_pipeline.alerts.telling import Telling, tell, tell_of_run
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline_tests.alerts.receivers import Hook, Mailbox, hook, mailbox
from clawbill_pipeline_tests.reconciliation.month import CATALOG, FINAL, NOW, PERIOD, Month, hour

OWNERS = {
    "usage_reconciliation": frozenset({"team:finance"}),
    "usage_events": frozenset({"team:data"}),
    "metered_usage": frozenset({"team:data"}),
    "rated_usage": frozenset({"team:data"}),
    "stripe_usage_records": frozenset({"team:data"}),
    "stripe_invoices": frozenset({"team:finance"}),
    "invoice_drafts": frozenset({"team:finance"}),
}


@pytest.fixture
def mail() -> Iterator[Mailbox]:
    with mailbox() as box:
        yield box


@pytest.fixture
def posted() -> Iterator[Hook]:
    with hook() as kept:
        yield kept


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    made = Month.at(ledger_url, tmp_path)
    made.used("acme", "tokens", hour(0), 100_000)
    made.used("globex", "tokens", hour(1), 2_000)
    made.used("osaka", "tokens", hour(2), 500)
    yield made
    made.ledger.dispose()


def _reconciled(month: Month) -> None:
    reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="test")


def _tell(month: Month, routes: str, *, later: timedelta = timedelta(0)) -> Telling:
    now = NOW + later
    return tell(month.ledger, month.catalog, parse_routes(routes), OWNERS, now=now, link="https://billing.example.com")


def _parked(month: Month) -> None:
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(state="planned", parked="disputed")
    _reconciled(month)


def test_breaks_of_a_reconciliation_are_one_message_told_once(month: Month, mail: Mailbox) -> None:
    _parked(month)
    route = f"team:finance={mail.url('cfo@example.com')}"
    assert _tell(month, route) == Telling(1, ())
    ((to, _),) = mail.received
    ((subject, body),) = mail.texts()
    assert to == ["cfo@example.com"]
    assert subject == "clawbill: Breaks of 2026-10: 3, 100 JPY, 153 USD"
    lines = [line for line in body.splitlines() if line.strip()]
    assert "parked, acme tokens at 2026-10-01T00:00Z (disputed) -150 USD" in lines[0]
    assert "globex" in body
    assert "osaka" in body
    assert lines[-1].strip() == "https://billing.example.com"
    assert _tell(month, route) == Telling(0, ())
    _reconciled(month)
    assert _tell(month, route) == Telling(0, ())


def test_the_end_is_told_once_and_a_new_break_again(month: Month, mail: Mailbox) -> None:
    _parked(month)
    route = f"team:finance={mail.url('cfo@example.com')}"
    _tell(month, route)
    month.run("UPDATE usage_records SET parked = NULL, state = 'delivered', settled_at = :at", at=FINAL)
    month.hold()
    month.bill()
    _reconciled(month)
    _tell(month, route)
    assert mail.texts()[1][0] == "clawbill: resolved: Breaks of 2026-10: 3"
    assert "break" in mail.texts()[1][1]
    assert _tell(month, route) == Telling(0, ())
    month.run(
        "INSERT INTO breaks (period, tenant_id, service, hour, step, cause, currency, quantity, amount, detail,"
        " first_seen, last_seen) SELECT period, tenant_id, service, hour, step, cause, currency, quantity, amount,"
        " detail, :at, :at FROM breaks WHERE tenant_id = 'acme' AND cause = 'parked'",
        at=NOW,
    )
    _tell(month, route)
    assert [subject for subject, _ in mail.texts()[2:]] == ["clawbill: Breaks of 2026-10: 1, 150 USD"]


def test_routes_go_by_owner_and_amount(month: Month, posted: Hook) -> None:
    _parked(month)
    routes = "\n".join(
        f"{condition}={posted.url(name)}"
        for condition, name in [
            ("team:data", "data"), ("team:finance", "finance"), ("team:finance>=153 USD", "much"),
            ("team:finance>=154", "more"), ("team:finance>=101 JPY", "yen"), ("team:sales", "sales"), ("*", "all"),
        ]
    )  # fmt: skip
    assert _tell(month, routes).problems == ()
    titles = [message["title"] for message in posted.received]
    breaks = "clawbill: Breaks of 2026-10: 3, 100 JPY, 153 USD"
    parked = "clawbill: Parked usage records: 3, 100 JPY, 153 USD"
    # data: the break's step is theirs; finance: all breaks; over a limit: by what they add up to in a currency.
    assert titles == [breaks, parked, breaks, breaks, breaks, parked]


def test_small_breaks_are_told_when_they_add_up(month: Month, posted: Hook) -> None:
    month.map()
    add = (
        "INSERT INTO breaks (period, tenant_id, service, hour, step, cause, currency, quantity, amount, detail,"
        " first_seen, last_seen) VALUES ('2026-10', 'acme', 'tokens', :hour, 'rated_sent', 'rejected', 'USD', 1, 0.4,"
        " 'small', :at, :at)"
    )
    route = f"*>=1={posted.url()}"
    for number in range(2):
        month.run(add, hour=hour(number), at=NOW)
        assert _tell(month, route) == Telling(0, ())
    month.run(add, hour=hour(3), at=NOW)
    assert _tell(month, route) == Telling(1, ())
    assert posted.received[0]["title"] == "clawbill: Breaks of 2026-10: 3, 1.2 USD"


def test_a_message_stays_readable(month: Month, posted: Hook) -> None:
    month.write(
        "INSERT INTO breaks (period, tenant_id, service, hour, step, cause, currency, quantity, amount, detail,"
        " first_seen, last_seen) VALUES ('2026-10', 'acme', 'tokens', :hour, 'rated_sent', 'rejected', 'USD', 1,"
        " :amount, :detail, :hour, :hour)",
        [{"hour": hour(n), "amount": Decimal(n), "detail": "two\nlines " + "x" * 500} for n in range(300)],
    )
    _tell(month, f"*={posted.url()}")
    (message,) = posted.received
    lines = message["message"].splitlines()
    assert len(lines) == LISTED + 2
    assert "299 USD" in lines[0]
    assert lines[-2] == "… and 280 more"
    assert max(map(len, lines)) < 300


def test_a_dead_receiver_is_tried_again_and_keeps_nobody_else_waiting(
    month: Month, mail: Mailbox, posted: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    _parked(month)
    posted.status = 500
    routes = f"*={posted.url('S3CRET-TOKEN')}; team:finance={mail.url('cfo@example.com')}"
    with caplog.at_level(logging.INFO):
        first = _tell(month, routes)
    assert first.messages == 1
    assert len(first.problems) == 2
    assert "S3CRET" not in caplog.text + str(first)
    again = _tell(month, routes)
    assert (again.messages, len(again.problems)) == (0, 2)
    assert len(mail.received) == 1
    posted.status = 200
    assert _tell(month, routes) == Telling(2, ())


@pytest.mark.parametrize("address", ["slack://S3CRET", "nosuch://S3CRET", "mailto://u:S3CRET@127.0.0.1:1?to=a@b.co"])
def test_an_address_that_does_not_work_is_a_problem_without_its_secret(
    month: Month, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    _parked(month)
    with caplog.at_level(logging.DEBUG):
        result = _tell(month, f"team:finance={address}")
    assert result.messages == 0
    assert len(result.problems) == 1
    assert "S3CRET" not in caplog.text + str(result)


def test_a_source_that_fell_silent(month: Month, tmp_path: Path, posted: Hook) -> None:
    sources = """
sources:
  - {name: logs, kind: json_lines, path: usage}
  - {name: slow, kind: json_lines, path: slow}
  - {name: fresh, kind: json_lines, path: fresh}
alerts:
  stale_after_hours: 6
  stale_after_hours_by_source: {slow: 8760}
"""
    watched = Month.at(month.ledger.engine.url.render_as_string(hide_password=False), tmp_path, CATALOG + sources)
    watched.land_usage()
    route = f"team:data={posted.url()}"
    _tell(watched, route)
    (message,) = posted.received
    assert message["title"] == "clawbill: Stale sources: 2"
    assert "source logs: nothing landed since 2026-10-01T00:00Z" in message["message"]
    assert "source fresh: nothing ever landed" in message["message"]
    watched.land([("x", "acme", "tokens", hour(5), 1)], landed_at=NOW)
    _tell(watched, route)
    assert posted.received[1]["title"] == "clawbill: resolved: Stale sources: 1"
    watched.ledger.dispose()


def test_a_held_invoice(month: Month, posted: Hook) -> None:
    month.clean()
    month.run("UPDATE invoices SET status = 'draft', finalized_at = NULL WHERE tenant_id = 'acme'")
    decide = (
        "INSERT INTO audit_trail (at, kind, tenant_id, subject, detail)"
        ' VALUES (:at, :kind, \'acme\', \'in_acme\', CAST(\'{"why": "usage is missing", "by": "clawbill"}\' AS jsonb))'
    )
    month.run(decide, at=NOW, kind="close.hold")
    route = f"team:finance={posted.url()}"
    _tell(month, route)
    assert posted.received[0]["title"] == "clawbill: Held invoices: 1, 150 USD"
    assert "invoice in_acme of tenant acme is held: usage is missing" in posted.received[0]["message"]
    month.run(decide, at=NOW, kind="close.release")
    _tell(month, route)
    assert posted.received[1]["title"] == "clawbill: resolved: Held invoices: 1"


def test_a_failed_run_is_told_at_once_and_later_where_that_failed(month: Month, mail: Mailbox, posted: Hook) -> None:
    matter = Matter("run", "abc", "run of hourly_billing failed", ("rated_usage",), "run abc failed in rated_usage")
    routes = (
        f"team:data={mail.url('ops@example.com')}; team:data={posted.url()};"
        f"team:finance={posted.url()}; team:data>=1={posted.url()}"
    )
    posted.status = 503
    told = tell_of_run(month.ledger, parse_routes(routes), OWNERS, matter, now=NOW)
    assert (told.messages, len(told.problems)) == (1, 1)
    posted.status = 200
    assert _tell(month, routes) == Telling(1, ())
    assert [message["title"] for message in posted.received] == ["clawbill: run of hourly_billing failed"]
    assert _tell(month, routes) == Telling(0, ())
    assert len(mail.received) == 1


def test_a_volume_that_is_far_from_usual_is_told_until_one_is_usual_again(month: Month, mail: Mailbox) -> None:
    month.land_usage()
    month.meter()
    newest = hour(2)
    found = "INSERT INTO unusual_volumes VALUES (:hour, 'acme', 'tokens', 400.5, 33.333333333333, :hour)"
    month.run(found, hour=newest)
    month.run(found.replace("acme", "osaka"), hour=hour(1))
    route = f"team:data={mail.url('ops@example.com')}"
    assert _tell(month, route) == Telling(1, ())
    assert _tell(month, route) == Telling(0, ())
    ((subject, body),) = mail.texts()
    assert subject == "clawbill: Unusual volumes: 1"
    assert "tenant acme used 400.5 of tokens in the hour of 2026-10-01T02:00Z, usually 33.333" in body
    # The next hour is unusual as well: the same matter.
    month.run("INSERT INTO metered_hours SELECT :hour, landings, events, duplicates, conflicts, changed, metered_at,"
              " run_id FROM metered_hours LIMIT 1", hour=hour(3))  # fmt: skip
    month.run(found, hour=hour(3))
    assert _tell(month, route) == Telling(0, ())
    month.run("INSERT INTO metered_hours SELECT :hour, landings, events, duplicates, conflicts, changed, metered_at,"
              " run_id FROM metered_hours LIMIT 1", hour=hour(4))  # fmt: skip
    assert _tell(month, route) == Telling(1, ())
    assert mail.texts()[-1][0] == "clawbill: resolved: Unusual volumes: 1"
