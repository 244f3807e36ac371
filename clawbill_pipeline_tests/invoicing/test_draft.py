"""Comparing a draft with the ledger: what is wrong is found, and what is as it should be cries no wolf."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from clawbill_pipeline.catalog.closing import Closing
from clawbill_pipeline.invoicing.draft import Booked, Comparison, Draft, DraftLine, compare_draft, decide, windows
from clawbill_pipeline.money import MICRO
from clawbill_pipeline_tests.invoicing.objects import END, START

FROM, TO = datetime.fromtimestamp(START, UTC), datetime.fromtimestamp(END, UTC)
MIDDLE = FROM + (TO - FROM) / 2
AGREED = Booked(
    "requests", FROM, TO, MICRO, planned=Decimal(12_340_000), delivered=Decimal(12_340_000), held=Decimal(12_340_000),
    held_settled=True, rated_quantity=Decimal(1234), rated_amount=Decimal("12.34"),
)  # fmt: skip


def line(amount: str = "12.34", quantity: int | None = 12_340_000, **changes: Any) -> DraftLine:
    given = DraftLine("il_1", "requests", Decimal(quantity or 0), Decimal(amount), "USD", FROM, TO, {})
    return replace(given, **changes)


def draft(*lines: DraftLine, **changes: Any) -> Draft:
    total = sum((each.amount for each in lines), Decimal(0))
    given = Draft("in_1", "globex", "USD", total, total, TO + timedelta(hours=1), {}, lines)
    return replace(given, **changes)


def compare(given: Draft, *booked: Booked) -> list[tuple[str, str]]:
    return [(each.service, each.cause) for each in compare_draft(given, booked).differences]


def test_a_draft_that_agrees() -> None:
    assert compare(draft(line()), AGREED) == []


def test_an_unused_service_needs_no_line() -> None:
    unused = replace(
        AGREED, planned=Decimal(0), delivered=Decimal(0), held=None, rated_quantity=Decimal(0), rated_amount=Decimal(0)
    )
    assert compare(draft(), unused) == []


def test_a_reading_of_the_morning_says_nothing_against_a_line_that_bills_everything() -> None:
    """The reconciliation read the meter before the day's usage; nobody asks again where the line is complete."""
    assert compare(draft(line()), replace(AGREED, held=Decimal(12_000_000), held_settled=False)) == []


@pytest.mark.parametrize(
    ("booked", "lines", "cause"),
    [
        ({"held": None}, [line(quantity=12_339_999)], "unexplained"),
        ({"held": None}, [], "not_invoiced"),
        ({"held": Decimal(12_000_000)}, [line()], "lost_after_acknowledgement"),
        ({"held": Decimal(13_000_000)}, [line()], "unknown_usage_at_stripe"),
        ({"held": Decimal(12_000_000), "held_settled": False}, [line("12.00", 12_000_000)], "pending"),
        ({"delivered": Decimal(12_000_000), "held": Decimal(12_000_000)}, [line()], "pending"),
        ({"delivered": Decimal(12_000_000), "held": None, "open_causes": {"parked": 1}}, [line()], "parked"),
        ({"open_causes": {"not_metered": 2}}, [line()], "not_metered"),
        ({"open_causes": {"not_rated": 2}, "rated_amount": Decimal(1)}, [line("1", 12_340_000)], "not_rated"),
        ({"rated_amount": Decimal("12.35")}, [line("12.35")], "not_sent"),
        ({}, [line("12.35")], "price_differs"),
        ({}, [line(), line("0.02", 0, line_id="il_2")], "price_differs"),
    ],
)
def test_what_is_wrong_is_found(booked: dict, lines: list[DraftLine], cause: str) -> None:
    assert compare(draft(*lines), replace(AGREED, **booked)) == [("requests", cause)]


def test_a_draft_that_is_behind_what_stripe_holds_is_counted_again_when_it_is_final() -> None:
    assert compare(draft(line("12.00", 12_000_000)), AGREED) == []
    assert compare(draft(), AGREED) == []


def test_the_one_rounding_is_no_difference() -> None:
    exact = replace(
        AGREED,
        planned=Decimal(12_344_999),
        delivered=Decimal(12_344_999),
        held=None,
        rated_amount=Decimal("12.3449994"),
    )
    assert compare(draft(line("12.34", 12_344_999)), exact) == []
    assert compare(draft(line("12.36", 12_344_999)), exact) == [("requests", "price_differs")]


def test_tiers_make_several_lines_of_one_window() -> None:
    tiers = [line("10.00", 10_000_000), line("2.34", 2_340_000, line_id="il_2")]
    assert compare(draft(*tiers), AGREED) == []


def test_a_plan_change_makes_several_windows_of_one_service() -> None:
    first, second = line("2.34", 2_340_000, period_end=MIDDLE), line("10.00", 10_000_000, period_start=MIDDLE)
    halves = [
        replace(
            AGREED,
            end=MIDDLE,
            planned=Decimal(2_340_000),
            delivered=Decimal(2_340_000),
            held=None,
            rated_amount=Decimal("2.34"),
        ),
        replace(
            AGREED,
            start=MIDDLE,
            planned=Decimal(10_000_000),
            delivered=Decimal(10_000_000),
            held=None,
            rated_amount=Decimal(10),
        ),
    ]
    given = draft(first, second)
    assert set(windows(given)) == {("requests", FROM, MIDDLE), ("requests", MIDDLE, TO)}
    assert compare(given, *halves) == []


