"""Two tenants on one Stripe customer: planned by the real planning, compared as a sum, each with its part."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.ledger.waterfall import Step, waterfall
from clawbill_pipeline.reconciliation.compare import Reconciled, reconcile
from clawbill_pipeline.reconciliation.lineage import explain
from clawbill_pipeline.reporting.day_report import read_day
from clawbill_pipeline.reporting.focus import focus_csv
from clawbill_pipeline_tests.reconciliation.month import FINAL, NOW, PERIOD, Month, hour

D = Decimal


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    """acme pays for globex as well; their hours overlap, and their amounts have parts of a millionth."""
    month = Month.at(ledger_url, tmp_path)
    month.used("acme", "tokens", hour(1), "1000.0003")
    month.used("acme", "tokens", hour(2), "2000")
    month.used("globex", "tokens", hour(2), "500.0002")
    month.used("globex", "tokens", hour(3), "70")
    month.used("globex", "requests", hour(3), "12.25")
    month.used("osaka", "tokens", hour(3), "10")
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.run("DELETE FROM stripe_items WHERE tenant_id = 'globex'")
    month.run("UPDATE stripe_customers SET customer_id = 'cus_acme', subscription_id = 'sub_acme', payer_id = 'acme'"
              " WHERE tenant_id = 'globex'")  # fmt: skip
    month.run("UPDATE stripe_items SET backend = 'hour_meter'")
    month.run("INSERT INTO stripe_items SELECT 'globex', service, subscription_item_id, price_id, meter_id, meter,"
              " backend, mapped_at FROM stripe_items WHERE tenant_id = 'acme'")  # fmt: skip
    sent(month)
    yield month
    month.ledger.dispose()


def sent(month: Month, at: timedelta = timedelta(0)) -> None:
    """Plans what is rated and has it acknowledged."""
    plan(month.ledger, month.catalog, hours=None, now=FINAL, run_id="test")
    month.run("UPDATE usage_records SET state = 'delivered', settled_at = hour + interval '1 hour' + :at"
              " WHERE state <> 'delivered'", at=at)  # fmt: skip


#: 3,570.0005 tokens at 0.0015, to the millionth; in hundredths of a request.
TOKENS, REQUESTS = D(5_355_001), D(1225)


def billed(month: Month, tokens: Decimal = TOKENS, amount: str = "5.36", **invoice: object) -> Reconciled:
    month.held("acme", "tokens", tokens)
    month.held("acme", "requests", REQUESTS)
    month.held("osaka", "tokens", 2_000_000)
    month.invoice("acme", {"tokens": (tokens, amount), "requests": (REQUESTS, "3.06")}, **invoice)  # type: ignore[arg-type]
    month.invoice("osaka", {"tokens": (2_000_000, 2)})
    return reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="test")


def steps(result: Reconciled) -> dict[tuple[str, str], Step]:
    return {(step.tenant_id, step.service): step for step in result.waterfall}


def test_one_record_a_window_with_each_tenants_part(month: Month) -> None:
    rows = month.run("SELECT hour, tenant_id, units, parts FROM usage_records WHERE meter LIKE '%tokens'"
                     " AND customer_id = 'cus_acme' ORDER BY hour")  # fmt: skip
    assert [(row.hour, row.tenant_id) for row in rows] == [(hour(n), "acme") for n in (1, 2, 3)]
    assert [row.parts for row in rows] == [
        None, {"acme": "3000000", "globex": "750000.3"}, {"acme": "0", "globex": "105000"},
    ]  # fmt: skip
    assert sum(row.units for row in rows) == TOKENS
    parts = month.run("SELECT tenant_id, sum(units) AS units, sum(exact_units) AS exact FROM usage_record_parts"
                      " WHERE meter LIKE '%tokens' AND customer_id = 'cus_acme' GROUP BY 1 ORDER BY 1")  # fmt: skip
    assert [(row.tenant_id, row.units, row.exact) for row in parts] == [
        ("acme", D("4500000.7"), D("4500000.45")), ("globex", D("855000.3"), D("855000.3")),
    ]  # fmt: skip


def test_a_shared_bill_that_is_right_has_no_break_and_shows_every_part(month: Month) -> None:
    result = billed(month)
    assert (result.breaks, result.waiting) == ((), ())
    found = steps(result)
    acme, globex = found["acme", "tokens"], found["globex", "tokens"]
    assert (acme.sent, globex.sent) == (D("4.5000007"), D("0.8550003"))
    assert (acme.held_by_stripe, globex.held_by_stripe) == (acme.sent, globex.sent)
    assert globex.invoiced_amount == globex.rated_amount == globex.paid_amount == D("0.8550003")
    assert acme.invoiced_amount is not None
    assert acme.invoiced_amount + globex.invoiced_amount == D("5.36")
    for step in found.values():
        assert step.rated_amount is not None
        assert step.rated_amount + (step.rounding or 0) == step.invoiced_amount == step.paid_amount
    assert found["globex", "requests"].invoiced_amount == D("3.0625")
    assert found["acme", "requests"].invoiced_amount == D("-0.0025")  # the rounding alone


def test_one_tenants_part_is_the_same_when_asked_for_alone(month: Month) -> None:
    every = billed(month).waterfall
    for tenant in ("acme", "globex"):
        with month.ledger.transaction() as connection:
            alone = waterfall(connection, month.catalog, PERIOD, tenant)
        assert alone == [step for step in every if step.tenant_id == tenant]


def test_what_stripe_lost_of_a_shared_bill_is_the_payers_and_names_all(month: Month) -> None:
    result = billed(month, TOKENS - 1_000_000, "4.36")
    (found,) = result.breaks
    assert (found.tenant_id, found.step, found.cause) == ("acme", "sent_held", "lost_after_acknowledgement")
    assert found.amount == -1
    assert "acme 4.50000045 USD, globex 0.8550003 USD" in found.detail
    parts = steps(result)
    assert parts["globex", "tokens"].held_by_stripe == parts["globex", "tokens"].sent
    acme = parts["acme", "tokens"]
    assert acme.rated_amount is not None
    assert acme.rounding is not None
    assert acme.rated_amount + found.amount + acme.rounding == acme.invoiced_amount


def test_differences_of_two_tenants_do_not_cancel(month: Month) -> None:
    """What globex used was planned as acme's: Stripe's sum is right, and both are told."""
    month.run("ALTER TABLE usage_records DISABLE TRIGGER append_only")
    month.run("""UPDATE usage_records SET parts = '{"acme": "3000100", "globex": "749900.3"}'
                 WHERE hour = :hour AND parts IS NOT NULL""", hour=hour(2))  # fmt: skip
    found = {(b.tenant_id, b.step, b.cause): b.amount for b in billed(month).breaks}
    assert found == {
        ("acme", "rated_sent", "not_sent"): D("0.0001"),
        ("globex", "rated_sent", "not_sent"): D("-0.0001"),
    }


def test_one_tenants_late_usage_is_its_own_break(month: Month) -> None:
    month.usage["globex", "tokens", hour(3)] = D(170)
    month.meter(2, [("globex", "tokens", hour(3))])
    month.rate([("globex", "tokens", hour(3))], 2, at=FINAL + timedelta(hours=1))
    result = billed(month)
    assert ("globex", "rated_sent", "late_after_finalisation") in {
        (b.tenant_id, b.step, b.cause) for b in result.breaks
    }
    assert {b.tenant_id for b in result.breaks if b.step == "rated_sent"} == {"globex"}
    globex = steps(result)["globex", "tokens"]
    assert (globex.rated_amount, globex.invoiced_amount) == (D("1.0050003"), D("0.8550003"))


def test_a_parked_record_is_a_break_of_each_tenant_that_it_holds_up(month: Month) -> None:
    month.run("UPDATE usage_records SET state = 'rejected', settled_at = NULL, parked = 'no_such_customer'"
              " WHERE hour = :hour AND parts IS NOT NULL AND meter LIKE '%tokens'", hour=hour(2))  # fmt: skip
    result = billed(month, TOKENS - 3_750_000, "1.61")
    parked = {b.tenant_id: b.amount for b in result.breaks if b.cause == "parked"}
    assert set(parked) == {"acme", "globex"}
    assert parked["globex"] == D("-0.7500003")


def test_a_tenant_that_was_not_rated_does_not_hold_up_the_other(month: Month) -> None:
    """Isolation: what is missing of globex is its own break; acme's usage is sent, and globex's once it is there."""
    month.usage["globex", "tokens", hour(5)] = D(40)
    month.usage["acme", "tokens", hour(5)] = D(30)
    keys = [("globex", "tokens", hour(5)), ("acme", "tokens", hour(5))]
    month.land((f"late-{t}", t, s, h, month.usage[t, s, h]) for t, s, h in keys)
    month.meter(1, keys)
    month.rate(keys[1:])
    sent(month)
    (row,) = month.run("SELECT units, parts FROM usage_records WHERE hour = :hour", hour=hour(5))
    assert (row.units, row.parts) == (45_000, None)
    month.rate(keys[:1])
    sent(month)
    *_, row = month.run("SELECT units, parts FROM usage_records WHERE hour = :hour ORDER BY revision", hour=hour(5))
    assert (row.units, row.parts) == (105_000, {"acme": "45000", "globex": "60000"})


def test_a_shared_line_leads_to_the_events_of_all(month: Month) -> None:
    billed(month)
    found = explain(month.ledger, month.lake, month.catalog, "il_acme_tokens")
    assert found.parts == {"acme": D("4.50000045"), "globex": D("0.8550003")}
    assert found.rated_amount == D("5.35500075")
    assert found.derived_amount == D("5.36")
    assert [(event.tenant_id, event.quantity) for event in found.events] == [
        ("acme", D("1000.0003")), ("acme", D(2000)), ("globex", D("500.0002")), ("globex", D(70)),
    ]  # fmt: skip
    assert [(window.tenant_id, window.window_start) for window in found.windows] == [
        ("acme", hour(1)), ("acme", hour(2)), ("globex", hour(2)), ("globex", hour(3)),
    ]  # fmt: skip
    assert all(check.passed for check in found.checks)


def test_the_days_report_and_the_export_have_each_ones_part(month: Month) -> None:
    month.held("acme", "tokens", TOKENS - 1_000_000)
    month.held("acme", "tokens", 2_750_000, hour(2))
    billed(month, TOKENS - 1_000_000, "4.36")
    with month.ledger.transaction() as connection:
        report = read_day(connection, hour(0).date())
        rows = b"".join(focus_csv(connection, month.catalog, PERIOD)).decode().splitlines()
    held = {(each.tenant_id, each.hour): each.held_units for each in report.hours if each.service == "tokens"}
    assert held["globex", hour(2)] == D("750000.3")
    assert held["acme", hour(2)] == D("1999999.7")
    exported = list(csv.DictReader(rows))
    assert {row["InvoiceId"] for row in exported if row["BillingAccountId"] == "globex"} == {"in_acme"}
