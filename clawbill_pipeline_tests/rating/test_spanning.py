"""``period_to_date`` through the whole period: prices that change in it, limits and fees at its close, proration."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering.unused import meter_unused
from clawbill_pipeline.money import SCALE, plain, rounded, total
from clawbill_pipeline.openclaw import Answer
from clawbill_pipeline.rating import asking
from clawbill_pipeline.rating.engine import Share, Usage
from clawbill_pipeline.rating.engine import rate as price
from clawbill_pipeline.rating.rerating import rerate
from clawbill_pipeline.rating.spanning import Standing
from clawbill_pipeline.sandbox.openclaw import rating as server
from clawbill_pipeline_tests.rating.scripted import Asked, Step, scripted
from clawbill_pipeline_tests.rating.world import HOUR, NOW, START, World

CATALOGUE = """
version: 1
start: 2026-01-01T00:00:00Z
rating: {attempts: 1}
services:
  storage: {unit: GB-hour, basis: period_to_date, dimensions: [class]}
  seats: {unit: seat, basis: period_to_date}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: &first
          storage: {model: graduated, tiers: [{up_to: 10, unit_amount: 3, flat_amount: 5}, {unit_amount: 1}]}
          seats: {model: per_unit, unit_amount: 2, minimum: 50, maximum: 100}
      - effective_from: 2026-11-11T00:00:00Z
        prices:
          storage: {model: graduated, tiers: [{up_to: 20, unit_amount: 4, flat_amount: 7}, {unit_amount: 2}]}
          seats: {model: per_unit, unit_amount: 3, minimum: 60, maximum: 120}
tenants:
  acme: {rate_card: card}
"""
OLD, NEW = datetime(2026, 11, 5, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
LAST = 30 * 24 - 1


class Rater:
    """The rating server's answers, at the time and from the catalogue that a test sets."""

    def __init__(self, catalog: Catalog, now: datetime = OLD) -> None:
        self.catalog, self.now = catalog, now
        self.plain = False
        self.asked: list[Decimal] = []

    def __call__(self, asked: Asked) -> Step:
        self.asked.append(Decimal(asked.json["quantity"]))
        answer = server.answer(self.catalog, asked.body.encode(), self.now)
        return 200, {"amount_cents": answer["amount_cents"]} if self.plain else answer


@pytest.fixture
def place(ledger_url: str) -> Iterator[tuple[World, Rater]]:
    catalog = parse(CATALOGUE)
    rater = Rater(catalog)
    ledger = Ledger(ledger_url)
    with scripted(answer=rater) as openclaw:
        yield World(ledger, openclaw.url, catalog), rater
    ledger.dispose()


def cost(service: str, quantity: int | str, version: int = 0) -> Decimal:
    return price(parse(CATALOGUE).rate_cards["card"].versions[version].prices[service], Usage(Decimal(quantity))).amount


def booked(world: World, service: str = "storage") -> Decimal:
    return total(world.amounts(service).values())


