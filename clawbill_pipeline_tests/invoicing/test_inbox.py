"""The inbox on a real database: order, mapping, failures, and that nothing is lost or handled twice."""

from __future__ import annotations

import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from clawbill_pipeline.cli import cli
from clawbill_pipeline.invoicing.inbox import apply_failed_again, pending_events, unhandled
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.invoicing.conftest import CATALOG, NOW, Inbox
from clawbill_pipeline_tests.invoicing.objects import END, invoice, line, subscription

LATER = END + 3600


def test_an_invoice_from_draft_to_paid(inbox: Inbox) -> None:
    inbox.land("invoice.created", invoice("draft"), END)
    inbox.land("invoice.finalized", invoice("open", lines=[line(amount=2000), line("il_2", None, 34)]), LATER)
    paid = inbox.land("invoice.paid", invoice("paid", lines=[line(amount=2000), line("il_2", None, 34)]), LATER)
    result = inbox.apply()
    assert (result.applied, result.invoices, result.lines, result.standings) == (3, 3, 5, 1)
    assert all(check.passed for check in result.checks)
    (row,) = inbox.rows("invoices")
    assert (row.tenant_id, row.status, row.total, row.amount_paid) == ("globex", "paid", Decimal("20.34"), row.total)
    assert row.as_of == datetime.fromtimestamp(LATER, UTC)
    first, second = inbox.rows("invoice_lines", "line_id")
    assert (first.tenant_id, first.service, first.amount) == ("globex", "requests", 20)
    assert (second.tenant_id, second.service, second.amount) == ("globex", None, Decimal("0.34"))
    (standing,) = inbox.rows("tenant_standing")
    assert (standing.standing, standing.cause, standing.reported_at) == ("current", paid, None)


def test_a_second_call_changes_nothing(inbox: Inbox) -> None:
    inbox.land("invoice.paid", invoice("paid"))
    inbox.apply()
    before = [inbox.rows(table) for table in ("invoices", "invoice_lines", "tenant_standing", "stripe_events_handled")]
    result = inbox.apply()
    assert (result.applied, result.invoices, result.last_inbox_id) == (0, 0, None)
    after = [inbox.rows(table) for table in ("invoices", "invoice_lines", "tenant_standing", "stripe_events_handled")]
    assert after == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_paid_and_updated_in_the_same_second_stays_paid(inbox: Inbox, order: tuple[int, int]) -> None:
    """PEERS.md, case 10."""
    pair = [("invoice.paid", invoice("paid")), ("invoice.updated", invoice("open", attempted=True))]
    for index in order:
        inbox.land(*pair[index], LATER)
    inbox.apply()
    assert inbox.rows("invoices")[0].status == "paid"
    assert inbox.standings()[-1] == "current"


def test_a_paid_invoice_never_goes_back_whatever_the_times_say(inbox: Inbox) -> None:
    inbox.land("invoice.paid", invoice("paid"), LATER)
    inbox.land("invoice.payment_failed", invoice("open", attempted=True), LATER + 60)
    inbox.land("invoice.created", invoice("draft", lines=[]), END)
    result = inbox.apply()
    assert (result.applied, result.older) == (1, 2)
    assert inbox.rows("invoices")[0].status == "paid"
    assert len(inbox.rows("invoice_lines")) == 1
    assert inbox.standings() == ["current"]


def test_any_order_ends_in_the_same_rows(inbox: Inbox) -> None:
    """A failed card that recovers, in every order in which its six events can come."""
    month = [
        ("customer.subscription.created", subscription("active"), END - 100),
        ("invoice.created", invoice("draft"), END),
        ("invoice.finalized", invoice("open"), LATER),
        ("invoice.payment_failed", invoice("open", attempted=True), LATER + 1),
        ("customer.subscription.updated", subscription("past_due"), LATER + 1),
        ("invoice.paid", invoice("paid"), LATER + 2),
        ("customer.subscription.updated", subscription("active"), LATER + 2),
    ]
    orders = list(itertools.permutations(range(len(month))))
    for order in random.Random(7).sample(orders, 40):
        number = len(inbox.landed)
        tenant = f"tenant{number}"
        inbox.map(tenant, number + 2, services=())
        renamed = {"in_1": f"in_{number + 2}", "cus_1": f"cus_{number + 2}", "sub_1": f"sub_{number + 2}"}
        for index in order:
            event_type, obj, at = month[index]
            text = json.dumps(obj)
            for old, new in renamed.items():
                text = text.replace(f'"{old}"', f'"{new}"')
            inbox.land(event_type, json.loads(text), at)
        inbox.apply()
        assert inbox.standings(tenant)[-1] == "current", order
        (row,) = [row for row in inbox.rows("invoices") if row.tenant_id == tenant]
        assert (row.status, row.amount_paid) == ("paid", Decimal("12.34")), order


