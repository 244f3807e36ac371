"""Each cause is found by planting its fault in a clean month: right cause, place and cents, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from clawbill_pipeline.lake import Lake
from clawbill_pipeline.reconciliation import compare, lineage
from clawbill_pipeline.reconciliation.compare import Reconciled, reconcile
from clawbill_pipeline_tests.reconciliation.month import END, FINAL, NOW, PERIOD, Month, hour


def run(month: Month, now=NOW) -> Reconciled:
    return reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=now, run_id="test")


def found(reconciled: Reconciled) -> list[tuple]:
    return [
        (b.tenant_id, b.service, b.hour, b.step, b.cause, b.quantity, b.amount)
        for b in (*reconciled.breaks, *reconciled.waiting, *reconciled.explained)
    ]


def adds_up(reconciled: Reconciled, most: str = "0.0050005") -> None:
    """rated + breaks + rounding = invoiced, for every tenant and service that is invoiced; no cent is rounded off."""
    every = (*reconciled.breaks, *reconciled.waiting, *reconciled.explained)
    for step in reconciled.waterfall:
        if step.invoiced_amount is not None:
            moved = sum(
                b.amount
                for b in every
                if (b.tenant_id, b.service) == (step.tenant_id, step.service)
                and b.step in ("rated_sent", "sent_held", "held_invoiced")
                and b.cause != "currency"
            )
            assert step.rated_amount + moved + step.rounding == step.invoiced_amount
            assert abs(step.rounding) <= Decimal(most) * (100 if step.currency == "JPY" else 1)


def test_a_clean_month_has_no_break_and_shows_its_rounding(month: Month) -> None:
    month.clean()
    reconciled = run(month)
    assert found(reconciled) == []
    assert [check.passed for check in reconciled.checks] == [True, True]
    acme = next(s for s in reconciled.waterfall if (s.tenant_id, s.service) == ("acme", "tokens"))
    assert acme.metered_quantity == 6 * 1001 + 7 * 15
    assert acme.rated_amount == Decimal("9.1665")
    assert (acme.sent, acme.held_by_stripe) == (acme.rated_amount, acme.rated_amount)
    assert (acme.invoiced_amount, acme.paid_amount, acme.rounding) == (
        Decimal("9.17"),
        Decimal("9.17"),
        Decimal("0.0035"),
    )
    adds_up(reconciled)


def test_run_again_it_changes_no_row(month: Month) -> None:
    month.clean()
    month.run("DELETE FROM breaks")
    month.land([("new", "acme", "tokens", hour(1), 5)])
    first = run(month)
    before = month.fingerprint()
    again = run(month)
    assert month.fingerprint() == before
    assert (first.appended, again.appended) == (True, False)
    later = run(month, NOW + timedelta(hours=1))
    assert month.fingerprint() == before
    assert not later.appended


def test_not_metered(month: Month) -> None:
    month.clean()
    month.land([("late-1", "acme", "tokens", hour(1), 5)], landed_at=END)
    assert found(run(month)) == [
        ("acme", "tokens", hour(1), "landed_metered", "not_metered", Decimal(-5), Decimal("-0.0075"))
    ]


def test_an_event_that_landed_twice_is_no_break(month: Month) -> None:
    month.clean()
    month.land([("acme-tokens-0101", "acme", "tokens", hour(1) + timedelta(minutes=5), 1008)])
    assert found(run(month)) == []


def test_an_hour_within_the_metering_lag_is_pending(month: Month) -> None:
    month.clean()
    month.land([("late-1", "acme", "tokens", hour(1), 5)], landed_at=NOW - timedelta(minutes=9))
    reconciled = run(month)
    assert [b[4] for b in found(reconciled)] == ["pending"]
    assert reconciled.breaks == ()


def test_metered_without_events(month: Month) -> None:
    month.clean()
    for path in month.lake.root.rglob("hour=2026-10-01T03/*.parquet"):
        path.unlink()
    reconciled = run(month)
    assert {(b[0], b[1], b[2], b[4]) for b in found(reconciled)} == {
        ("acme", "tokens", hour(3), "not_landed"),
        ("globex", "requests", hour(3), "not_landed"),
        ("osaka", "tokens", hour(3), "not_landed"),
    }
    assert reconciled.checks[1].numbers["damaged_lake_files"] == 1


def test_a_damaged_lake_file_stops_nothing(month: Month) -> None:
    month.clean()
    for path in month.lake.root.rglob("hour=2026-10-01T03/*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    reconciled = run(month)
    assert {b[4] for b in found(reconciled)} == {"not_landed"}
    assert reconciled.checks[1].numbers["damaged_lake_files"] == 1


def test_metered_twice(month: Month) -> None:
    month.clean()
    month.run("ALTER TABLE metered_usage DISABLE TRIGGER USER")
    month.run("UPDATE metered_usage SET quantity = 2016, events = 2 WHERE tenant_id = 'acme' AND hour = :h", h=hour(1))
    twice = [b for b in found(run(month)) if b[3] == "landed_metered"]
    assert twice == [("acme", "tokens", hour(1), "landed_metered", "counted_twice", Decimal(1008), Decimal("1.512"))]


def test_metered_in_the_wrong_hour(month: Month) -> None:
    month.clean()
    month.run("ALTER TABLE metered_usage DISABLE TRIGGER USER")
    for number, change in ((1, -1000), (2, 1000)):
        month.run(
            "UPDATE metered_usage SET quantity = quantity + :q WHERE tenant_id = 'acme' AND service = 'tokens'"
            " AND hour = :h",
            h=hour(number), q=change,
        )  # fmt: skip
    moved = [b[2:6] for b in found(run(month)) if b[3] == "landed_metered"]
    assert moved == [
        (hour(1), "landed_metered", "wrong_hour", Decimal(-1000)),
        (hour(2), "landed_metered", "wrong_hour", Decimal(1000)),
    ]


def test_unmapped_tenant(month: Month) -> None:
    month.used("stranger", "tokens", hour(4), 70)
    month.clean()
    reconciled = run(month)
    assert found(reconciled) == [
        ("stranger", "tokens", hour(4), "metered_rated", "unmapped_tenant", Decimal(-70), Decimal(0))
    ]
    step = next(s for s in reconciled.waterfall if s.tenant_id == "stranger")
    assert (step.currency, step.metered_quantity, step.rated_amount, step.breaks) == (None, 70, None, 1)


def test_a_tenant_that_stripe_does_not_know(month: Month) -> None:
    month.clean()
    month.run("DELETE FROM stripe_items WHERE tenant_id = 'acme' AND service = 'requests'")
    month.run("ALTER TABLE usage_records DISABLE TRIGGER USER")
    month.run("DELETE FROM usage_records WHERE tenant_id = 'acme' AND service = 'requests'")
    month.run("DELETE FROM invoice_lines WHERE tenant_id = 'acme' AND service = 'requests'")
    month.run("UPDATE invoices SET amount_paid = amount_paid - 1 WHERE tenant_id = 'acme'")
    month.held("acme", "requests", 0)
    assert found(run(month)) == [
        ("acme", "requests", hour(2), "rated_sent", "unmapped_tenant", Decimal(-4), Decimal(-1))
    ]


@pytest.mark.parametrize(
    ("kind", "cause"), [("refused", "rating_refused"), ("retry", "not_rated"), (None, "not_rated")]
)
def test_not_rated(month: Month, kind: str | None, cause: str) -> None:
    missing = ("acme", "tokens", hour(3))
    month.land_usage()
    month.meter()
    month.rate(key for key in month.usage if key != missing)
    if kind:
        month.run(
            "INSERT INTO rating_failures"
            " VALUES (:h, 'acme', 'tokens', '', :h, 1, :kind, 'HTTP 422', '', 1, NULL, :h, 'r')",
            h=hour(3), kind=kind,
        )  # fmt: skip
    del month.usage[missing]
    month.map()
    month.send()
    month.hold()
    month.bill()
    reconciled = run(month)
    assert found(reconciled) == [("acme", "tokens", hour(3), "metered_rated", cause, Decimal(-1022), Decimal("-1.533"))]
    adds_up(reconciled)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"state": "planned"}, "pending"),
        ({"state": "unknown"}, "pending"),
        ({"state": "rejected", "error": "timestamp too old"}, "rejected"),
        ({"state": "planned", "parked": "older than 35 days"}, "parked"),
    ],
)
def test_not_delivered(month: Month, row: dict, cause: str) -> None:
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    open_one = ("acme", "tokens", hour(0))
    month.send(key for key in month.usage if key != open_one)
    month.send([open_one], **row)
    del month.usage[open_one]
    month.hold()
    month.bill()
    reconciled = run(month)
    assert found(reconciled) == [("acme", "tokens", hour(0), "rated_sent", cause, Decimal(-1001), Decimal("-1.5015"))]
    adds_up(reconciled)


def test_never_planned(month: Month) -> None:
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key != ("acme", "tokens", hour(0)))
    assert [b[3:] for b in found(run(month, END - timedelta(hours=9)))] == [
        ("rated_sent", "not_sent", Decimal(-1001), Decimal("-1.5015"))
    ]
    just_rated = hour(1) + timedelta(minutes=30)
    assert ("rated_sent", "pending") in [b[3:5] for b in found(run(month, just_rated))]


def test_lost_after_acknowledgement(month: Month) -> None:
    month.clean()
    units = month.totals()["acme", "tokens"]
    lost = month.units("acme", "tokens", Decimal(1015))
    month.held("acme", "tokens", units - lost)
    month.hold_hours("acme", "tokens", h2=0)
    month.run(
        "UPDATE invoice_lines SET quantity = quantity - :q, amount = 7.64 WHERE line_id = 'il_acme_tokens'", q=lost
    )
    month.run("UPDATE invoices SET amount_paid = amount_paid - 1.53 WHERE tenant_id = 'acme'")
    reconciled = run(month)
    assert found(reconciled) == [
        ("acme", "tokens", hour(2), "sent_held", "lost_after_acknowledgement", Decimal(-1015), Decimal("-1.5225"))
    ]
    adds_up(reconciled)


def test_what_settles_is_pending_until_the_lag_is_over(month: Month) -> None:
    last = ("acme", "tokens", hour(5))
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key != last)
    month.send([last], settled_at=hour(7))
    month.hold()
    month.held("acme", "tokens", month.totals()["acme", "tokens"] - month.units(*last[:2], month.usage[last]))
    month.hold_hours("acme", "tokens", h5=0)
    assert [b[4] for b in found(run(month, hour(7) + timedelta(minutes=9)))] == ["pending"]
    assert [b[2:5] for b in found(run(month, hour(7) + timedelta(minutes=10)))] == [
        (hour(5), "sent_held", "lost_after_acknowledgement")
    ]


def test_unknown_usage_at_stripe(month: Month) -> None:
    month.clean()
    month.held("acme", "tokens", month.totals()["acme", "tokens"] + 3_000_000)
    month.hold_hours("acme", "tokens", h100=3_000_000)
    month.run("UPDATE invoice_lines SET quantity = quantity + 3000000, amount = 12.17 WHERE line_id = 'il_acme_tokens'")
    month.run("UPDATE invoices SET amount_paid = amount_paid + 3 WHERE tenant_id = 'acme'")
    reconciled = run(month)
    assert found(reconciled) == [
        ("acme", "tokens", hour(100), "sent_held", "unknown_usage_at_stripe", Decimal(2000), Decimal(3))
    ]
    adds_up(reconciled)


def test_counted_twice_at_stripe(month: Month) -> None:
    month.clean()
    once = month.units("acme", "tokens", Decimal(1008))
    month.held("acme", "tokens", month.totals()["acme", "tokens"] + once)
    month.hold_hours("acme", "tokens", h1=2 * once)
    month.run("DELETE FROM invoice_lines WHERE tenant_id = 'acme'")
    month.run("DELETE FROM invoices WHERE tenant_id = 'acme'")
    twice = [b for b in found(run(month)) if b[3] == "sent_held"]
    assert twice == [("acme", "tokens", hour(1), "sent_held", "counted_twice", Decimal(1008), Decimal("1.512"))]


def test_wrong_hour(month: Month) -> None:
    month.clean()
    moved = month.units("acme", "tokens", Decimal(1008))
    month.held("acme", "tokens", month.totals()["acme", "tokens"] - 1)
    stays = month.units("acme", "tokens", Decimal(1001))
    month.hold_hours("acme", "tokens", h1=0, h50=moved, h0=stays - 1)
    reconciled = run(month)
    assert {(b[2], b[4], b[6]) for b in found(reconciled) if b[3] == "sent_held"} == {
        (hour(0), "lost_after_acknowledgement", Decimal("-0.000001")),
        (hour(1), "wrong_hour", Decimal("-1.512")),
        (hour(50), "wrong_hour", Decimal("1.512")),
    }


def test_late_after_finalisation(month: Month) -> None:
    late = ("acme", "tokens", hour(5))
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key != late)
    month.send([late], settled_at=FINAL + timedelta(hours=1))
    month.hold()
    quantity = month.usage.pop(late)
    month.bill()
    month.usage[late] = quantity
    reconciled = run(month)
    assert found(reconciled) == [
        ("acme", "tokens", hour(5), "held_invoiced", "late_after_finalisation", Decimal(-1036), Decimal("-1.554"))
    ]
    adds_up(reconciled)


def test_a_draft_that_does_not_hold_it_yet_is_pending(month: Month) -> None:
    month.clean()
    month.run("UPDATE invoices SET status = 'draft', finalized_at = NULL WHERE tenant_id = 'acme'")
    month.run("UPDATE invoice_lines SET quantity = 0, amount = 0 WHERE line_id = 'il_acme_tokens'")
    reconciled = run(month)
    assert [b[:5] for b in found(reconciled)] == [("acme", "tokens", None, "held_invoiced", "pending")]
    assert next(s for s in reconciled.waterfall if s.tenant_id == "acme").paid_amount is None
    adds_up(reconciled)


def test_price_differs(month: Month) -> None:
    month.clean()
    month.run("UPDATE invoice_lines SET amount = amount + 0.01 WHERE line_id = 'il_globex_requests'")
    month.run("UPDATE invoices SET amount_paid = amount_paid + 0.01 WHERE tenant_id = 'globex'")
    reconciled = run(month)
    assert found(reconciled) == [
        ("globex", "requests", None, "held_invoiced", "price_differs", Decimal(0), Decimal("0.01"))
    ]
    adds_up(reconciled)


def test_lost_usage_that_stripe_prices(month: Month) -> None:
    month.clean()
    month.held("globex", "requests", month.totals()["globex", "requests"] - 425)
    month.hold_hours("globex", "requests", h1=0)
    month.run("UPDATE invoice_lines SET quantity = quantity - 425, amount = 7.56 WHERE line_id = 'il_globex_requests'")
    month.run("UPDATE invoices SET amount_paid = 7.56 WHERE tenant_id = 'globex'")
    reconciled = run(month)
    assert found(reconciled) == [
        ("globex", "requests", hour(1), "sent_held", "lost_after_acknowledgement", Decimal("-4.25"), Decimal("-1.0625"))
    ]
    adds_up(reconciled)


def test_never_invoiced(month: Month) -> None:
    month.clean()
    month.run("DELETE FROM invoice_lines WHERE line_id = 'il_acme_requests'")
    month.run("UPDATE invoices SET amount_paid = amount_paid - 1 WHERE tenant_id = 'acme'")
    assert found(run(month)) == [("acme", "requests", None, "held_invoiced", "not_invoiced", Decimal(-4), Decimal(-1))]
    assert found(run(month, END + timedelta(hours=1))) == []


def test_another_currency(month: Month) -> None:
    month.clean()
    month.run("UPDATE invoice_lines SET currency = 'EUR' WHERE line_id = 'il_acme_requests'")
    reconciled = run(month)
    assert found(reconciled) == [("acme", "requests", None, "held_invoiced", "currency", Decimal(0), Decimal(1))]
    assert reconciled.breaks[0].currency == "EUR"


def test_discount_and_credit_explain_a_payment(month: Month) -> None:
    month.clean()
    month.run(
        "UPDATE invoice_lines SET object = CAST(:object AS jsonb) WHERE line_id = 'il_acme_tokens'",
        object='{"discount_amounts": [{"amount": 117}], "pretax_credit_amounts": [{"amount": 117, "type": "discount"},'
        ' {"amount": 100, "type": "credit_balance_transaction"}],'
        ' "taxes": [{"amount": 133, "tax_behavior": "exclusive"}]}',
    )
    month.run("UPDATE invoices SET total = 9.33, amount_paid = 9.33 WHERE tenant_id = 'acme'")
    reconciled = run(month)
    assert reconciled.breaks == ()
    assert [(b.cause, b.amount) for b in reconciled.explained] == [
        ("tax", Decimal("1.33")),
        ("credit", Decimal(-1)),
        ("discount", Decimal("-1.17")),
    ]
    tokens = next(s for s in reconciled.waterfall if (s.tenant_id, s.service) == ("acme", "tokens"))
    assert (tokens.invoiced_amount, tokens.paid_amount, tokens.breaks) == (Decimal("9.17"), Decimal(7), 0)


def test_quarantined_lines_of_a_known_tenant(month: Month) -> None:
    month.clean()
    (landing,) = month.run("SELECT min(id) AS id FROM landings")
    for place, tenant in (("line 3, byte 70", "acme"), ("line 9, byte 800", "acme"), ("line 10, byte 900", None)):
        month.run(
            "INSERT INTO quarantine"
            " (source, uri, place, reason, field, detail, raw, tenant_id, landing_id, quarantined_at)"
            " VALUES ('logs', 'usage-1.jsonl', :place, 'not_a_number', 'quantity', 'd', '{}', :t, :id, :at)",
            place=place, t=tenant, id=landing.id, at=NOW + timedelta(days=99),
        )  # fmt: skip
    reconciled = run(month)
    assert found(reconciled) == [("acme", "-", None, "source_landed", "quarantined", Decimal(0), Decimal(0))]
    assert reconciled.breaks[0].detail.startswith("2 lines: not_a_number (quantity); the first is usage-1.jsonl line 3")
    assert next(s for s in reconciled.waterfall if s.service == "-").breaks == 1


def test_a_break_that_is_gone_closes_and_its_history_stays(month: Month) -> None:
    month.clean()
    month.held("acme", "tokens", month.totals()["acme", "tokens"] - 1000)
    opened = run(month)
    month.held("acme", "tokens", month.totals()["acme", "tokens"])
    closed = run(month, NOW + timedelta(hours=1))
    assert (opened.changes.opened, closed.changes.closed) == (len(found(opened)), len(found(opened)))
    (row, *_) = month.run("SELECT * FROM breaks ORDER BY id")
    assert (row.first_seen, row.last_seen, row.closed_at) == (NOW, NOW, NOW + timedelta(hours=1))


def test_errors_of_opposite_sign_do_not_cancel(month: Month) -> None:
    """A peer's reconciler sums all customers."""
    month.clean()
    for tenant, service, units in (("acme", "tokens", -500), ("globex", "requests", 500)):
        month.held(tenant, service, month.totals()[tenant, service] + units)
    causes = {(b[0], b[4]) for b in found(run(month)) if b[3] == "sent_held"}
    assert causes == {("acme", "lost_after_acknowledgement"), ("globex", "unknown_usage_at_stripe")}


