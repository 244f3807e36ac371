"""What Stripe takes: its limits of time, digits and identifiers; and what becomes of usage beyond them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.delivery.backends import (
    BACKENDS,
    FURTHEST_AHEAD,
    LONGEST_IDENTIFIER,
    OLDEST,
    Record,
    payload_hash,
)
from clawbill_pipeline.delivery.outbox import OutboxRow
from clawbill_pipeline.delivery.planning import identifier
from clawbill_pipeline.delivery.sending import hindrance
from clawbill_pipeline.invoicing.adjustments import propose_adjustments
from clawbill_pipeline.invoicing.inbox import apply_events
from clawbill_pipeline.invoicing.sweep import sweep_events
from clawbill_pipeline_tests.delivery.world import CATALOG, HOUR, T0, World

SECOND = timedelta(seconds=1)
METERS = [name for name, backend in BACKENDS.items() if backend.totals]


def _row(at: datetime, **changes: object) -> OutboxRow:
    payload = {"event_name": "tokens"}
    row = OutboxRow(
        hour=at, identifier="id", tenant_id="acme", service="tokens", customer_id="cus_1", meter="tokens",
        backend="hour_meter", window_start=at, revision=1, value=Decimal(1), event_timestamp=at, payload=payload,
        payload_sha256=payload_hash(payload), state="planned", attempts=0, first_sent_at=None, next_attempt_at=None,
        parked=None, meter_id="mtr_1",
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


def test_35_days_back_and_not_a_second_more() -> None:
    now = T0 + timedelta(days=60)
    assert hindrance(_row(now - OLDEST), now) is None
    move = hindrance(_row(now - OLDEST - SECOND), now)
    assert move is not None
    assert (move.state, move.parked) == ("planned", "too_old")
    assert "adjustment" in str(move.error)
    # What may be at Stripe already is asked about first.
    assert hindrance(_row(now - OLDEST - SECOND, state="unknown"), now) is None
    assert timedelta(days=35) == OLDEST


def test_5_minutes_ahead_and_not_a_second_more() -> None:
    assert hindrance(_row(T0 + FURTHEST_AHEAD), T0) is None
    move = hindrance(_row(T0 + FURTHEST_AHEAD + SECOND), T0)
    assert move is not None
    assert (move.state, move.parked, move.next_attempt_at) == ("planned", None, T0 + FURTHEST_AHEAD + SECOND)
    assert timedelta(minutes=5) == FURTHEST_AHEAD


@pytest.mark.parametrize("backend", METERS)
def test_15_digits_and_not_one_more(backend: str) -> None:
    assert BACKENDS[backend].hindrance(Decimal(999_999_999_999_999)) is None
    assert BACKENDS[backend].hindrance(Decimal(-999_999_999_999_999)) is None
    assert "16 digits" in str(BACKENDS[backend].hindrance(Decimal(1_000_000_000_000_000)))


@pytest.mark.parametrize("backend", BACKENDS)
@given(value=st.integers(0, 10**15 - 1))
def test_values_are_sent_as_whole_numbers_to_the_last_digit(backend: str, value: int) -> None:
    record = Record("id", "cus_1", "si_1", "tokens", Decimal(value).normalize(), T0, 1)
    params = BACKENDS[backend].params(record)
    sent = params["payload"]["value"] if "payload" in params else params["quantity"]
    assert sent == (value if backend == "usage_record" else str(value))


@given(
    st.from_regex(r"cus_[A-Za-z0-9]{1,60}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_.-]{1,100}", fullmatch=True),
    st.integers(1, 899),
)
def test_identifiers_have_at_most_100_characters(customer: str, meter: str, revision: int) -> None:
    name = identifier(customer, meter, T0, revision)
    assert len(name) <= LONGEST_IDENTIFIER == 100
    assert name.startswith(f"20260301T000000Z:{revision}:")
    assert name == identifier(customer, meter, T0.astimezone(UTC), revision)
    assert name != identifier(customer, meter, T0, revision + 1)
    assert name != identifier(customer, meter, T0 + timedelta(minutes=15), revision)


@pytest.mark.parametrize("before_the_invoice", [True, False])
def test_usage_that_is_too_old_becomes_an_adjustment(fresh_world: World, before_the_invoice: bool) -> None:
    """Never a re-dated event. In a period of three months it can be too old while the invoice is still to come."""
    world = fresh_world
    world.catalog = parse(CATALOG.replace("name: Acme", "interval_count: 3, anchor_date: 2026-02-01"))
    world.provision()
    period = world.catalog.tenant("acme").period_at(world.now())
    old = T0 + timedelta(days=2)
    usage = [(old + timedelta(days=40), old), (period.end, period.end - HOUR)]
    if not before_the_invoice:
        usage = [usage[1], (period.end + timedelta(hours=2), old)]
    for found_out, hour in usage:
        world.sandbox.move_to(int(found_out.timestamp()))
        world.rate("acme", "tokens", hour, "1.5" if hour == old else "2")
        world.plan()
        world.deliver()
    assert [row.parked for row in world.rows()] == ["too_old", None]
    world.sandbox.move_to(int((period.end + timedelta(hours=3)).timestamp()))
    sweep_events(world.ledger, world.api, since=period.end - HOUR, now=world.now())
    apply_events(world.ledger, world.catalog, world.api, through=None, now=world.now(), run_id="test")
    (adjustment,) = propose_adjustments(world.ledger, world.catalog, now=world.now(), run_id="test").adjustments
    assert (adjustment.tenant_id, adjustment.service, adjustment.units) == ("acme", "tokens", 1_500_000)
    assert (adjustment.amount, adjustment.period_end) == (Decimal("1.50"), period.end)