def test_lines_that_went_are_gone(inbox: Inbox) -> None:
    inbox.land("invoice.created", invoice(lines=[line("il_1"), line("il_2")]), END)
    inbox.land("invoice.updated", invoice(lines=[line("il_2", amount=5), line("il_3")]), END + 1)
    inbox.apply()
    assert [(row.line_id, row.amount) for row in inbox.rows("invoice_lines", "line_id")] == [
        ("il_2", Decimal("0.05")),
        ("il_3", Decimal("12.34")),
    ]


def test_lines_that_do_not_add_up_are_shown(inbox: Inbox) -> None:
    inbox.land("invoice.created", invoice(has_more=True, subtotal=9999))
    (check,) = [check for check in inbox.apply().checks if check.name == "invoice_lines_add_up"]
    assert not check.passed
    assert "99.99" in str(check.numbers["in_1"])


def test_a_bad_event_fails_alone(inbox: Inbox) -> None:
    inbox.land("invoice.created", invoice(currency="dollars"))
    inbox.land("invoice.created", invoice(id="in_nul", number="\0"))
    inbox.land("invoice.created", invoice(id="in_deep", metadata={"x": "\0"}))
    inbox.land("invoice.created", invoice(id="in_half", number="\ud800"))
    inbox.land("invoice.created", invoice(id="in_good"))
    result = inbox.apply()
    assert inbox.outcomes() == ["failed"] * 4 + ["applied"]
    assert [row.invoice_id for row in inbox.rows("invoices")] == ["in_good"]
    assert (result.failed, len(result.problems)) == (4, 4)
    assert result.problems[0].startswith("evt_1 (invoice.created) failed: currency")
    assert not result.checks[0].passed


def test_a_failed_event_is_tried_again_once_its_cause_is_mended(inbox: Inbox) -> None:
    thin = {"object": "v2.core.event", "id": "evt_t", "type": "v1.invoice.paid", "livemode": False}
    inbox.land_body(json.dumps(thin | {"created": "2026-11-01T01:00:00Z"}))
    inbox.land("invoice.paid", invoice("paid", lines=[line(currency="x")]))
    inbox.apply()
    again = apply_failed_again(inbox.ledger, inbox.catalog, None, now=NOW, run_id="run_2")
    assert (again.failed, again.applied) == (2, 0)
    with inbox.ledger.transaction() as connection:  # as if an earlier version had not been able to read it
        connection.execute(text("ALTER TABLE stripe_events DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE stripe_events SET body = replace(body, '\"x\"', '\"usd\"')"))
        connection.execute(text("ALTER TABLE stripe_events ENABLE TRIGGER USER"))
    again = apply_failed_again(inbox.ledger, inbox.catalog, None, now=NOW, run_id="run_3")
    assert (again.failed, again.applied, again.invoices) == (1, 1, 1)
    assert inbox.rows("invoices")[0].status == "paid"
    again = apply_failed_again(inbox.ledger, inbox.catalog, None, now=NOW, run_id="run_4")
    assert (again.failed, again.applied) == (1, 0)
    assert inbox.outcomes() == ["failed", "failed"]


def test_an_event_without_a_handler_is_kept_and_shown(inbox: Inbox) -> None:
    inbox.land("charge.succeeded", {"id": "ch_1", "object": "charge"})
    inbox.land("invoice.upcoming", {"object": "invoice"})
    result = inbox.apply()
    assert (inbox.outcomes(), result.unhandled) == (["unhandled"] * 2, 2)
    assert result.checks[0].passed