def test_what_no_rule_explains_is_said(month: Month) -> None:
    month.clean()
    month.run(
        "UPDATE invoice_lines SET quantity = quantity - 5000000, amount = amount - 5 WHERE line_id = 'il_acme_tokens'"
    )
    month.run("UPDATE invoices SET amount_paid = amount_paid - 5 WHERE tenant_id = 'acme'")
    reconciled = run(month)
    assert [(b[4], b[6]) for b in found(reconciled)] == [("unexplained", Decimal(-5))]
    assert not reconciled.checks[0].passed
    adds_up(reconciled)


def test_the_memory_limit_of_the_lake_is_that_of_the_engine(month: Month, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[str] = []
    for module in (compare, lineage):

        @contextmanager
        def noted(_open: Any = module.duck, **given: Any) -> Iterator[Any]:
            with _open(**given) as db:
                limits.append(db.sql("SELECT current_setting('memory_limit')").fetchall()[0][0])
                yield db

        monkeypatch.setattr(module, "duck", noted)
    month.clean()
    month.lake = Lake(month.lake.root, "100MB")
    assert run(month).breaks == ()
    assert lineage.explain(month.ledger, month.lake, month.catalog, "il_acme_tokens").event_count == 6
    assert limits == ["95.3 MiB", "95.3 MiB"]
