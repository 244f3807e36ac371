"""Inbox numbers: handed out in the order of commits, so that a cursor over them misses nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from sqlalchemy import text

from clawbill_pipeline.invoicing.landing import Landed, land, read_envelope
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline_tests.invoicing.objects import END, event, invoice


def landed(event_id: str) -> Landed:
    body = event(event_id, "invoice.created", invoice(), END)
    return Landed(read_envelope(body), body, {}, "webhook", datetime.now(UTC))


def land_one(ledger: Ledger, event_id: str) -> int:
    with ledger.transaction() as connection:
        return land(connection, [landed(event_id)])


def test_a_higher_number_is_never_visible_before_a_lower_one(ledger: Ledger) -> None:
    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            lock(connection, "stripe inbox numbers")
            other = pool.submit(land_one, ledger, "evt_second")
            here = "(SELECT oid FROM pg_database WHERE datname = current_database())"
            waits = text(f"SELECT count(*) FROM pg_locks WHERE NOT granted AND database = {here}")
            with ledger.transaction() as watcher:
                while not watcher.scalar(waits):
                    pass
            assert land(connection, [landed("evt_first")]) == 1
        assert other.result() == 1
    with ledger.transaction() as connection:
        found = list(connection.scalars(text("SELECT event_id FROM stripe_events ORDER BY id")))
    assert found == ["evt_first", "evt_second"]


def test_one_event_twice_in_one_batch_lands_once(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        assert land(connection, [landed("evt_1"), landed("evt_1"), landed("evt_2")]) == 2