def test_only_events_up_to_the_given_one_are_handled(inbox: Inbox) -> None:
    for number in range(4):
        inbox.land("invoice.created", invoice(id=f"in_{number}"))
    waiting = pending_events(inbox.ledger, 0, 10)
    assert [(event_id, kind) for _, event_id, kind in waiting] == [
        (f"evt_{number}", "invoice.created") for number in range(1, 5)
    ]
    result = inbox.apply(through=waiting[1][0])
    assert (result.applied, result.last_inbox_id) == (2, waiting[1][0])
    assert pending_events(inbox.ledger, 0, 10) == waiting[2:]
    assert pending_events(inbox.ledger, waiting[2][0], 10) == waiting[3:]
    assert pending_events(inbox.ledger, 0, 1) == waiting[2:3]


def test_two_runs_at_once_handle_each_event_once(inbox: Inbox) -> None:
    for number in range(20):
        inbox.land("invoice.paid", invoice("paid", id=f"in_{number}"))
    with ThreadPoolExecutor(2) as pool:
        results = [future.result() for future in [pool.submit(inbox.apply) for _ in range(2)]]
    assert sum(result.applied for result in results) == 20
    assert inbox.outcomes() == ["applied"] * 20


def test_an_invoice_of_nobody_is_kept_until_its_customer_is_mapped(unmapped: Inbox) -> None:
    unmapped.land("customer.subscription.created", subscription("active"), END)
    unmapped.land("invoice.created", invoice(), END)
    unmapped.apply()
    assert [(row.tenant_id, row.status) for row in unmapped.rows("invoices")] == [(None, "draft")]
    assert unmapped.rows("tenant_standing") == []

    unmapped.map()
    result = unmapped.apply()
    assert (unmapped.rows("invoices")[0].tenant_id, result.standings) == ("globex", 1)
    (row,) = unmapped.rows("invoice_lines")
    assert (row.tenant_id, row.service) == ("globex", "requests")
    assert unmapped.standings() == ["current"]
    assert unmapped.apply().standings == 0


def test_a_customer_named_in_the_catalogue_needs_no_mapping(unmapped: Inbox) -> None:
    unmapped.land("invoice.paid", invoice("paid", customer="cus_named"))
    unmapped.apply()
    assert unmapped.rows("invoices")[0].tenant_id == "initech"
    assert unmapped.standings("initech") == ["current"]


def test_a_thin_event_without_stripe_fails_with_a_reason(inbox: Inbox) -> None:
    inbox.land_body(
        '{"object": "v2.core.event", "id": "evt_t", "type": "v1.invoice.paid", "livemode": false, '
        '"created": "2026-11-01T01:00:00Z", "related_object": {"id": "in_1", "type": "invoice"}}'
    )
    assert "no key is set" in inbox.apply().problems[0]


def test_a_credit_note_is_kept_in_the_audit_trail(inbox: Inbox) -> None:
    note = {"id": "cn_1", "object": "credit_note", "invoice": "in_1", "customer": "cus_1", "currency": "jpy"}
    inbox.land("credit_note.created", note | {"amount": 80, "status": "issued", "reason": "duplicate"})
    inbox.apply()
    (row,) = inbox.rows("audit_trail")
    assert (row.kind, row.subject, row.tenant_id) == ("credit_note.created", "cn_1", "globex")
    assert (row.detail["amount"], row.detail["invoice_id"], row.detail["event_id"]) == ("80", "in_1", "evt_1")


def test_usage_that_was_rejected_later_is_noted_by_its_identifier(inbox: Inbox) -> None:
    sample = {"error_message": "No such customer", "request": {"identifier": "cb1-abc"}}
    reason = {"error_count": 7, "error_types": [{"code": "meter_event_customer_not_found", "sample_errors": [sample]}]}
    report = {
        "object": "v2.core.event",
        "id": "evt_t",
        "type": "v1.billing.meter.error_report_triggered",
        "livemode": False,
        "created": "2026-11-01T01:00:00Z",
        "related_object": {"id": "mtr_1", "type": "billing.meter"},
    }
    inbox.land_body(json.dumps(report | {"data": {"reason": reason}}))
    inbox.land_body(
        json.dumps(report | {"id": "evt_u", "type": "v1.billing.meter.no_meter_found", "related_object": None})
    )
    result = inbox.apply()
    kept = [(row.kind, row.subject) for row in inbox.rows("audit_trail")]
    assert kept == [
        ("v1.billing.meter.error_report_triggered", "mtr_1"),
        ("usage_record.rejected", "cb1-abc"),
        ("v1.billing.meter.no_meter_found", "no meter"),
    ]
    (check,) = [check for check in result.checks if check.name == "stripe_took_everything"]
    assert (check.passed, set(check.numbers)) == (False, {"evt_t", "evt_u"})


