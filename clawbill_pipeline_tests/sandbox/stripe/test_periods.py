"""Billing cycles: real anchors, no gap, no overlap."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.sandbox.stripe.periods import Cycle, next_anchor


def unix(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()[:16]


@pytest.mark.parametrize(
    ("anchor", "ends"),
    [
        ("2026-01-31T10:00", ["2026-02-28T10:00", "2026-03-31T10:00", "2026-04-30T10:00", "2026-05-31T10:00"]),
        ("2026-01-30T10:00", ["2026-02-28T10:00", "2026-03-30T10:00", "2026-04-30T10:00"]),
        ("2028-01-29T00:00", ["2028-02-29T00:00", "2028-03-29T00:00"]),
        ("2027-01-29T00:00", ["2027-02-28T00:00", "2027-03-29T00:00"]),
        ("2026-11-15T23:59", ["2026-12-15T23:59", "2027-01-15T23:59"]),
    ],
)
def test_a_short_month_cuts_the_day_and_the_next_one_goes_back_to_it(anchor: str, ends: list[str]) -> None:
    cycle = Cycle(unix(anchor), "month")
    assert [day(cycle.boundary(index + 1)) for index in range(len(ends))] == ends


def test_a_leap_day_anchor_of_a_year() -> None:
    cycle = Cycle(unix("2028-02-29T12:00"), "year")
    assert [day(cycle.boundary(index)) for index in (1, 4)] == ["2029-02-28T12:00", "2032-02-29T12:00"]


@given(
    anchor=st.integers(0, 4_000_000_000),
    moment=st.integers(0, 4_000_000_000),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    count=st.integers(1, 12),
)
def test_every_moment_lies_in_one_period_and_periods_tile(anchor: int, moment: int, interval: str, count: int) -> None:
    cycle = Cycle(anchor, interval, count if interval != "year" else 1)
    start, end = cycle.containing(moment)
    assert start <= moment < end
    assert cycle.containing(end)[0] == end
    assert cycle.containing(start - 1)[1] == start


def test_pieces_tile_a_span_that_is_cut_at_both_ends() -> None:
    cycle = Cycle(unix("2026-01-31T00:00"), "month")
    pieces = cycle.pieces(unix("2026-01-15T00:00"), unix("2026-03-10T00:00"))
    assert [(day(a), day(b)) for a, b in pieces] == [
        ("2026-01-15T00:00", "2026-01-31T00:00"),
        ("2026-01-31T00:00", "2026-02-28T00:00"),
        ("2026-02-28T00:00", "2026-03-10T00:00"),
    ]


def test_an_anchor_by_its_parts_is_the_next_one_that_fits() -> None:
    now = unix("2026-02-10T08:30")
    assert day(next_anchor(now, {"day_of_month": 31})) == "2026-02-28T08:30"
    assert day(next_anchor(now, {"day_of_month": 5, "hour": 0, "minute": 0, "second": 0})) == "2026-03-05T00:00"
    assert day(next_anchor(now, {"day_of_month": 10, "month": 2})) == "2027-02-10T08:30"
