"""Meter events and what the meter then holds: identifiers, times, values, windows, formulas, summaries."""

from __future__ import annotations

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox


def test_an_event_is_answered_and_held(account: Account) -> None:
    meter, customer, now = account.meter(), account.customer(), account.sandbox.now()
    event = account.use(customer, 5, now, identifier="a")
    assert (event.identifier, event.timestamp, event.created) == ("a", now, now)
    assert event.payload.to_dict() == {"stripe_customer_id": customer, "value": "5"}
    account.use(customer, -2, now)
    account.use(account.customer(), 100, now)
    assert account.held(meter.id, customer, now, now + 60) == [(now, 3.0)]
    assert account.stats()["meter_events"] == {"accepted": 3}


def test_without_time_or_identifier_both_are_made_up(account: Account) -> None:
    account.meter()
    customer = account.customer()
    first, second = account.use(customer, 1), account.use(customer, 1)
    assert first.timestamp == account.sandbox.now()
    assert first.identifier != second.identifier


def test_a_known_identifier_is_a_400_with_stripes_words_and_changes_nothing(account: Account) -> None:
    meter, customer, now = account.meter(), account.customer(), account.sandbox.now()
    account.use(customer, 5, identifier="a")
    for value in (5, 6):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            account.use(customer, value, identifier="a")
        assert caught.value.http_status == 400
        assert caught.value.user_message == "An event already exists with identifier a."
    account.sandbox.account().v1.billing.meter_events.create(
        {"event_name": "x", "identifier": "a", "payload": {"value": "1"}}
    )
    assert account.held(meter.id, customer, now, now + 60) == [(now, 5.0)]


def test_an_identifier_is_free_again_after_a_rolling_day_and_then_counts_twice(month: Sandbox) -> None:
    account = month.account()
    meter, customer, start = account.meter(), account.customer(), month.now()
    account.use(customer, 5, start, identifier="a")
    month.move_to(start + DAY - 1)
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        account.use(customer, 5, start, identifier="a")
    month.move_to(start + DAY)
    account.use(customer, 5, start, identifier="a")
    assert account.held(meter.id, customer, start, start + 60) == [(start, 10.0)]


def test_the_idempotency_key_replays_where_the_identifier_alone_would_be_a_duplicate(account: Account) -> None:
    account.meter()
    customer = account.customer()
    params = {"event_name": "tokens", "identifier": "a", "payload": {"stripe_customer_id": customer, "value": "5"}}
    first = account.v1.billing.meter_events.create(params, {"idempotency_key": "a"})
    again = account.v1.billing.meter_events.create(params, {"idempotency_key": "a"})
    assert again.to_dict() == first.to_dict()
    assert account.stats()["meter_events"] == {"accepted": 1}


def test_times_go_35_days_back_and_5_minutes_ahead(account: Account) -> None:
    account.meter()
    customer, now = account.customer(), account.sandbox.now()
    account.use(customer, 1, now - 35 * DAY)
    account.use(customer, 1, now + 300)
    for moment in (now - 35 * DAY - 1, now + 301):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            account.use(customer, 1, moment)
        assert caught.value.param == "timestamp"
    assert account.stats()["meter_events"] == {"accepted": 2}


@pytest.mark.parametrize("value", ["999999999999999", "-999999999999999", "1000000000000000", "0", "007"])
def test_values_with_up_to_15_significant_digits(account: Account, value: str) -> None:
    meter, customer, now = account.meter(), account.customer(), account.sandbox.now()
    account.use(customer, value, now)
    assert account.held(meter.id, customer, now, now + 60) == [(now, float(int(value)))]


@pytest.mark.parametrize("value", ["1000000000000001", "1.5", "1.0", "1e3", "", " 1", "ten", "٣"])
def test_other_values_are_refused(account: Account, value: str) -> None:
    account.meter()
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.use(account.customer(), value)
    assert caught.value.param == "payload[value]"


def test_identifiers_have_at_most_100_characters(account: Account) -> None:
    account.meter()
    account.use(account.customer(), 1, identifier="x" * 100)
    with pytest.raises(stripe.InvalidRequestError, match="at most 100"):
        account.use(account.customer(), 1, identifier="x" * 101)


