"""What may be done about a break, and by whom: decided without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.catalog.correcting import Correcting
from clawbill_pipeline.correcting import REMEDIES, OpenBreak, decide
from clawbill_pipeline.delivery.redelivery import Acknowledged, NotSafe, lost_of
from clawbill_pipeline.ledger.causes import CAUSES

T0 = datetime(2026, 3, 1, tzinfo=UTC)
LIMITS = Correcting(automatic_below=Decimal(10), automatic_below_by_currency={"JPY": Decimal(1500)})


def broken(number: int, cause: str, amount: str = "-1", **more: Any) -> OpenBreak:
    given = {"tenant_id": "acme", "service": "tokens", "hour": T0, "currency": "USD", "quantity": Decimal(-1), **more}
    return OpenBreak(number, "2026-03", cause=cause, amount=Decimal(amount), **given)


def test_every_remedy_is_of_a_known_cause() -> None:
    assert set(REMEDIES) <= set(CAUSES)


@pytest.mark.parametrize(
    ("amount", "currency", "verdict"),
    [
        ("-9.99", "USD", "automatic"),
        ("10", "USD", "waits"),
        ("-10", "EUR", "waits"),
        ("-1499", "JPY", "automatic"),
        ("1500", "JPY", "waits"),
    ],
)
def test_the_limit_is_of_the_currency_and_of_both_signs(amount: str, currency: str, verdict: str) -> None:
    (action,) = decide([broken(1, "rejected", amount, currency=currency)], LIMITS)
    assert (action.remedy, action.verdict) == ("redeliver", verdict)
    (approved,) = decide([broken(1, "rejected", amount, currency=currency)], LIMITS, {1})
    assert approved.verdict == "approved"


def test_an_action_is_judged_by_all_that_it_does() -> None:
    """An hour is metered for everybody in it: many small breaks are one large action, opposite ones do not cancel."""
    small = [broken(n, "not_metered", "6" if n % 2 else "-6", tenant_id=f"t{n}") for n in range(2)]
    (action,) = decide(small, LIMITS)
    assert (action.remedy, len(action.breaks), action.verdict) == ("meter", 2, "waits")
    (action,) = decide(small, LIMITS, {1})
    assert action.verdict == "automatic"
    apart = [broken(1, "rejected", "-6"), broken(2, "rejected", "-6", hour=T0 + timedelta(hours=1))]
    assert [action.verdict for action in decide(apart, LIMITS)] == ["automatic", "automatic"]


def test_an_hour_is_done_again_from_the_first_station_that_is_behind() -> None:
    found = decide([broken(1, "not_sent"), broken(2, "not_rated"), broken(3, "not_metered")], LIMITS)
    assert [(action.remedy, len(action.breaks)) for action in found] == [("meter", 3)]


@pytest.mark.parametrize(
    ("cause", "more", "why"),
    [
        ("parked", {"by_hand": True}, "a person parked it"),
        ("rejected", {"begun": 1}, "was corrected before, and is open still"),
        ("not_metered", {"amount": "0"}, "what it is worth is not known"),
    ],
)
def test_what_never_runs_by_itself(cause: str, more: dict[str, Any], why: str) -> None:
    (action,) = decide([broken(1, cause, **more)], LIMITS)
    assert (action.verdict, action.why) == ("waits", why)
    (action,) = decide([broken(1, cause, **more)], LIMITS, {1})
    assert action.verdict == "approved"


def test_a_limit_of_zero_lets_nothing_run() -> None:
    none = Correcting(automatic_below=Decimal(0))
    assert [a.verdict for a in decide([broken(1, "rejected", "0", quantity=Decimal(0))], none)] == ["waits"]


def test_a_proposal_of_any_amount_is_written() -> None:
    (action,) = decide([broken(1, "late_after_finalisation", "-5000"), broken(2, "late_after_finalisation")], LIMITS)
    assert (action.remedy, action.verdict, len(action.breaks)) == ("propose", "automatic", 2)


@given(
    st.lists(
        st.builds(
            broken,
            st.integers(1, 10**6),
            st.sampled_from(sorted(REMEDIES)),
            st.decimals(-20, 20, places=2).map(str),
            tenant_id=st.sampled_from(["acme", "globex"]),
            hour=st.integers(0, 2).map(lambda number: T0 + timedelta(hours=number)),
            currency=st.sampled_from(["USD", "JPY"]),
            begun=st.integers(0, 1),
            by_hand=st.booleans(),
        ),
        max_size=30,
        unique_by=lambda each: each.id,
    ),
    st.data(),
)
def test_every_break_is_in_one_action_and_nothing_unapproved_is_above_the_limit(
    breaks: list[OpenBreak], data: st.DataObject
) -> None:
    approved = data.draw(st.sets(st.sampled_from([each.id for each in breaks]))) if breaks else set()
    actions = decide(breaks, LIMITS, approved)
    assert sorted(each.id for action in actions for each in action.breaks) == sorted(each.id for each in breaks)
    for action in actions:
        alone = [each for each in action.breaks if each.id not in approved]
        if action.verdict == "automatic" and action.remedy != "propose":
            assert not any(each.begun or each.by_hand for each in alone)
            for currency in ("USD", "JPY"):
                own = [abs(each.amount) for each in alone if each.currency == currency]
                assert not own or sum(own) < LIMITS.limit(currency)
        assert (action.verdict == "approved") == (not alone)


def test_of_differences_only_the_one_that_is_missing_is_sent_again() -> None:
    absolute = [Acknowledged("a", "hour_meter", Decimal(5)), Acknowledged("b", "usage_record", Decimal(7))]
    assert lost_of(absolute, Decimal(3)) == absolute
    parts = [Acknowledged("a", "sum_meter", Decimal(5)), Acknowledged("b", "sum_meter", Decimal(7))]
    assert lost_of(parts, Decimal(7)) == parts[1:]
    for newest, missing in ((parts, 12), ([parts[0], parts[0]], 5), ([], 5)):
        with pytest.raises(NotSafe):
            lost_of(newest, Decimal(missing))
