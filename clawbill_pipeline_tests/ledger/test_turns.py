"""Who waits for whom: runs of the same hours and tenants for one another, and nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock_all
from clawbill_pipeline.ledger.sharding import Shard
from clawbill_pipeline.ledger.turns import hours_turn

HOUR = datetime(2026, 11, 22, 14, tzinfo=UTC)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url)
    yield made
    made.dispose()


def waited(ledger: Ledger, held: Shard | None, wanted: Shard | None, hours: int = 1) -> frozenset[str]:
    """Whom a run for ``wanted`` waits for while another one has ``held`` of the hour."""
    several = [HOUR + number * timedelta(hours=1) for number in range(hours)]

    def want() -> frozenset[str]:
        with ledger.transaction() as connection:
            return hours_turn(connection, "metering", several, run_id="second", shard=wanted)

    with ThreadPoolExecutor() as other:
        with ledger.transaction() as connection:
            assert hours_turn(connection, "metering", [HOUR], run_id="first", shard=held) == frozenset()
            turn = other.submit(want)
            until = time.monotonic() + 1
            while time.monotonic() < until and not turn.done():
                time.sleep(0.01)
        return turn.result(30)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (None, None),
        (None, Shard(1, 2)),
        (Shard(1, 2), None),
        (Shard(2, 4), Shard(2, 4)),
        (Shard(1, 2), Shard(2, 3)),
        (Shard(1, 256), Shard(1, 2)),
    ],
)
def test_with_a_tenant_in_common_one_waits_for_the_other(
    ledger: Ledger, held: Shard | None, wanted: Shard | None
) -> None:
    assert waited(ledger, held, wanted) == {"run first"}


@pytest.mark.parametrize(
    ("held", "wanted"), [(Shard(1, 2), Shard(2, 2)), (Shard(1, 2), Shard(3, 3)), (Shard(3, 4), Shard(1, 3))]
)
def test_without_one_they_go_side_by_side(ledger: Ledger, held: Shard, wanted: Shard) -> None:
    assert waited(ledger, held, wanted) == frozenset()


def test_a_shard_of_many_hours_takes_a_lock_an_hour(ledger: Ledger) -> None:
    assert waited(ledger, Shard(1, 2), Shard(2, 2), hours=3) == {"run first"}


def test_who_locks_by_the_hours_name_is_waited_for_as_well(ledger: Ledger) -> None:
    with ThreadPoolExecutor() as other, ledger.transaction() as connection:
        lock_all(connection, [("metering", HOUR.isoformat())])

        def want() -> frozenset[str]:
            with ledger.transaction() as second:
                return hours_turn(second, "metering", [HOUR], run_id="second", shard=Shard(1, 2))

        turn = other.submit(want)
        time.sleep(0.5)
        assert not turn.done()
        connection.rollback()
        (name,) = turn.result(30)
    assert name.startswith("the session ")