def test_an_unknown_customer_or_meter_is_a_200_and_counts_nowhere(account: Account) -> None:
    meter, now = account.meter(), account.sandbox.now()
    account.use("cus_no", 1)
    account.v1.billing.meter_events.create({"event_name": "no", "payload": {"stripe_customer_id": "c", "value": "1"}})
    account.v1.billing.meter_events.create({"event_name": "tokens", "payload": {"value": "1"}})
    assert account.stats()["meter_events"] == {
        "meter_event_customer_not_found": 1,
        "meter_event_no_customer_defined": 1,
        "no_meter": 1,
    }
    assert account.held(meter.id, account.customer(), now, now + 60) == [(now, 0.0)]


def test_formulas(account: Account) -> None:
    customer, now = account.customer(), account.sandbox.now()
    for formula, expected in (("sum", 12.0), ("count", 3.0), ("last", 3.0)):
        meter = account.meter(formula, formula)
        for at, value in ((now, "4"), (now + 120, "3"), (now + 60, "5")):
            account.v1.billing.meter_events.create(
                {
                    "event_name": formula,
                    "timestamp": at,
                    "payload": {"stripe_customer_id": customer, "value": value},
                }
            )
        assert account.held(meter.id, customer, now, now + HOUR) == [(now, expected)]


def test_a_sum_stays_exact_beyond_64_bits_until_it_becomes_a_float(account: Account) -> None:
    meter, customer, now = account.meter(), account.customer(), account.sandbox.now()
    for _ in range(12):
        account.use(customer, "999999999999999000", now)
    assert account.held(meter.id, customer, now, now + 60) == [(now, float(12 * 999999999999999000))]


@pytest.mark.parametrize(("window", "width"), [("hour", HOUR), ("day", DAY)])
def test_in_a_window_the_latest_event_overwrites(account: Account, window: str, width: int) -> None:
    meter = account.meter(event_time_window=window)
    customer, start = account.customer(), account.sandbox.now() - 2 * width
    account.use(customer, 10, start)
    account.use(customer, 7, start + 1)  # later by time and by arrival: a correction
    account.use(customer, 99, start)  # earlier by time: changes nothing
    assert account.held(meter.id, customer, start, start + width) == [(start, 7.0)]
    account.use(customer, 8, start + 1)  # as late by time, later by arrival
    account.use(customer, 5, start + width)  # another window
    assert account.held(meter.id, customer, start, start + 2 * width) == [(start, 13.0)]
    account.use(customer, 0, start + 2)
    assert account.held(meter.id, customer, start, start + 2 * width) == [(start, 5.0)]


def test_summaries_by_hour_and_day_are_utc_aligned_paged_and_newest_first(account: Account) -> None:
    meter, customer = account.meter(), account.customer()
    end = account.sandbox.now()
    start = end - 2 * DAY
    for hour in range(0, 48, 2):
        account.use(customer, hour + 1, start + hour * HOUR + 59 * 60 + 59)
    expected = [(start + hour * HOUR, float(hour + 1)) for hour in range(0, 48, 2)][::-1]
    params = {"customer": customer, "start_time": start, "end_time": end, "value_grouping_window": "hour"}
    first = account.v1.billing.meters.event_summaries.list(meter.id, params)
    assert (len(first.data), first.has_more) == (10, True)
    assert account.held(meter.id, customer, start, end, value_grouping_window="hour") == expected
    assert account.held(meter.id, customer, start, end, value_grouping_window="hour", limit=100) == expected
    days = account.held(meter.id, customer, start, end, value_grouping_window="day")
    assert days == [(start + DAY, float(sum(range(25, 49, 2)))), (start, float(sum(range(1, 25, 2))))]


@pytest.mark.parametrize(
    ("window", "start", "end", "param"),
    [
        (None, 1, 60, "start_time"),
        (None, 0, 61, "end_time"),
        ("hour", 60, HOUR, "start_time"),
        ("day", 0, HOUR, "end_time"),
        (None, 60, 60, "start_time"),
    ],
)
def test_summaries_refuse_times_that_are_not_aligned(
    account: Account, window: str | None, start: int, end: int, param: str
) -> None:
    meter, customer, base = account.meter(), account.customer(), account.sandbox.now() // DAY * DAY
    params = {"value_grouping_window": window} if window else {}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.held(meter.id, customer, base + start, base + end, **params)
    assert caught.value.param == param


def test_summaries_may_lag_behind(month: Sandbox) -> None:
    account = month.account()
    meter, customer, now = account.meter(), account.customer(), month.now()
    account.set(summary_delay_seconds=120)
    account.use(customer, 5, now)
    assert account.held(meter.id, customer, now, now + 60) == [(now, 0.0)]
    month.move_to(now + 120)
    assert account.held(meter.id, customer, now, now + 60) == [(now, 5.0)]