def test_a_gateways_usage_record_is_understood(inbox: Inbox) -> None:
    inbox.land("usage_record.created", {"id": "mbur_1", "object": "usage_record", "quantity": 100})
    inbox.apply()
    (row,) = inbox.rows("audit_trail")
    assert (row.kind, row.subject, row.detail["quantity"]) == ("usage_record.created", "mbur_1", 100)


def test_an_invoice_that_cannot_be_finalised_is_an_alert(inbox: Inbox) -> None:
    inbox.land("invoice.finalization_failed", invoice(last_finalization_error={"message": "no tax location"}))
    (check,) = [check for check in inbox.apply().checks if check.name == "stripe_took_everything"]
    assert check.numbers == {"in_1": "can't be finalised: no tax location"}


class TestStanding:
    def test_follows_the_subscription(self, inbox: Inbox) -> None:
        for second, status in enumerate(["incomplete", "trialing", "active", "past_due", "unpaid", "active"]):
            inbox.land("customer.subscription.updated", subscription(status), END + second)
        inbox.land("customer.subscription.deleted", subscription("canceled"), END + 10)
        inbox.apply()
        assert inbox.standings() == ["trialing", "current", "past_due", "suspended", "current", "cancelled"]

    def test_an_older_event_does_not_bring_an_older_standing_back(self, inbox: Inbox) -> None:
        inbox.land("customer.subscription.updated", subscription("active"), LATER)
        inbox.land("customer.subscription.updated", subscription("past_due"), END)
        inbox.apply()
        assert (inbox.standings(), inbox.outcomes()) == (["current"], ["applied", "older"])

    def test_a_cancellation_counts_even_when_it_comes_late(self, inbox: Inbox) -> None:
        inbox.land("invoice.paid", invoice("paid"), LATER)
        inbox.land("customer.subscription.deleted", subscription("canceled"), END)
        inbox.land("customer.subscription.updated", subscription("active"), END)
        inbox.apply()
        assert inbox.standings() == ["current", "cancelled"]

    def test_paying_one_of_two_debts_is_not_enough(self, inbox: Inbox) -> None:
        for number in (1, 2):
            failed = invoice("open", id=f"in_{number}", attempted=True)
            inbox.land("invoice.payment_failed", failed, END + number)
        inbox.land("invoice.paid", invoice("paid", id="in_1"), LATER)
        inbox.apply()
        assert inbox.standings() == ["past_due"]
        inbox.land("invoice.voided", invoice("void", id="in_2"), LATER + 1)
        inbox.apply()
        assert inbox.standings() == ["past_due", "current"]

    def test_another_subscription_of_the_customer_is_not_the_tenants(self, inbox: Inbox) -> None:
        inbox.land("customer.subscription.deleted", subscription("canceled", id="sub_other"))
        inbox.apply()
        assert (inbox.standings(), inbox.outcomes()) == ([], ["unhandled"])


def test_tenants_that_share_a_customer_stand_as_the_one_that_pays(inbox: Inbox) -> None:
    with inbox.ledger.transaction() as connection:
        shared = "'initech', customer_id, subscription_id, currency, livemode, mapped_at, tenant_id"
        connection.execute(text(f"INSERT INTO stripe_customers SELECT {shared} FROM stripe_customers"))
        items = "'initech', service, subscription_item_id, price_id, meter_id, meter, backend, mapped_at"
        connection.execute(text(f"INSERT INTO stripe_items SELECT {items} FROM stripe_items"))
    inbox.land("invoice.payment_failed", invoice("open", attempted=True))
    assert inbox.apply().standings == 2
    assert (inbox.standings("globex"), inbox.standings("initech")) == (["past_due"], ["past_due"])
    assert [row.tenant_id for row in inbox.rows("invoices")] == ["globex"]
    assert {row.tenant_id for row in inbox.rows("invoice_lines")} == {"globex"}


