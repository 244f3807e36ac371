"""Wrong bills that really happened to others, told through landing and metering: none of them can happen here.

Numbers are those of the list that they are kept in; those about one hour's events (5, 9) are in ``test_hours``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.catalog import CatalogError, parse
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.metering import late_hours
from clawbill_pipeline_tests.metering.world import CATALOGUE, HOUR, START, Event, World, world

TICK = timedelta(microseconds=1)
Place = Callable[..., World]


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[Place]:
    with world(tmp_path, ledger_url) as made:

        def with_tenants(calendar: str = "", **tenants: str) -> World:
            known = CATALOGUE.format(calendar=calendar).partition("tenants:\n")[0] + "tenants:\n"
            made.catalog = parse(
                known + "".join(f"  {name}: {{rate_card: card, {what}}}\n" for name, what in tenants.items())
            )
            return made

        yield with_tenants


def used(tenant_id: str, *times: datetime) -> list[Event]:
    return [Event(f"{tenant_id} {at.isoformat()}", at, Decimal(1), tenant_id) for at in times]


def meter_all(place: World, events: list[Event]) -> None:
    """Lands ``events`` and meters every hour from the first to the last."""
    place.land(events)
    first, last = (int((utc_hour(at) - START) / HOUR) for at in (min(e.at for e in events), max(e.at for e in events)))
    place.meter(first, hours=last - first + 1)


def by_period(place: World) -> dict[str, Counter[str]]:
    """What each tenant is billed for, by the key of the period that each metered window lies in."""
    billed: dict[str, Counter[str]] = {name: Counter() for name in place.catalog.tenants}
    for (_, tenant_id, _, _, window_start), quantity in place.held().items():
        billed[tenant_id][place.catalog.tenants[tenant_id].period_at(window_start).key] += int(quantity)
    return billed


def moments(*texts: str) -> list[datetime]:
    return [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in texts]


def test_peers_06_accounts_opened_before_and_after_the_clock_change_get_the_same_bill(place: Place) -> None:
    # killbill#1934: in New York the clock went forward on 8 March 2026: March begins at 05:00 UTC, and April at 04:00.
    here = place(
        winter="time_zone: America/New_York, starts: 2026-02-02",
        summer="time_zone: America/New_York, starts: 2026-03-09",
    )
    same = moments("2026-03-15T12:00:00", "2026-03-31T23:30:00", "2026-04-01T03:59:59.999999", "2026-04-01T04:00:00",
                   "2026-04-01T04:30:00", "2026-04-30T12:00:00")  # fmt: skip
    meter_all(here, used("winter", *same) + used("summer", *same))
    assert by_period(here) == {name: {"2026-03": 3, "2026-04": 3} for name in ("winter", "summer")}


def test_peers_06_a_period_in_another_zone_is_not_billed_twice(place: Place) -> None:
    # killbill#1856: on both sides of the date line, and in zones that are off the hour.
    zones = {"kiritimati": "Pacific/Kiritimati", "niue": "Pacific/Niue", "kathmandu": "Asia/Kathmandu",
             "adelaide": "Australia/Adelaide"}  # fmt: skip
    here = place(**{name: f"time_zone: {zone}" for name, zone in zones.items()})
    first = datetime(2026, 3, 30, tzinfo=UTC)
    times = [first + number * timedelta(minutes=15) for number in range(3 * 24 * 4)]
    meter_all(here, [event for name in zones for event in used(name, *times)])
    billed = by_period(here)
    for name, tenant in here.catalog.tenants.items():
        march = sum(at.astimezone(tenant.zone).month == 3 for at in times)
        assert billed[name] == {"2026-03": march, "2026-04": len(times) - march}


def test_peers_07_periods_that_begin_on_the_29th_to_31st_leave_no_day_out_in_february(place: Place) -> None:
    # lago-api#1567, #1840; killbill#2133: no gap and no overlap, and the 31st comes back.
    here = place(**{f"on-{day}": f"anchor_day: {day}" for day in (29, 30, 31)})
    starts = {29: ["2026-01-29", "2026-02-28", "2026-03-29", "2026-04-29"],
              30: ["2026-01-30", "2026-02-28", "2026-03-30", "2026-04-30"],
              31: ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]}  # fmt: skip
    expected: dict[str, dict[str, int]] = {}
    events = []
    for day, boundaries in starts.items():
        edges = moments(*boundaries)
        # The last moment of each period, and the first of the next.
        events += used(f"on-{day}", *(at for edge in edges for at in (edge - TICK, edge)))
        expected[f"on-{day}"] = {"2025-12": 1, "2026-01": 2, "2026-02": 2, "2026-03": 2, "2026-04": 1}
    here.land(events)
    for edge in sorted({edge for boundaries in starts.values() for edge in moments(*boundaries)}):
        here.meter(int((edge - HOUR - START) / HOUR), hours=2)
    assert by_period(here) == expected


@pytest.mark.parametrize(
    "afterwards", ["gone from the catalogue", "ended by its subscription", "on another plan"], ids=str
)
def test_peers_08_what_was_used_before_a_change_in_mid_hour_is_billed(place: Place, afterwards: str) -> None:
    # bencher#951, tuist#11903: cancelled, or changed its plan, at 18:15 UTC, which is midnight in Kathmandu.
    zone = "time_zone: Asia/Kathmandu"
    here = place(acme=zone, other="time_zone: UTC")
    change = datetime(2026, 11, 14, 18, 15, tzinfo=UTC)
    here.land(used("acme", change - timedelta(minutes=10), change - TICK))
    if afterwards == "gone from the catalogue":
        here = place(other="time_zone: UTC")
    elif afterwards == "ended by its subscription":
        here = place(acme=f"{zone}, ends: 2026-11-15", other="time_zone: UTC")
    else:
        here = place(acme=f"{zone}, anchor_day: 15", other="time_zone: UTC")
    here.land(used("acme", change, change + timedelta(minutes=10)))
    hour = utc_hour(change)
    here.meter(int((hour - START) / HOUR))
    windows = {window: int(quantity) for (_, _, _, _, window), quantity in here.held().items()}
    assert sum(windows.values()) == 4, "nothing that was used is lost, whoever is still a customer"
    if afterwards == "on another plan":
        assert windows == {hour: 2, change: 2}, "each plan bills its own part of the hour"
    # What comes late for the hour in which it was cancelled is metered as well.
    here.land(used("acme", change - timedelta(minutes=5)))
    here.meter(int((hour - START) / HOUR))
    assert sum(here.held().values()) == 5


def test_peers_09_an_event_three_periods_late_is_a_revision_of_its_own_hour(place: Place) -> None:
    # killbill#876: never dropped in silence, never booked on the hour in which it came.
    here = place(acme="time_zone: UTC")
    meter_all(here, used("acme", START + TICK))
    now = START + timedelta(days=95)
    meter_all(here, used("acme", now))
    here.land(used("acme", START + timedelta(minutes=59)))
    assert late_hours(here.ledger, before=now + HOUR) == [(START, 2)]
    here.meter(0)
    assert here.revisions()[:2] == [(1, "first", "1"), (2, "late", "2")]
    assert by_period(here) == {"acme": {"2026-11": 2, "2027-02": 1}}


def test_peers_14_usage_that_may_be_late_is_metered_while_the_invoice_can_still_change(place: Place) -> None:
    # pug#123: a grace of three days in the meter and of two in the invoicer lost the third day's usage.
    with pytest.raises(CatalogError, match="usage that is allowed to be late would miss its invoice"):
        place(calendar="calendar: {late_window: 3d, stripe_grace: 2d}", acme="time_zone: UTC")
    here = place(calendar="calendar: {late_window: 2d, stripe_grace: 2d}", acme="time_zone: UTC")
    end = here.catalog.tenants["acme"].period("2026-11").end
    meter_all(here, used("acme", end - HOUR))
    here.land(used("acme", end - TICK))
    # As late as is allowed: the hour is found and counted before Stripe finalises the invoice.
    arrival = end + here.catalog.calendar.late_window
    assert arrival <= end + here.catalog.calendar.stripe_grace
    assert late_hours(here.ledger, before=arrival) == [(end - HOUR, 2)]
    here.meter(int((end - HOUR - START) / HOUR))
    assert by_period(here) == {"acme": {"2026-11": 2}}
