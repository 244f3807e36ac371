"""What a meter holds, against a plain count in Python over random events."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawbill_pipeline.sandbox.stripe.clock import Clock
from clawbill_pipeline.sandbox.stripe.core import Call
from clawbill_pipeline.sandbox.stripe.store import Store
from clawbill_pipeline.sandbox.stripe.usage import spans_with_events, usage_total

WIDTHS = {"hour": 3_600, "day": 86_400}


class Event(NamedTuple):
    timestamp: int
    value: int
    state: str


EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(0, 4 * 86_400),
        st.integers(-(10**15) + 1, 10**15 - 1),
        st.sampled_from(["accepted", "accepted", "accepted", "cancelled", "no_meter"]),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = Store(tmp_path_factory.mktemp("usage"))
    yield Call(store, Clock(store, {}, 0), "acct_1")
    store.close()


def expected(events: list[Event], formula: str, window: str | None, start: int, end: int) -> int:
    counted = [event for event in events if event.state == "accepted" and start <= event.timestamp < end]
    if window:
        latest: dict[int, Event] = {}
        for event in counted:  # in the order of arrival
            hour = event.timestamp // WIDTHS[window]
            if hour not in latest or event.timestamp >= latest[hour].timestamp:
                latest[hour] = event
        counted = list(latest.values())
    if formula == "count":
        return len(counted)
    if formula == "sum":
        return sum(event.value for event in counted)
    last = None
    for event in counted:
        if last is None or event.timestamp >= last.timestamp:
            last = event
    return last.value if last else 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    events=EVENTS,
    formula=st.sampled_from(["sum", "count", "last"]),
    window=st.sampled_from([None, "hour", "day"]),
    start=st.integers(0, 3 * 86_400),
    length=st.integers(1, 2 * 86_400),
)
def test_totals_are_those_of_a_plain_count(
    call: Call, events: list[Event], formula: str, window: str | None, start: int, length: int
) -> None:
    db = call.store.db
    db.execute("DELETE FROM meter_events")
    for event in events:
        db.execute(
            "INSERT INTO meter_events (account, identifier, event_name, customer, value, timestamp, received, state)"
            " VALUES ('acct_1', 'i', 'tokens', 'cus_1', ?, ?, 0, ?)",
            (event.value, event.timestamp, event.state),
        )
    meter = {"event_name": "tokens", "event_time_window": window, "default_aggregation": {"formula": formula}}
    end = start + length
    assert usage_total(call, meter, "cus_1", start, end) == expected(events, formula, window, start, end)
    assert usage_total(call, meter, "cus_2", start, end) == 0
    spans = spans_with_events(call, meter, "cus_1", start, end, 3_600)
    counted = [event for event in events if event.state == "accepted" and start <= event.timestamp < end]
    assert spans == sorted({event.timestamp // 3_600 * 3_600 for event in counted}, reverse=True)