def test_two_services_with_opposite_errors_do_not_cancel_out() -> None:
    """PEERS.md, case 16."""
    lines = [line("12.35", 12_350_000), line("12.33", 12_330_000, line_id="il_2", service="tokens")]
    booked = [replace(AGREED, held=None), replace(AGREED, service="tokens", held=None)]
    assert compare(draft(*lines), *booked) == [("requests", "unexplained"), ("tokens", "unexplained")]


@pytest.mark.parametrize(
    ("currency", "amount", "exact"), [("JPY", "80", "80.4"), ("ISK", "5", "5.49"), ("KWD", "1.234", "1.2344")]
)
def test_other_minor_units(currency: str, amount: str, exact: str) -> None:
    """PEERS.md, case 11."""
    units = Decimal(exact) * MICRO
    booked = replace(AGREED, planned=units, delivered=units, held=None, rated_amount=Decimal(exact))
    given = draft(line(amount, int(units), currency=currency), currency=currency)
    assert compare(given, booked) == []
    step = {"JPY": "1", "ISK": "1", "KWD": "0.001"}[currency]
    wrong = draft(line(str(Decimal(amount) - Decimal(step)), int(units), currency=currency), currency=currency)
    assert compare(wrong, booked) == [("requests", "price_differs")]


def test_billed_by_quantity() -> None:
    booked = replace(
        AGREED,
        scale=Decimal(1000),
        by_amount=False,
        planned=Decimal(1_234_000),
        delivered=Decimal(1_234_000),
        held=None,
    )
    assert compare(draft(line("12.34", 1_234_000)), booked) == []
    assert compare(draft(line("12.34", 1_234_000)), replace(booked, rated_quantity=Decimal(1235))) == [
        ("requests", "not_sent")
    ]


class TestApart:
    """Discounts, credit, tax, prorations and fees are on the invoice beside usage."""

    def test_are_taken_apart(self) -> None:
        obj = {
            "total_discount_amounts": [{"amount": 100}],
            "total_pretax_credit_amounts": [
                {"amount": 100, "type": "discount"},
                {"amount": 234, "type": "credit_balance_transaction"},
            ],
            "total_taxes": [{"amount": 190, "tax_behavior": "exclusive"}, {"amount": 50, "tax_behavior": "inclusive"}],
            "amount_shipping": 500,
        }
        fee = line("20.00", 1, line_id="il_fee", service=None)
        given = draft(line(), fee, object=obj, total=Decimal("35.90"))
        found = compare_draft(given, [AGREED])
        assert found.differences == ()
        assert {name: str(amount) for name, amount in found.apart.items()} == {
            "discounts": "1.00", "credits": "2.34", "tax": "1.90", "shipping": "5.00", "other_lines": "20.00",
        }  # fmt: skip

    def test_a_total_that_they_do_not_explain_is_a_difference(self) -> None:
        assert compare(draft(line(), total=Decimal("12.00")), AGREED) == [("-", "unexplained")]
        assert compare(draft(line(), subtotal=Decimal("12.00"), total=Decimal("12.00")), AGREED) == [
            ("-", "unexplained")
        ]

    def test_a_proration_is_about_time_not_usage(self) -> None:
        """PEERS.md, case 13: whatever its amount, it is no usage that the ledger should have."""
        parent = {"subscription_item_details": {"subscription_item": "si_1", "proration": True}}
        credit = line("-6.17", 1, line_id="il_2", object={"parent": parent}, period_start=MIDDLE)
        assert compare(draft(line(), credit), AGREED) == []

    def test_another_currency_is_a_difference(self) -> None:
        euro = line("1.00", 1, line_id="il_2", service=None, currency="EUR")
        assert compare(draft(line(), euro), AGREED) == [("-", "currency")]


class TestDecision:
    CLOSING = Closing(margin_minutes=10)

    @pytest.mark.parametrize(
        ("causes", "minutes_left", "on_undecided", "expected"),
        [
            ([], 60, "hold", "release"),
            (["pending"], 60, "hold", "wait"),
            (["pending", "not_metered"], 11, "hold", "wait"),
            (["pending"], 10, "hold", "hold"),
            (["pending"], 10, "finalize", "release"),
            (["price_differs"], 60, "finalize", "hold"),
            (["pending", "price_differs"], 5, "finalize", "hold"),
            (["pending"], None, "finalize", "wait"),
        ],
    )
    def test_follows_the_comparison_and_the_time_left(
        self, causes: list[str], minutes_left: int | None, on_undecided: Any, expected: str
    ) -> None:
        found = compare_draft(draft(line()), [replace(AGREED, open_causes=dict.fromkeys(causes, 1))])
        assert [each.cause for each in found.differences] == causes
        finalizes_at = None if minutes_left is None else TO + timedelta(minutes=minutes_left)
        closing = Closing(margin_minutes=10, on_undecided=on_undecided)
        decision, why = decide(draft(line(), finalizes_at=finalizes_at), found, TO, closing)
        assert decision == expected
        assert all(cause in why for cause in causes)

    def test_nothing_that_differs_agrees(self) -> None:
        assert Comparison("in_1", "globex", (), {}).agrees