def close(world: World, at: datetime = END) -> None:
    """What the hourly run does at the end of a period."""
    meter_unused(world.ledger, world.catalog, start=at - HOUR, end=at, now=at, run_id="close")
    with world.ledger.transaction() as c:
        c.execute(text("INSERT INTO metered_hours VALUES (:h, 0, 0, 0, 0, 0, :h, 'r')"), {"h": at - HOUR})
    world.rate(hours=(at - START) // HOUR)


def use(world: World, hour: int, quantity: int, service: str = "storage") -> None:
    world.meter(hour, quantity, service=service)


# --- prices that change within the period ----------------------------------------------------------------------------


def test_new_prices_are_for_what_comes_and_not_for_what_was_rated(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 15)
    world.rate()
    assert booked(world) == cost("storage", 15) == 40
    rater.now = NEW
    use(world, 300, 10)
    use(world, 301, 1)
    world.rate(300, 2)
    # 15 to 20 at 4, 20 to 26 at 2: as the new prices have it, without its flat amount, which was paid.
    assert world.amounts("storage") == {0: 40, 300: 30, 301: 2}
    assert rater.asked == [15, 25, 15, 26], "without is asked for anew once, and only once"
    first, second, third = world.rows("SELECT * FROM rated_usage ORDER BY booking")
    assert first["without_answer"] is None
    assert third["without_answer"] is None
    assert second["without_answer"]["quantity"] == "15"
    assert second["without_answer"]["terms"] == second["answer"]["terms"] != first["answer"]["terms"]
    assert [row["period_unlimited"] for row in (first, second, third)] == [40, 70, 72]


def test_a_price_corrected_in_place_and_an_agreed_one_are_new_terms_too(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 15)
    world.rate()
    rater.catalog = parse(CATALOGUE.replace("unit_amount: 1}", "unit_amount: 9}", 1))
    use(world, 1, 1)
    world.rate(1)
    assert world.amounts("storage") == {0: 40, 1: 9}
    agreed = "acme: {rate_card: card, prices: {storage: {model: per_unit, unit_amount: 6}}}"
    rater.catalog = parse(CATALOGUE.replace("acme: {rate_card: card}", agreed))
    use(world, 2, 2)
    world.rate(2)
    assert world.amounts("storage") == {0: 40, 1: 9, 2: 12}


def test_an_openclaw_that_tells_no_version_is_asked_with_and_without_in_each_run(place: tuple[World, Rater]) -> None:
    world, rater = place
    rater.plain = True
    use(world, 0, 15)
    use(world, 1, 1)
    world.rate(hours=2)
    rater.now = NEW
    use(world, 300, 10)
    use(world, 301, 1)
    world.rate(300, 2)
    assert world.amounts("storage") == {0: 40, 1: 1, 300: 28, 301: 2}
    assert rater.asked == [15, 16, 26, 16, 27]


def test_prices_that_change_between_two_questions_are_asked_for_again(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 15)
    world.rate()
    moments = iter([NEW, OLD, NEW, NEW])

    def changing(asked: Asked) -> Step:
        rater.now = next(moments)
        return rater(asked)

    with scripted(answer=changing) as openclaw:
        use(world, 1, 10)
        World(world.ledger, openclaw.url, world.catalog).rate(1)
    assert world.amounts("storage") == {0: 40, 1: 30}


def test_prices_that_never_stand_still_leave_the_hour_due(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 15)
    world.rate()
    rater.now = NEW

    def restless(asked: Asked) -> Step:
        status, body = rater(asked)
        return status, {**body, "terms": str(len(rater.asked))}

    with scripted(answer=restless) as openclaw:
        use(world, 1, 10)
        rated = World(world.ledger, openclaw.url, world.catalog).rate(1)
    assert (rated.booked, rated.retry) == (0, 1)
    assert world.rate(1).booked == 1
    assert booked(world) == 70


def test_rerating_makes_one_price_of_two_and_goes_on_from_there(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 15)
    world.rate()
    rater.now = NEW
    use(world, 300, 10)
    world.rate(300)
    assert booked(world) == 70
    again = {"period": "2026-11", "why": "as agreed", "by": "ann", "now": NOW}
    done = rerate(world.ledger, world.catalog, world.openclaw, run_id="again", **again)
    assert done.differences == {"USD": cost("storage", 25, 1) - 70}
    assert booked(world) == cost("storage", 25, 1) == 97
    assert [r["reason"] for r in world.rows("SELECT * FROM rated_usage ORDER BY booking")] == ["first"] * 2 + [
        "rerated"
    ]
    assert rerate(world.ledger, world.catalog, world.openclaw, run_id="twice", **again).changed == 0
    use(world, 301, 4)
    world.rate(301)
    assert booked(world) == cost("storage", 29, 1)


def test_a_currency_that_changes_within_the_period_is_refused(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 15)
    world.rate()
    other = World(world.ledger, world.url, parse(CATALOGUE.replace("USD", "EUR")))
    rater.catalog = other.catalog
    use(world, 1, 1)
    assert other.rate(1).refused == 1
    assert "change currencies at the end of a period" in world.rows("SELECT * FROM rating_failures")[0]["error"]


@st.composite
def _histories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Steps: usage of an hour (again: a new total of it), a run over some hours, or a change of prices."""
    steps = st.tuples(
        st.sampled_from(["use", "use", "run", "prices"]), st.integers(0, 5), st.integers(0, 40)
    )  # fmt: skip
    return draw(st.lists(steps, min_size=1, max_size=14))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_histories())
def test_what_is_booked_is_the_sum_of_what_each_price_says_of_its_part(
    place: tuple[World, Rater], history: list[tuple[str, int, int]]
) -> None:
    world, rater = place
    with world.ledger.transaction() as c:
        c.execute(text("SET session_replication_role = replica"))  # the ledger itself lets nobody delete
        for table in ("rated_usage", "metered_usage", "rating_failures"):
            c.execute(text(f"DELETE FROM {table}"))
        c.execute(text("SET session_replication_role = DEFAULT"))
    rater.now, version = OLD, 0
    metered: dict[int, int] = {}
    rated: dict[int, int] = {}
    expected: Decimal | None = None
    for what, hour, number in [*history, ("run", 0, 40)]:
        if what == "use":
            metered[hour] = number
            use(world, hour, number)
        elif what == "prices":
            version = 1 - version
            rater.now = (OLD, NEW)[version]
        else:
            hours = range(hour, min(hour + number, 5) + 1)
            before = sum(rated.values())
            changed = {h: metered[h] for h in hours if h in metered and rated.get(h) != metered[h]}
            first = not rated
            rated |= changed
            if changed:
                # Within one version, any order of hours telescopes to the same difference.
                base = Decimal(0) if first else cost("storage", before, version)
                expected = (expected or 0) + cost("storage", sum(rated.values()), version) - base
            world.rate(hour, len(hours))
    assert booked(world) == (expected or 0)
    if version == 0 and all(what != "prices" for what, _, _ in history) and rated:
        assert booked(world) == cost("storage", sum(metered.values()))


# --- what only the whole period knows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "open_amount", "whole"),
    [(10, 20, 50), (25, 50, 50), (30, 60, 60), (50, 100, 100), (80, 100, 100), (0, 0, 50)],
)
def test_a_minimum_is_booked_at_the_close_and_a_maximum_holds_at_once(
    place: tuple[World, Rater], used: int, open_amount: int, whole: int
) -> None:
    world, rater = place
    use(world, 3, used, "seats")
    world.rate(3)
    assert world.amounts("seats") == {3: open_amount}
    rater.now = OLD  # the same prices throughout
    close(world)
    assert world.amounts("seats") == {3: open_amount, LAST: whole - open_amount}
    assert booked(world, "seats") == cost("seats", used)
    world.rate(hours=LAST + 1)
    assert len(world.rows("SELECT * FROM rated_usage")) == 2, "run again, nothing is booked"


def test_a_backfill_of_the_whole_period_books_the_minimum_on_its_last_hour_too(place: tuple[World, Rater]) -> None:
    world, _ = place
    for hour in range(0, 700, 100):
        use(world, hour, 2, "seats")
    close(world)
    assert world.amounts("seats") == {**dict.fromkeys(range(0, 700, 100), 4), LAST: 22}


def test_usage_in_the_last_hour_carries_the_true_up_itself(place: tuple[World, Rater]) -> None:
    world, _ = place
    use(world, 0, 10, "seats")
    use(world, LAST, 5, "seats")
    close(world)
    assert world.amounts("seats") == {0: 20, LAST: 30}
    assert [r["events"] for r in world.rows("SELECT * FROM metered_usage ORDER BY hour")] == [1, 1]


@pytest.mark.parametrize(("late", "whole"), [(4, 50), (30, 80), (90, 100), (0, 50)])
def test_late_data_after_the_true_up_counts_it_in(place: tuple[World, Rater], late: int, whole: int) -> None:
    world, _ = place
    use(world, 3, 10, "seats")
    close(world)
    assert booked(world, "seats") == 50
    use(world, 8, late, "seats")
    world.rate(8)
    assert booked(world, "seats") == whole == cost("seats", 10 + late)
    use(world, 3, 0, "seats")  # and what was too much is taken back
    world.rate(3)
    assert booked(world, "seats") == cost("seats", late)


def test_a_group_first_seen_after_the_close_gets_its_minimum(place: tuple[World, Rater]) -> None:
    world, _ = place
    close(world)
    assert world.amounts("seats") == {}
    use(world, 5, 1, "seats")
    world.rate(5)
    assert world.amounts("seats") == {5: 50}


def test_an_hour_that_failed_and_comes_after_the_close_is_whole(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 3, 10, "seats")
    use(world, 4, 30, "seats")
    down = [True]

    def failing(asked: Asked) -> Step:
        return (503, "down") if down[0] and asked.json["quantity"] in ("10", "30") else rater(asked)

    with scripted(answer=failing) as openclaw:
        weak = World(world.ledger, openclaw.url, world.catalog)
        close(weak)
        assert weak.amounts("seats") == {LAST: 50}, "the zero of the last hour was rated, the others were not"
        down[0] = False
        weak.rate(hours=5)
    assert booked(world, "seats") == cost("seats", 40) == 80


def test_limits_hold_for_all_that_is_booked_whichever_prices_it_had(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 10, "seats")
    world.rate()
    rater.now = NEW
    use(world, 300, 5, "seats")
    world.rate(300)
    assert world.amounts("seats") == {0: 20, 300: 15}
    close(world)
    assert booked(world, "seats") == 60, "the newer minimum, of the whole period"
    use(world, 301, 100, "seats")
    world.rate(301)
    assert booked(world, "seats") == 120, "the newer maximum, of the whole period"


def test_an_openclaw_that_tells_no_limits_comes_to_the_same_total(place: tuple[World, Rater]) -> None:
    world, rater = place
    rater.plain = True
    use(world, 0, 10, "seats")
    use(world, 1, 30, "seats")
    world.rate(hours=2)
    assert world.amounts("seats") == {0: 50, 1: 30}, "its minimum shows with the first hour"
    close(world)
    assert booked(world, "seats") == cost("seats", 40)


def test_rerating_before_and_after_the_close(place: tuple[World, Rater]) -> None:
    world, rater = place
    use(world, 0, 10, "seats")
    world.rate()
    given = {"period": "2026-11", "why": "w", "by": "b", "now": NOW, "run_id": "r"}
    rater.now = NEW
    assert rerate(world.ledger, world.catalog, world.openclaw, **given).differences == {"USD": 10}
    close(world)
    assert booked(world, "seats") == 60
    rater.now = OLD
    assert rerate(world.ledger, world.catalog, world.openclaw, **given).differences == {"USD": -10}
    assert booked(world, "seats") == 50


def test_each_dimension_set_closes_by_itself_and_periods_in_between_too(place: tuple[World, Rater]) -> None:
    world, _ = place
    world.meter(0, 1, service="storage", dimensions="cold")
    world.meter(31 * 24, 2, service="storage", dimensions="hot")  # in December
    january = datetime(2027, 2, 1, tzinfo=UTC)
    zeros = meter_unused(world.ledger, world.catalog, start=START, end=january, now=january, run_id="r")
    assert zeros == [END - HOUR, datetime(2026, 12, 31, 23, tzinfo=UTC)]
    assert meter_unused(world.ledger, world.catalog, start=START, end=january, now=january, run_id="r") == []
    rows = world.rows("SELECT dimensions FROM metered_usage WHERE events = 0 ORDER BY hour")
    assert [row["dimensions"] for row in rows] == ["cold", "hot"]


# --- proration -------------------------------------------------------------------------------------------------------

PRORATED = (
    CATALOGUE.replace("maximum: 100}", "maximum: 100, prorate: true}")
    .replace("maximum: 120}", "maximum: 120, prorate: true}")
    .replace("2026-11-11", "2027-11-11")
)


def prorated(world: World, rater: Rater, tenant: str) -> World:
    rater.catalog = parse(PRORATED.replace("acme: {rate_card: card}", f"acme: {{rate_card: card, {tenant}}}"))
    return World(world.ledger, world.url, rater.catalog)


def test_a_subscription_that_starts_within_the_period_owes_its_share(place: tuple[World, Rater]) -> None:
    world = prorated(*place, "starts: 2026-11-16")
    _, rater = place
    rater.now = datetime(2026, 11, 20, tzinfo=UTC)
    use(world, 400, 2, "seats")
    world.rate(400)
    rater.now = END + world.catalog.calendar.metering_lag  # when the last hour is rated
    close(world)
    assert world.amounts("seats") == {400: 4, LAST: 21}, "15 of 30 days: 25 of 50"
    rater.now = END + timedelta(days=3)
    use(world, 31 * 24, 1, "seats")
    world.rate(31 * 24)
    rater.now = datetime(2027, 1, 1, 0, 10, tzinfo=UTC)
    close(world, datetime(2027, 1, 1, tzinfo=UTC))
    assert world.amounts("seats")[31 * 24 + LAST] == 48, "the next one is whole"


def test_a_cancellation_within_the_period_is_its_close(place: tuple[World, Rater]) -> None:
    world, rater = prorated(*place, "ends: 2026-11-10"), place[1]
    rater.now = datetime(2026, 11, 2, tzinfo=UTC)
    use(world, 24, 3, "seats")
    world.rate(24)
    ends = datetime(2026, 11, 10, tzinfo=UTC)
    rater.now = ends + world.catalog.calendar.metering_lag
    close(world, ends)
    last = 9 * 24 - 1
    assert world.amounts("seats") == {24: 6, last: 9}, "9 of 30 days: 15 of 50"
    # What is used all the same is billed, and counts against what was trued up.
    use(world, 300, 10, "seats")
    world.rate(300)
    assert booked(world, "seats") == 26
    close(world)
    assert booked(world, "seats") == 26, "the period does not close twice"
    rater.now = datetime(2027, 1, 1, 0, 10, tzinfo=UTC)
    close(world, datetime(2027, 1, 1, tzinfo=UTC))
    assert booked(world, "seats") == 26, "and there is no other"


def test_no_usage_at_all_in_a_share_of_the_period(place: tuple[World, Rater]) -> None:
    world, rater = prorated(*place, "starts: 2026-11-25"), place[1]
    with world.ledger.transaction() as c:
        c.execute(
            text(
                "INSERT INTO stripe_customers (tenant_id, customer_id, subscription_id, currency, livemode, mapped_at)"
                " VALUES ('acme', 'cus_1', 'sub_1', 'USD', false, now())"
            )
        )
        c.execute(text("INSERT INTO stripe_items VALUES ('acme', 'seats', 'si_1', 'p', 'm', 'm', 'b', now())"))
    for month in (11, 12):
        end = datetime(2026 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        rater.now = end + world.catalog.calendar.metering_lag
        close(world, end)
    assert [plain(amount) for amount in world.amounts("seats").values()] == ["10", "50"]


# --- the arithmetic itself -------------------------------------------------------------------------------------------


def answer(unlimited: Decimal, maximum: Decimal | None, minimum: Decimal | None, terms: str) -> Answer:
    return Answer(unlimited, "USD", terms, {}, Decimal(1), unlimited, maximum, minimum)


AMOUNTS = st.decimals(0, 10**9, places=SCALE, allow_nan=False).map(lambda d: rounded(d, SCALE))


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, st.booleans()), min_size=1, max_size=12), AMOUNTS, AMOUNTS)
def test_a_period_is_never_above_its_maximum_nor_closed_below_its_minimum(
    answers: list[tuple[Decimal, Decimal, bool]], one: Decimal, other: Decimal
) -> None:
    minimum, maximum = sorted((one, other))
    standing, differences, terms = Standing(last=END), list[Decimal](), 0
    for unlimited, without, changes in answers:
        terms += changes
        after = standing.with_(
            Decimal(1), answer(unlimited, maximum, minimum, str(terms)), window=START,
            without=without if changes and standing.terms else None,
        )  # fmt: skip
        differences.append(total([after.amount, standing.amount.copy_negate()]))
        standing = after
        assert total(differences) == standing.amount <= maximum
    closed = standing.with_(Decimal(1), answer(standing.answered, maximum, minimum, str(terms)), window=END)
    assert closed.closed
    assert minimum <= closed.amount <= maximum
    if not any(changes for _, _, changes in answers):
        whole = price(
            parse(CATALOGUE).rate_cards["card"].versions[0].prices["seats"].model_copy(
                update={"unit_amount": Decimal(1), "minimum": minimum, "maximum": maximum}
            ),
            answers[-1][0],
        ).amount  # fmt: skip
        assert closed.amount == whole


def test_the_share_is_of_what_belongs_to_the_period() -> None:
    of = parse(PRORATED).rate_cards["card"].versions[0].prices["seats"]
    rating = price(of, Usage(Decimal(1)), share=Share(Decimal(9), Decimal(30)))
    assert (rating.amount, rating.unlimited, rating.minimum, rating.maximum) == (15, 2, 15, 30)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking.Asker.__init__, "__kwdefaults__", {"first_pause": 0.001})
