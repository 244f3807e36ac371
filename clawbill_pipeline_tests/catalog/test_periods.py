"""Hours and billing periods tile time, in every zone, for every anchor, over every clock change."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import example, given
from hypothesis import strategies as st

from clawbill_pipeline.catalog import Period, hours_between, parse
from clawbill_pipeline.catalog.periods import Cadence, period_at, period_of_month, utc_hour

zones = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
anchors = st.integers(1, 31)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.integers(0, 4_000_000_000_000_000).map(lambda micros: EPOCH + timedelta(microseconds=micros))
TICK = timedelta(microseconds=1)
NEW_YORK = ZoneInfo("America/New_York")


def following(period: Period, anchor: int, zone: ZoneInfo) -> Period:
    return period_at(period.end, anchor, zone)


@given(moments, anchors, zones)
@example(datetime(2011, 12, 30, 12, tzinfo=UTC), 30, ZoneInfo("Pacific/Apia"))  # a day that never was
@example(datetime(2026, 9, 6, 3, 59, tzinfo=UTC), 6, ZoneInfo("America/Santiago"))  # a midnight that never was
@example(datetime(2026, 11, 1, 4, 30, tzinfo=UTC), 1, ZoneInfo("America/Havana"))  # a midnight that came twice
@example(datetime(2026, 3, 1, tzinfo=UTC), 31, ZoneInfo("UTC"))
def test_periods_tile_time(moment: datetime, anchor: int, zone: ZoneInfo) -> None:
    period = period_at(moment, anchor, zone)
    assert moment in period
    assert period.start < period.end
    for _ in range(14):
        after = following(period, anchor, zone)
        assert after.start == period.end, "a gap or an overlap"
        assert period_at(period.end - TICK, anchor, zone) == period
        assert after.key > period.key
        assert period_of_month(period.key, anchor, zone) == period
        period = after


@given(moments, anchors, zones)
def test_a_period_starts_at_local_midnight_of_its_anchor(moment: datetime, anchor: int, zone: ZoneInfo) -> None:
    period = period_at(moment, anchor, zone)
    year, month = (int(part) for part in period.key.split("-"))
    day = date(year, month, min(anchor, monthrange(year, month)[1]))
    assert (period.start - TICK).astimezone(zone).date() < day <= period.start.astimezone(zone).date()


def test_peers_7_anchors_at_the_end_of_the_month_come_back_after_february() -> None:
    # lago-api#1567, #1840; killbill#2133
    utc = ZoneInfo("UTC")
    for anchor, starts in {
        29: ["01-29", "02-28", "03-29", "04-29"],
        30: ["01-30", "02-28", "03-30", "04-30"],
        31: ["01-31", "02-28", "03-31", "04-30"],
    }.items():
        found = [period_of_month(f"2026-{month:02}", anchor, utc) for month in range(1, 5)]
        assert [f"{period.start:%m-%d}" for period in found] == starts
        assert all(one.end == two.start for one, two in pairwise(found))
    assert f"{period_of_month('2028-02', 30, utc).start:%m-%d}" == "02-29"
    assert period_of_month("2025-12", 31, utc).end == datetime(2026, 1, 31, tzinfo=UTC)


def test_peers_6_accounts_opened_before_and_after_the_clock_change_share_their_periods() -> None:
    # killbill#1934: what counts is the anchor in the zone, never the offset that held when the account was opened.
    in_winter = period_at(datetime(2026, 2, 15, tzinfo=UTC), 1, NEW_YORK)
    march = following(in_winter, 1, NEW_YORK)
    april = period_at(datetime(2026, 4, 20, tzinfo=UTC), 1, NEW_YORK)
    assert following(march, 1, NEW_YORK) == april
    assert march == Period(datetime(2026, 3, 1, 5, tzinfo=UTC), datetime(2026, 4, 1, 4, tzinfo=UTC), "2026-03")
    assert (march.end - march.start) == timedelta(days=31) - timedelta(hours=1)


def test_peers_6_a_period_in_another_zone_is_not_billed_twice() -> None:
    # killbill#1856: each hour of a year lies in exactly one period, on both sides of the date line too.
    for name in ("Pacific/Kiritimati", "Pacific/Niue", "Asia/Kathmandu", "America/St_Johns"):
        zone = ZoneInfo(name)
        periods = [period_of_month(f"2026-{month:02}", 1, zone) for month in range(1, 13)]
        start, end = periods[0].start, periods[-1].end
        assert sum((period.end - period.start for period in periods), timedelta()) == end - start
        for hour in hours_between(utc_hour(start) + timedelta(hours=1), utc_hour(end)):
            assert sum(hour in period for period in periods) == 1


def test_zones_off_the_hour_cut_an_hour_in_two() -> None:
    period = period_of_month("2026-10", 1, ZoneInfo("Asia/Kathmandu"))
    assert period.start == datetime(2026, 9, 30, 18, 15, tzinfo=UTC)
    assert utc_hour(period.start) == datetime(2026, 9, 30, 18, tzinfo=UTC)


@given(moments, st.integers(0, 100))
def test_hours_are_half_open_and_leave_nothing_out(moment: datetime, count: int) -> None:
    start = utc_hour(moment)
    assert start <= moment < start + timedelta(hours=1)
    hours = list(hours_between(start, start + timedelta(hours=count)))
    assert len(hours) == count
    assert all(two - one == timedelta(hours=1) for one, two in pairwise(hours))


cadences = st.builds(
    Cadence,
    interval=st.sampled_from(["day", "week", "month", "year"]),
    count=st.integers(1, 3),
    anchor=st.dates(date(2020, 1, 1), date(2027, 12, 31)),
)


@given(moments, cadences, zones)
@example(datetime(2011, 12, 30, 12, tzinfo=UTC), Cadence("day"), ZoneInfo("Pacific/Apia"))
@example(datetime(2026, 2, 28, tzinfo=UTC), Cadence("year", 1, date(2024, 2, 29)), ZoneInfo("UTC"))
def test_periods_of_any_length_tile_time(moment: datetime, cadence: Cadence, zone: ZoneInfo) -> None:
    period = cadence.period_at(moment, zone)
    for _ in range(6):
        # A day that a zone skipped is a period without an instant, which nothing can lie in.
        after = cadence.period_at(period.end, zone)
        assert after.start == period.end
        assert after.key > period.key
        assert period.end in after
        assert cadence.period(period.key, zone) == period
        assert cadence.period_at(period.start, zone) == period
        period = after


def test_quarters_weeks_and_years_start_where_they_are_said_to() -> None:
    utc, at = ZoneInfo("UTC"), datetime(2026, 2, 11, tzinfo=UTC)
    for cadence, key, start, end in (
        (Cadence("month", 3), "2026-01", (2026, 1, 1), (2026, 4, 1)),
        (Cadence("month", 3, date(2025, 11, 30)), "2025-11", (2025, 11, 30), (2026, 2, 28)),
        (Cadence("week"), "2026-02-09", (2026, 2, 9), (2026, 2, 16)),
        (Cadence("week", 2, date(2026, 2, 4)), "2026-02-04", (2026, 2, 4), (2026, 2, 18)),
        (Cadence("day"), "2026-02-11", (2026, 2, 11), (2026, 2, 12)),
        (Cadence("year", 1, date(2024, 2, 29)), "2025-02", (2025, 2, 28), (2026, 2, 28)),
    ):
        day = datetime(2026, 2, 27, tzinfo=UTC) if "30" in str(cadence) or cadence.interval == "year" else at
        assert cadence.period_at(day, utc) == Period(datetime(*start, tzinfo=UTC), datetime(*end, tzinfo=UTC), key)


def test_a_key_under_which_nothing_starts_is_an_empty_period() -> None:
    utc = ZoneInfo("UTC")
    for cadence, key in (
        (Cadence("month", 3), "2026-02"), (Cadence("month"), "2026-02-01"), (Cadence("week"), "2026-02"),
        (Cadence("week"), "2026-02-10"), (Cadence("year"), "2026-02"),
    ):  # fmt: skip
        assert cadence.period(key, utc).empty
    assert not Cadence("week").period("2026-02-09", utc).empty


def test_a_months_reconciliation_has_the_weeks_and_days_that_start_in_it() -> None:
    catalog = parse(
        "start: 2026-01-01T00:00:00Z\nservices: {a: {unit: a}}\n"
        "rate_cards: {c: {currency: USD, versions: [{effective_from: 2026-01-01T00:00:00Z, "
        "prices: {a: {model: per_unit, unit_amount: 1}}}]}}\n"
        "tenants: {m: {rate_card: c}, w: {rate_card: c, interval: week}, y: {rate_card: c, interval: year}}"
    )
    assert catalog.period_keys("2026-02", datetime(2026, 2, 17, tzinfo=UTC)) == [
        "2026-02", "2026-02-02", "2026-02-09", "2026-02-16",
    ]  # fmt: skip
    assert catalog.period_keys("2026-02", datetime(2027, 1, 1, tzinfo=UTC))[-1] == "2026-02-23"
    assert catalog.open_months(datetime(2026, 5, 7, tzinfo=UTC)) == {"2025-01", "2026-01", "2026-04", "2026-05"}
