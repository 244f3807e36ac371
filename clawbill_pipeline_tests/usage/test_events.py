"""What is a usage event and what is a fault: the rules alone, without files."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.money import LIMIT
from clawbill_pipeline.usage.events import MOST, Claims, Event, Fault, Judge, instant, number, quantity
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue

judge = Judge(catalogue(), NOW)


def claims(**changes):
    good = {
        "event_id": "e1",
        "tenant_id": "acme",
        "service": "api.calls",
        "quantity": Decimal(3),
        "time": "2026-11-22T10:15:00Z",
    }
    return Claims(**{**good, **changes})


def fault(**changes) -> Fault:
    with pytest.raises(Fault) as caught:
        judge.event(claims(**changes))
    return caught.value


def test_good_claims_are_an_event():
    at = datetime(2026, 11, 22, 10, 15, tzinfo=UTC)
    assert judge.event(claims()) == Event("e1", "acme", "api.calls", "", Decimal(3), at)


def test_a_tenant_that_the_catalogue_does_not_know_is_metered():
    assert judge.event(claims(tenant_id="nobody")).tenant_id == "nobody"


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"event_id": None}, "missing_field", "event_id"),
        ({"event_id": ""}, "missing_field", "event_id"),
        ({"event_id": {"a": 1}}, "not_text", "event_id"),
        ({"event_id": "a\0b"}, "not_text", "event_id"),
        ({"event_id": "half \ud800"}, "not_text", "event_id"),
        ({"event_id": "x" * 513}, "too_long", "event_id"),
        ({"tenant_id": None}, "missing_field", "tenant_id"),
        ({"tenant_id": "a tenant"}, "tenant_syntax", "tenant_id"),
        ({"tenant_id": "-acme"}, "tenant_syntax", "tenant_id"),
        ({"tenant_id": "acmé"}, "tenant_syntax", "tenant_id"),
        ({"tenant_id": "acme\n"}, "tenant_syntax", "tenant_id"),
        ({"service": None}, "missing_field", "service"),
        ({"service": "api.call"}, "unknown_service", "service"),
        ({"quantity": None}, "missing_field", "quantity"),
        ({"quantity": "three"}, "not_a_number", "quantity"),
        ({"quantity": "1_000"}, "not_a_number", "quantity"),
        ({"quantity": "1,5"}, "not_a_number", "quantity"),
        ({"quantity": " 1"}, "not_a_number", "quantity"),
        ({"quantity": "\u0661"}, "not_a_number", "quantity"),
        ({"quantity": "0x10"}, "not_a_number", "quantity"),
        ({"quantity": True}, "not_a_number", "quantity"),
        ({"quantity": [1]}, "not_a_number", "quantity"),
        ({"quantity": Decimal("NaN")}, "not_finite", "quantity"),
        ({"quantity": Decimal("-Infinity")}, "not_finite", "quantity"),
        ({"quantity": "inf"}, "not_finite", "quantity"),
        ({"quantity": Decimal("0.0000000000001")}, "too_many_digits", "quantity"),
        ({"quantity": LIMIT}, "too_many_digits", "quantity"),
        ({"quantity": "1e999999999999999999999"}, "too_many_digits", "quantity"),
        ({"quantity": MOST}, "too_large", "quantity"),
        ({"quantity": "123456789012345678901234.5"}, "too_large", "quantity"),
        ({"quantity": -MOST, "service": "credits"}, "too_large", "quantity"),
        ({"quantity": Decimal(-1)}, "negative", "quantity"),
        ({"time": None}, "missing_field", "timestamp"),
        ({"time": "yesterday"}, "time_unreadable", "timestamp"),
        ({"time": "2026-11"}, "time_unreadable", "timestamp"),
        ({"time": "2026-13-22T10:00:00Z"}, "time_unreadable", "timestamp"),
        ({"time": "2026-11-22T10:00:61Z"}, "time_unreadable", "timestamp"),
        ({"time": Decimal("1e30")}, "time_unreadable", "timestamp"),
        ({"time": Decimal("NaN")}, "time_unreadable", "timestamp"),
        ({"time": "0001-01-01T00:00:00+05:00"}, "time_unreadable", "timestamp"),
        ({"time": "2026-10-31T23:59:59.999999Z"}, "before_start", "timestamp"),
        ({"time": "2026-11-23T00:05:00.000001Z"}, "in_the_future", "timestamp"),
        ({"service": "tokens.input"}, "missing_dimension", "provider"),
        ({"service": "tokens.input", "dimensions": {"provider": "p", "model": ""}}, "missing_dimension", "model"),
        ({"service": "users"}, "missing_field", "user"),
        ({"service": "users", "dimensions": {"user": ["u"]}}, "not_text", "user"),
        ({"service": "users", "dimensions": {"user": "u" * 257}}, "too_long", "user"),
    ],
)
def test_what_is_wrong_is_named_with_its_field_and_its_fix(changes, reason, field):
    found = fault(**changes)
    assert (found.reason, found.field) == (reason, field)
    assert found.detail


def test_a_fault_names_the_tenant_where_the_record_still_tells_it():
    assert fault(service="api.call").tenant_id == "acme"
    assert fault(tenant_id="no tenant").tenant_id is None


def test_the_edges_of_time_are_in():
    assert judge.event(claims(time="2026-11-01T00:00:00Z"))
    assert judge.event(claims(time="2026-11-23T00:05:00Z"))


def test_negative_quantities_only_where_the_service_takes_usage_back():
    assert judge.event(claims(service="credits", quantity=Decimal("-2.5"))).quantity == Decimal("-2.5")


def test_dimensions_come_in_the_services_order_and_are_escaped():
    event = judge.event(claims(service="tokens.input", dimensions={"model": "a/b:c", "provider": "p", "other": "x"}))
    assert event.dimensions == "p/a%2Fb%3Ac"


@pytest.mark.parametrize(("value", "kept"), [("u1", "u1"), (Decimal(7), "7"), (True, "true")])
def test_what_unique_count_counts_is_kept_as_text(value, kept):
    assert judge.event(claims(service="users", dimensions={"user": value})).unique_value == kept
    assert judge.event(claims(dimensions={"user": value})).unique_value == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-22T10:15:00.123456789Z", "2026-11-22T10:15:00.123456+00:00"),
        ("2026-11-22T10:59:59.9999999Z", "2026-11-22T10:59:59.999999+00:00"),
        ("2026-11-22t10:15:00z", "2026-11-22T10:15:00+00:00"),
        ("2026-11-22", "2026-11-22T00:00:00+00:00"),
        ("2026-11-22T10Z", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22 12:15+02:00", "2026-11-22T10:15:00+00:00"),
        ("2026-11-22T10:15:00", "2026-11-22T10:15:00+00:00"),
        (Decimal(1795342500), "2026-11-22T10:15:00+00:00"),
        (Decimal("1795342500.9999999"), "2026-11-22T10:15:00.999999+00:00"),
        (Decimal(1795342500123), "2026-11-22T10:15:00.123000+00:00"),
        (Decimal(1795342500123456), "2026-11-22T10:15:00.123456+00:00"),
        (Decimal(1795342500123456789), "2026-11-22T10:15:00.123456+00:00"),
    ],
)
def test_times(value, expected):
    assert instant(value, "time").isoformat() == expected


storable = st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-(LIMIT - 1), max_value=LIMIT - 1)


@given(storable)
def test_every_number_that_the_ledger_holds_is_exact_as_number_and_as_text(given):
    assert number(given, "quantity") == number(str(given), "quantity") == given
    if abs(given) < MOST:
        assert quantity(given, "quantity", negative=True) == quantity(str(given), "quantity", negative=True) == given
    else:
        with pytest.raises(Fault, match="no hour could add up exactly"):
            quantity(given, "quantity", negative=True)


def test_the_largest_quantity_leaves_room_for_the_largest_hour():
    assert MOST * 10**8 == LIMIT
    largest = "999999999999999999.999999999999"
    assert str(quantity(largest, "quantity", negative=False)) == largest


@given(st.decimals())
def test_a_quantity_is_exact_or_a_fault(given):
    try:
        kept = quantity(given, "quantity", negative=True)
    except Fault:
        return
    assert kept == given
    assert kept.as_tuple().exponent >= -12
    assert abs(kept) < MOST


@given(st.datetimes(timezones=st.timezones()) | st.datetimes(timezones=st.just(UTC)))
def test_times_with_a_zone_keep_their_moment(time):
    offset = time.utcoffset()
    if offset % timedelta(minutes=1):  # ISO 8601 knows no seconds in offsets: local mean times of before 1900
        return
    try:
        assert instant(time.isoformat(), "time") == time.astimezone(UTC)
    except (Fault, OverflowError):
        assert not 2 <= time.year <= 9998
