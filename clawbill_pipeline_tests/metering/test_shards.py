"""An hour in shards: together they are what the hour is as a whole, and it is metered once all of them are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.sharding import BUCKETS, DUCK_BUCKET, Shard, Share, bucket, shards
from clawbill_pipeline.ledger.sharing import Sharing
from clawbill_pipeline.metering import late_hours
from clawbill_pipeline.metering.ahead import meter_ahead
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.metering.world import HOUR, NOW, START, Event, World, event, world

TENANTS = ["acme", "globex", "kathmandu", "nobody-knows", "Zürich", *(f"t-{number}" for number in range(12))]
SHARING = Sharing({"globex": "acme"}, {"acme": ("globex",)})
#: What is compared; the rest says when and by which run.
TABLES = {
    "metered_usage": "hour, tenant_id, service, dimensions, window_start, revision, quantity, events, reason",
    "quarantine": "source, uri, place, reason, field, detail, raw, tenant_id, landing_id",
    "metered_hours": "hour, landings, events, duplicates, conflicts, changed",
    "unique_values": "service, tenant_id, dimensions, period_start, value, hour, window_start",
    "hour_recounts": "hour, asked > done",
}


@contextmanager
def fresh_world(folder: Path, server: AnyServer, template: str) -> Iterator[World]:
    with fresh_database(server, template=template) as name, world(folder, server.url(name)) as place:
        # Two tenants whose hashes are far apart share a customer.
        with place.ledger.transaction() as c:
            c.execute(
                text("INSERT INTO stripe_customers (tenant_id, customer_id, subscription_id, currency, livemode,"
                     " mapped_at, payer_id) VALUES ('acme', 'cus_1', 'sub_1', 'USD', false, :now, NULL),"
                     " ('globex', 'cus_1', 'sub_1', 'USD', false, :now, 'acme')"), {"now": NOW},
            )  # fmt: skip
        yield place


def contents(place: World) -> dict[str, list[str]]:
    return {
        table: sorted(str(tuple(row.values())) for row in place.rows(f"SELECT {columns} FROM {table}"))
        for table, columns in TABLES.items()
    }


def meter_all(place: World, of: int, chance: random.Random, first: int = 0, hours: int = 1) -> None:
    parts = shards(of)
    chance.shuffle(parts)
    for part in parts:
        place.meter(first, hours, shard=part)


@pytest.fixture
def place(tmp_path: Path, postgres_server: AnyServer, ledger_template: str) -> Iterator[World]:
    with fresh_world(tmp_path, postgres_server, ledger_template) as made:
        yield made


def test_a_tenant_has_one_bucket_everywhere_and_for_ever(ledger_url: str) -> None:
    assert [bucket(tenant) for tenant in ("acme", "globex", "Zürich")] == [130, 91, 66]
    ledger = Ledger(ledger_url)
    with ledger.transaction() as c, duckdb.connect() as db:
        for tenant in TENANTS:
            assert c.scalar(text("SELECT bucket(:tenant)"), {"tenant": tenant}) == bucket(tenant)
            found = db.execute(f"SELECT {DUCK_BUCKET.format(tenant='$tenant')}", {"tenant": tenant}).fetchone()
            assert found == (bucket(tenant),)
    ledger.dispose()


@given(st.integers(1, BUCKETS))
def test_shards_have_every_bucket_once(of: int) -> None:
    parts = [Shard(number, of) for number in range(1, of + 1)]
    assert [each for part in parts for each in part.buckets] == list(range(BUCKETS))
    assert all(part.number == each * of // BUCKETS + 1 for part in parts for each in part.buckets)
    assert all(Shard.parse(str(part)) == part for part in parts)


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "1/257", "a/b", "-1/4", "1/2/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ValueError, match="no shard"):
        Shard.parse(text)


@st.composite
def landings(draw: st.DrawFn) -> list[list[Event]]:
    """Some landings of three hours: duplicates, contradictions within an hour and across hours, all aggregations."""
    ids = st.sampled_from([f"e{number}" for number in range(8)])
    one = st.builds(
        event, ids, st.integers(0, 179), st.integers(1, 3), tenant_id=st.sampled_from(TENANTS),
        service=st.sampled_from(["calls", "tokens", "jobs", "seats", "disk", "users", "members"]),
        user=st.sampled_from(["ann", "bob"]), line=st.integers(1, 10_000),
    )  # fmt: skip
    return draw(st.lists(st.lists(one, min_size=1, max_size=25), min_size=1, max_size=4))


def check_joined(
    folders: pytest.TempPathFactory,
    server: AnyServer,
    template: str,
    arrivals: list[list[Event]],
    of: int,
    seed: int,
    hours: int = 3,
) -> None:
    found = []
    for parts in (1, of):
        with fresh_world(folders.mktemp("lake"), server, template) as place:
            chance = random.Random(seed)
            for arrival in arrivals:
                place.land(arrival)
                for hour in range(hours):
                    meter_all(place, parts, chance, hour)
            for hour, _ in late_hours(place.ledger, before=NOW, missed_before=NOW):  # members that moved
                meter_all(place, parts, chance, (hour - START) // HOUR)
            found.append(contents(place))
    whole, joined = found
    assert joined == whole


def test_joined_shards_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: AnyServer, ledger_template: str
) -> None:
    chance = random.Random(8)
    services = ["calls", "tokens", "jobs", "seats", "disk", "users", "members"]
    arrivals = [
        [
            event(
                f"e{chance.randrange(40)}", chance.randrange(120), chance.randint(1, 3), line=line,
                tenant_id=chance.choice(TENANTS), service=chance.choice(services), user=chance.choice(["ann", "bob"]),
            )
            for line in range(150)
        ]
        for _ in range(2)
    ]  # fmt: skip
    check_joined(tmp_path_factory, postgres_server, ledger_template, arrivals, 2, 8, hours=2)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(landings(), st.integers(2, 5), st.integers(0))
def test_any_landings_in_any_number_of_shards_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: AnyServer,
    ledger_template: str,
    arrivals: list[list[Event]],
    of: int,
    seed: int,
) -> None:
    check_joined(tmp_path_factory, postgres_server, ledger_template, arrivals, of, seed)


def test_an_hour_is_metered_once_its_last_shard_is(place: World) -> None:
    place.land([event("1"), event("2", 1, tenant_id="kathmandu"), event("3", 2, tenant_id="t-1")])
    missed = {"before": NOW, "missed_before": NOW}
    first = place.meter(shard=Shard(1, 3))
    assert (first.shard, first.awaited_shards) == ("1/3", (2, 3))
    place.meter(shard=Shard(3, 3))
    assert place.rows("SELECT * FROM metered_hours") == []
    assert late_hours(place.ledger, **missed) == [(START, 1)]
    assert place.meter(shard=Shard(2, 3)).awaited_shards == ()
    (hour,) = place.rows("SELECT landings, events FROM metered_hours")
    assert hour == {"landings": 1, "events": 3}
    assert late_hours(place.ledger, **missed) == []


def test_an_invoice_does_not_wait_for_a_shard_that_fails(place: World) -> None:
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    place.meter(shard=Shard(1, 2))
    of_second = [tenant for tenant in TENANTS if Share(Shard(2, 2), SHARING).holds(tenant)]
    given = {"start": START, "until": START + HOUR, "now": NOW, "run_id": "draft"}
    assert meter_ahead(place.ledger, place.lake, place.catalog, tenants=of_second[:1], **given) == [START]
    held = {tenant for _, tenant, *_ in place.held()}
    assert held == {*TENANTS} - {*of_second[1:]}
    assert place.meter(shard=Shard(2, 2)).new_revisions == len(of_second) - 1


def test_a_landing_that_only_some_shards_have_seen_is_still_to_be_counted(place: World) -> None:
    place.land([event("1"), event("2", 1, tenant_id="kathmandu")])
    place.meter(shard=Shard(1, 2))
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    place.meter(shard=Shard(2, 2))
    assert late_hours(place.ledger, before=NOW) == [(START, 2)]
    place.meter(shard=Shard(1, 2))
    assert late_hours(place.ledger, before=NOW) == []
    assert sum(place.held().values()) == 2 + len(TENANTS)


def test_another_number_of_shards_begins_anew(place: World) -> None:
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    place.meter(shard=Shard(1, 2))
    for number in (3, 4):
        place.meter(shard=Shard(number, 4))
    assert place.rows("SELECT * FROM metered_hours") == []
    place.meter(shard=Shard(1, 4))
    assert place.meter(shard=Shard(2, 4)).awaited_shards == ()
    assert sum(place.held().values()) == len(TENANTS)
    assert {row["revision"] for row in place.rows("SELECT revision FROM metered_usage")} == {1}


def test_shards_of_two_layouts_and_the_whole_hour_at_once(place: World) -> None:
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    with ThreadPoolExecutor(4) as workers:
        parts = [*shards(2), None, *shards(3), *shards(2)]
        done = list(workers.map(lambda part: place.meter(shard=part), parts))
    assert sum(each.new_revisions for each in done) == len(TENANTS) == sum(place.held().values())
    assert {row["revision"] for row in place.rows("SELECT revision FROM metered_usage")} == {1}


def test_tenants_that_come_to_share_a_customer_are_in_no_gap(place: World) -> None:
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    place.meter(shard=Shard(1, 2))
    with place.ledger.transaction() as c:
        c.execute(text("UPDATE stripe_customers SET payer_id = NULL, customer_id = 'cus_2' WHERE tenant_id = 'globex'"))
    assert place.meter(shard=Shard(2, 2)).awaited_shards == (1,)
    assert place.meter(shard=Shard(1, 2)).awaited_shards == ()
    assert sum(place.held().values()) == len(TENANTS)


def test_an_hour_is_due_again_where_tenants_moved_between_its_metering_and_what_comes_after(place: World) -> None:
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    for part in shards(2):
        place.meter(shard=part)
    given = {"catalog": place.catalog, "now": NOW, "run_id": "run", "shard": Shard(2, 2)}
    plan(place.ledger, hours=(START, START + HOUR), **given)
    assert late_hours(place.ledger, before=NOW) == []
    with place.ledger.transaction() as c:
        c.execute(text("UPDATE stripe_customers SET payer_id = NULL, customer_id = 'cus_2' WHERE tenant_id = 'globex'"))
    plan(place.ledger, hours=(START, START + HOUR), **given)
    assert late_hours(place.ledger, before=NOW) == [(START, 2)]
    for part in shards(2):
        place.meter(shard=part)
    assert late_hours(place.ledger, before=NOW) == []


def test_a_shard_takes_nothing_from_the_others(place: World) -> None:
    place.land([event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS])
    place.meter()
    for part in shards(3):
        assert place.meter(shard=part).new_revisions == 0
    place.land([event(f"y-{tenant}", 4, tenant_id=tenant) for tenant in TENANTS])
    late = [place.meter(shard=part) for part in shards(3)]
    assert sum(each.late_revisions for each in late) == len(TENANTS)
    assert all(each.late_revisions for each in late)


def test_tenants_that_share_a_customer_never_part() -> None:
    for part in shards(BUCKETS):
        share = Share(part, SHARING)
        assert share.holds("globex") == share.holds("acme")


def test_ids_are_looked_for_across_hours_that_were_metered_another_way(place: World) -> None:
    """The index of a neighbour may be of all tenants, or of a shard's; or there may be none yet."""
    used = [event(f"x-{tenant}", 3, tenant_id=tenant) for tenant in TENANTS]
    place.land(used)
    place.meter(0)
    place.land([e._replace(at=e.at + timedelta(hours=1)) for e in used])
    for part in shards(2):
        place.meter(1, shard=part)
    place.land([e._replace(at=e.at + timedelta(hours=2)) for e in used])
    for part in shards(3):
        place.meter(2, shard=part)
    assert sum(place.held().values()) == len(TENANTS)
    assert len(place.rows("SELECT 1 FROM quarantine")) == 2 * len(TENANTS)