def _events_read(inbox: Inbox, after: int) -> int:
    """How many rows PostgreSQL reads to find the events above ``after`` that nobody handled."""
    compiled = unhandled(after, None, 500).compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with inbox.ledger.transaction() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {compiled}").scalar()[0]["Plan"]

    def read(node: dict[str, Any]) -> int:
        own = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) if "Relation Name" in node else 0
        return int(own) * int(node["Actual Loops"]) + sum(read(inner) for inner in node.get("Plans", ()))

    return read(plan)


def test_handled_events_are_never_looked_at_again(inbox: Inbox) -> None:
    with inbox.ledger.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO stripe_events (event_id, type, livemode, created, body, headers, via, received_at)"
                " SELECT 'evt_old_' || n, 'charge.succeeded', false, now(), '{}', '{}', 'webhook', now()"
                " FROM generate_series(1, 20000) n"
            )
        )
        connection.execute(
            text("INSERT INTO stripe_events_handled SELECT id, 'unhandled', '', now(), 'r' FROM stripe_events")
        )
        connection.execute(text("ANALYZE stripe_events, stripe_events_handled"))
    assert _events_read(inbox, 0) > 10_000, "without a mark all of them"
    inbox.land("invoice.created", invoice("draft"))
    assert inbox.apply().applied == 1
    (mark,) = inbox.rows("stripe_events_mark")
    assert mark.through == inbox.rows("stripe_events", "id")[-1].id
    inbox.land("invoice.finalized", invoice("open"), LATER)
    assert _events_read(inbox, mark.through) < 10
    assert [kind for _, _, kind in pending_events(inbox.ledger, 0, 10)] == ["invoice.finalized"]
    assert inbox.apply().applied == 1


def test_the_mark_stays_before_an_event_that_waits_for_stripe(inbox: Inbox) -> None:
    inbox.api = StripeApi(SecretStr("sk_test_x"), "http://127.0.0.1:9", timeout=1)
    inbox.land("invoice.created", invoice("draft"))
    thin = {"id": "evt_thin", "object": "v2.core.event", "type": "v1.invoice.paid", "livemode": False}
    about = {"related_object": {"id": "in_1", "type": "invoice", "url": "/v1/invoices/in_1"}}
    inbox.land_body(json.dumps(thin | about | {"created": "2026-11-01T01:00:00Z"}))
    inbox.land("charge.succeeded", {"id": "ch_1", "object": "charge"})
    result = inbox.apply()
    assert (result.applied, result.waiting, result.unhandled) == (1, 1, 1)
    first, waiting, _ = [row.id for row in inbox.rows("stripe_events", "id")]
    assert [row.through for row in inbox.rows("stripe_events_mark")] == [first]
    assert [number for number, _, _ in pending_events(inbox.ledger, 0, 10)] == [waiting]


def test_failed_events_are_listed_and_tried_again_by_a_command(
    inbox: Inbox, ledger_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["webhooks", *arguments])

    (tmp_path / "clawbill.yaml").write_text(CATALOG)
    for name, value in {
        "CLAWBILL_DATABASE_URL": ledger_url, "CLAWBILL_CATALOG": str(tmp_path / "clawbill.yaml"),
        "CLAWBILL_STATE": str(tmp_path), "STRIPE_SECRET_KEY": "sk_test_x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run("failed").output == "No event has failed.\n"
    inbox.land("invoice.paid", invoice("paid", lines=[line(currency="x")]))
    inbox.apply()
    assert "evt_1" in run("failed").output
    assert "currency" in run("failed").output
    result = run("retry")
    assert (result.exit_code, "1 failed again" in result.output) == (1, True)
    with inbox.ledger.transaction() as connection:
        connection.execute(text("ALTER TABLE stripe_events DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE stripe_events SET body = replace(body, '\"x\"', '\"usd\"')"))
        connection.execute(text("ALTER TABLE stripe_events ENABLE TRIGGER USER"))
    result = run("retry")
    assert (result.exit_code, result.output) == (0, "1 events applied, 0 failed again, 0 wait for Stripe.\n")
    assert run("failed").output == "No event has failed.\n"
