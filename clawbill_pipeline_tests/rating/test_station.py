"""Rating metered usage: what is booked, what stays due and why, against the real rating server and a scripted one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering.unused import meter_unused
from clawbill_pipeline.money import SCALE, plain, rounded, total
from clawbill_pipeline.rating import asking, station
from clawbill_pipeline.rating.engine import Usage
from clawbill_pipeline.rating.engine import rate as price
from clawbill_pipeline.rating.retries import drop, due_hours, run_retries, waiting
from clawbill_pipeline_tests.rating.scripted import Asked, Step, scripted
from clawbill_pipeline_tests.rating.world import CATALOGUE, NOW, World, real_openclaw


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_openclaw(tmp_path_factory.mktemp("openclaw")) as url:
        yield url


@pytest.fixture
def place(ledger: Ledger, server: str) -> World:
    return World(ledger, server)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking.Asker.__init__, "__kwdefaults__", {"first_pause": 0.001})


def storage(quantity: Decimal) -> Decimal:
    card = parse(CATALOGUE).rate_cards["card"].versions[0]
    return rounded(price(card.prices["storage"], Usage(quantity)).amount, SCALE)


def test_hours_are_rated_by_themselves_with_the_whole_answer_kept(place: World) -> None:
    place.meter(0, "2.5")
    place.meter(0, 1_000_000, service="tokens", dimensions="large")
    place.meter(0, 7, tenant="nippon", service="credits")
    rated = place.rate()
    assert (rated.due, rated.booked, rated.retry, rated.refused, rated.unmapped) == (3, 3, 0, 0, 0)
    assert rated.amounts == {"JPY": 7, "USD": Decimal("15.03075")}
    assert all(check.passed for check in rated.checks)
    calls, tokens, credits = place.rows("SELECT * FROM rated_usage ORDER BY service = 'credits', service")
    assert (calls["amount"], calls["basis"], calls["reason"], calls["currency"]) == (
        Decimal("0.03075"), "hourly", "first", "USD",
    )  # fmt: skip
    assert (tokens["amount"], tokens["answer"]["service"]) == (15, "tokens:large")
    assert (credits["amount"], credits["currency"]) == (7, "JPY")
    assert calls["answer"]["amount_cents"] == "3.075"
    assert calls["rate_card_version"] == calls["answer"]["rate_card_version"] == "card@2026-01-01T00:00:00Z"
    assert calls["latency_ms"] > 0


def test_rating_again_books_nothing_and_asks_nothing(place: World) -> None:
    place.meter(0, 3)
    place.meter(1, 4, service="storage")
    place.rate(hours=2)
    before = place.rows("SELECT * FROM rated_usage ORDER BY booking")
    with scripted() as idle:
        again = World(place.ledger, idle.url).rate(hours=2, run_id="another")
    assert (again.due, idle.requests) == (0, [])
    assert place.rows("SELECT * FROM rated_usage ORDER BY booking") == before


def test_a_new_metered_revision_is_rated_as_a_new_revision(place: World) -> None:
    place.meter(0, 3)
    place.rate()
    place.meter(0, 5)
    place.rate()
    rows = place.rows("SELECT * FROM rated_usage ORDER BY revision")
    assert [(r["revision"], r["metered_revision"], r["reason"], plain(r["amount"])) for r in rows] == [
        (1, 1, "first", "0.0369"), (2, 2, "late", "0.0615"),
    ]  # fmt: skip


def test_period_to_date_telescopes_to_the_rate_of_the_whole(place: World) -> None:
    quantities = [Decimal(q) for q in ("4", "0.000000000001", "9.5", "100", "0", "17.25")]
    for hour, quantity in enumerate(quantities):
        place.meter(hour, plain(quantity), service="storage")
    for hour in range(len(quantities)):
        place.rate(hour)
        so_far = total(quantities[: hour + 1])
        assert total(place.amounts("storage").values()) == storage(so_far)
    # A late change of an early hour is booked on that hour alone.
    before = place.amounts("storage")
    place.meter(0, 40, service="storage")
    place.rate(0)
    after = place.amounts("storage")
    assert {hour for hour in after if after[hour] != before[hour]} == {0}
    assert total(after.values()) == storage(total([*quantities[1:], Decimal(40)]))


def test_period_to_date_in_any_order_of_hours_and_runs(place: World) -> None:
    chance = random.Random(7)
    held: dict[int, int] = {}
    for hour in chance.sample(range(12), 12):
        for _ in range(chance.choice((1, 1, 2))):
            held[hour] = chance.randrange(60)
            place.meter(hour, held[hour], service="storage")
            if chance.random() < 0.6:
                place.rate(max(hour - 2, 0), 5)
    place.rate(hours=12)
    assert total(place.amounts("storage").values()) == storage(Decimal(sum(held.values())))


def test_two_runs_side_by_side_book_one_after_the_other(place: World) -> None:
    for hour in range(8):
        place.meter(hour, 7, service="storage")
        place.meter(hour, 1)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: place.rate(2 * n, 2), range(4)))
    assert [rated.booked for rated in (*done, place.rate(hours=8))] == [4, 4, 4, 4, 0]
    assert total(place.amounts("storage").values()) == storage(Decimal(56))
    with ThreadPoolExecutor(3) as pool:
        place.meter(0, 9)
        assert sorted(rated.booked for rated in pool.map(lambda _: place.rate(), range(3))) == [0, 0, 1]


def test_each_period_begins_anew(place: World) -> None:
    december = 30 * 24
    place.meter(december - 1, 10, service="storage")
    place.meter(december, 10, service="storage")
    place.rate(december - 1, 2)
    assert place.amounts("storage") == {december - 1: storage(Decimal(10)), december: storage(Decimal(10))}


def test_amounts_of_38_digits_keep_them_all(ledger: Ledger) -> None:
    def answer(asked: Asked) -> Step:
        return 200, {"amount_cents": asked.json["quantity"] + "00" if "." not in asked.json["quantity"] else "0"}

    with scripted(answer=answer) as server:
        place = World(ledger, server.url)
        place.meter(0, "11111111111111111111111111", service="storage")
        place.rate()
        place.meter(1, "2", service="storage")
        place.rate(1)
    assert [plain(amount) for amount in place.amounts("storage").values()] == ["11111111111111111111111111", "2"]


def test_a_tenant_that_fails_stays_due_and_everybody_else_is_billed(ledger: Ledger) -> None:
    down = {"globex"}

    def answer(asked: Asked) -> Step:
        return (503, "down") if asked.json["tenant_id"] in down else (200, {"amount_cents": 100})

    with scripted(answer=answer) as server:
        place = World(ledger, server.url)
        for tenant in ("acme", "globex", "initech"):
            place.meter(0, 1, tenant=tenant)
        rated = place.rate()
        assert (rated.booked, rated.retry, rated.unmapped) == (1, 1, 1)
        assert [check.passed for check in rated.checks] == [False, False]
        assert "globex calls: OpenClaw answered 503" in str(rated.checks[0].numbers["first"])
        assert rated.checks[1].numbers["tenants"] == "initech"
        assert place.failures() == [("globex", "retry", 1), ("initech", "unmapped", 1)]
        assert place.rate().booked == 0
        assert place.failures()[0] == ("globex", "retry", 2)
        down.clear()
        assert place.rate().booked == 1
        assert place.failures() == [("initech", "unmapped", 1)]
        tenants = parse(CATALOGUE + "  initech: {rate_card: card}\n")
        assert World(ledger, server.url, tenants).rate().booked == 1
        assert place.failures() == []


def test_a_service_that_left_the_catalogue_stops_nobody(ledger: Ledger) -> None:
    with scripted() as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.meter(0, 1, service="fax")
        assert (place.rate().booked, place.failures()) == (1, [("acme", "unmapped", 1)])


def test_what_openclaw_refuses_is_kept_with_its_answer_and_asked_once(ledger: Ledger) -> None:
    with scripted((422, {"title": "no price\0"}), (200, {"error": "no such tenant"})) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.meter(0, 1, tenant="globex")
        rated = place.rate()
        assert (rated.booked, rated.refused, len(server.requests)) == (0, 2, 2)
        rows = place.rows("SELECT * FROM rating_failures ORDER BY error DESC")
        assert "no price" in rows[1]["answer"]
        assert "amount_cents is missing" in rows[0]["error"]
        assert {row["next_attempt_at"] for row in rows} == {None}
        assert due_hours(ledger, now=NOW + timedelta(days=1)) == []
        assert place.rate().booked == 2, "a run of the hour asks again"


def test_an_answer_that_postgresql_could_not_hold_stops_nobody(ledger: Ledger) -> None:
    answers = itertools.cycle(['{"amount_cents": 1, "note": "\\u0000\\ud800"}', '{"amount_cents": 1}'])
    with scripted(answer=lambda _: (200, next(answers))) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.meter(0, 1, tenant="globex")
        assert place.rate().booked == 2


def test_negative_amounts_only_where_the_service_takes_usage_back(ledger: Ledger) -> None:
    with scripted(answer=lambda _: (200, {"amount_cents": -5})) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.meter(0, -1, service="credits")
        rated = place.rate()
        assert (rated.booked, rated.refused) == (1, 1)
        assert place.amounts("credits") == {0: Decimal("-0.05")}


def test_a_429_makes_all_wait_as_long_as_it_says(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted((429, "slow down", {"Retry-After": "1"})) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        slept: list[float] = []
        real = asking.asyncio.sleep

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await real(seconds)

        monkeypatch.setattr(asking.asyncio, "sleep", sleep)
        assert place.rate().booked == 1
    assert sum(slept) >= 0.9
    assert len(server.requests) == 2


def test_a_429_that_asks_for_an_hour_is_asked_again_by_a_later_run(ledger: Ledger) -> None:
    with scripted((429, "", {"Retry-After": "7200"})) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        assert (place.rate().retry, len(server.requests)) == (1, 1)
        (failure,) = waiting(ledger)
        assert failure.next_attempt_at is not None
        assert failure.next_attempt_at >= NOW + timedelta(hours=2)


def test_a_dead_server_is_left_alone(ledger: Ledger) -> None:
    with scripted(answer=lambda _: (500, "dead")) as server:
        place = World(ledger, server.url)
        for hour in range(60):
            place.meter(hour, 1)
        rated = place.rate(hours=60)
        assert rated.retry == 60
        assert asking.BREAKER <= len(server.requests) <= asking.BREAKER + place.catalog.rating.concurrency
    assert any("left alone" in failure.error for failure in waiting(ledger))


def test_a_chunk_that_is_booked_stays_booked(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(station, "CHUNK", 2)
    with scripted() as server:
        place = World(ledger, server.url)
        for hour in range(5):
            place.meter(hour, 1)
        monkeypatch.setattr(station, "_write_failures", _fail_at(3))
        with pytest.raises(ZeroDivisionError):
            place.rate(hours=5)
        assert len(place.amounts()) == 4
        monkeypatch.undo()
        assert place.rate(hours=5).booked == 1


def _fail_at(number: int):
    calls = itertools.count(1)

    def write(*_: object) -> None:
        if next(calls) == number:
            raise ZeroDivisionError

    return write


# --- the queue -----------------------------------------------------------------------------------------------------


def test_the_queue_asks_again_when_the_time_has_come(ledger: Ledger) -> None:
    broken = [True]
    with scripted(answer=lambda _: (503, "down") if broken[0] else (200, {"amount_cents": 100})) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.meter(3, 1, tenant="globex")
        place.rate(hours=4)
        assert {(w.tenant_id, w.kind, w.attempts) for w in waiting(ledger, kind="retry")} == {
            ("acme", "retry", 1), ("globex", "retry", 1),
        }  # fmt: skip
        assert [w.tenant_id for w in waiting(ledger, tenant_id="globex")] == ["globex"]
        asked = len(server.requests)
        early = run_retries(ledger, place.catalog, place.openclaw, now=NOW, run_id="early")
        assert (early.due, len(server.requests)) == (0, asked)
        soon = NOW + timedelta(minutes=2)
        failed = run_retries(ledger, place.catalog, place.openclaw, now=soon, run_id="soon")
        assert (failed.due, failed.retry, failed.hours) == (2, 2, ())
        assert all(w.next_attempt_at and w.next_attempt_at > soon for w in waiting(ledger))
        broken[0] = False
        place.meter(0, 9, tenant="acme", service="credits")  # never asked for: no affair of the queue
        done = run_retries(ledger, place.catalog, place.openclaw, now=NOW + timedelta(hours=1), run_id="later")
        assert (done.due, done.booked, len(done.hours)) == (2, 2, 2)
        assert waiting(ledger) == []
        assert place.amounts("credits") == {}


def test_a_newer_revision_takes_the_place_of_the_one_that_failed(ledger: Ledger) -> None:
    with scripted(answer=lambda _: (503, "down")) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.rate()
        place.meter(0, 2)
        place.rate()
        assert [(w.metered_revision, w.kind) for w in waiting(ledger)] == [(2, "retry")]


def test_a_dropped_row_is_on_record_and_never_asked_for_by_itself(ledger: Ledger) -> None:
    with scripted((503, "down"), (503, "down")) as server:
        place = World(ledger, server.url)
        place.meter(0, 1)
        place.rate()
        rows = waiting(ledger)
        given = {"why": "a test account", "by": "ann", "now": NOW, "run_id": "r"}
        assert drop(ledger, rows, **given) == 1
        assert drop(ledger, rows, **given) == 0
        assert due_hours(ledger, now=NOW + timedelta(days=9)) == []
        (record,) = place.rows("SELECT * FROM audit_trail")
        assert (record["kind"], record["tenant_id"], record["detail"]["why"]) == (
            "rating.dropped",
            "acme",
            "a test account",
        )
        assert waiting(ledger)[0].error == "dropped by ann: a test account"
        assert place.rate().booked == 1


# --- what only the whole period knows ------------------------------------------------------------------------------


def test_a_flat_fee_on_no_usage_is_booked_on_the_periods_last_hour(place: World) -> None:
    with place.ledger.transaction() as c:
        for tenant in ("acme", "globex"):
            c.execute(
                text("INSERT INTO stripe_customers VALUES (:t, 'cus_' || :t, 'sub_' || :t, 'USD', false, now())"),
                {"t": tenant},
            )
            c.execute(
                text("INSERT INTO stripe_items VALUES (:t, 'storage', 'si_' || :t, 'p', 'm', 'm', 'b', now())"),
                {"t": tenant},
            )
    place.meter(5, 10, tenant="globex", service="storage")
    end = place.catalog.tenants["acme"].period("2026-11").end
    given = {"start": end - timedelta(hours=1), "end": end, "run_id": "close"}
    assert meter_unused(place.ledger, place.catalog, now=end - timedelta(seconds=1), **given) == []
    last = 30 * 24 - 1
    assert meter_unused(place.ledger, place.catalog, now=end, **given) == [end - timedelta(hours=1)]
    assert meter_unused(place.ledger, place.catalog, now=end, **given) == []
    place.rate(last)
    assert place.amounts("storage") == {last: 5}
    # Usage that comes after all is the next revision, and the fee is not charged twice.
    place.meter(3, 20, service="storage")
    place.rate(hours=last + 1)
    assert total(place.amounts("storage").values()) == storage(Decimal(20))
