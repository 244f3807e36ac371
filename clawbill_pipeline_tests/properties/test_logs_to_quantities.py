"""From logs to quantities by the real functions, against plain Python: conservation, idempotence, order-free."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import meter
from clawbill_pipeline.usage import land
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
HOURS = 3
HOUR = timedelta(hours=1)
TABLES = ("landings", "landed_hours", "metered_usage", "metered_hours", "quarantine")
PACKED = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}


_HELD = text("""
    SELECT DISTINCT ON (hour, tenant_id, service, dimensions) hour, tenant_id, service, dimensions, quantity
    FROM metered_usage ORDER BY hour, tenant_id, service, dimensions, revision DESC
""")


class Event(NamedTuple):
    event_id: str
    tenant_id: str
    service: str
    model: str
    seconds: int
    quantity: Decimal

    @property
    def line(self) -> bytes:
        at = START + timedelta(seconds=self.seconds)
        said: dict[str, Any] = self._asdict() | {
            "provider": "p",
            "timestamp": at.isoformat(),
            "quantity": str(self.quantity),
        }
        del said["seconds"]
        return json.dumps(said).encode() + b"\n"

    @property
    def window(self) -> tuple[datetime, str, str, str]:
        return (
            START + self.seconds // 3600 * HOUR,
            self.tenant_id,
            self.service,
            "p/" + self.model if self.model else "",
        )


events = st.lists(
    st.builds(
        Event,
        st.integers(0, 10**9).map(str),
        st.sampled_from(["acme", "globex", "initech"]),
        st.just("tokens.input"),
        st.sampled_from(["large", "small"]),
        st.integers(0, HOURS * 3600 - 1),
        st.decimals(0, 10**6, places=12),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda event: event.event_id,
)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(events, st.randoms(use_true_random=False), st.integers(1, 3), st.integers(0, 3))
def test_conservation_idempotence_and_order_free(
    postgres_server: AnyServer,
    ledger_template: str,
    tmp_path_factory: pytest.TempPathFactory,
    used: list[Event],
    chance: random.Random,
    arrivals: int,
    broken: int,
) -> None:
    """Landed and metered bit by bit: any order, any split into files, twice, late, and among broken lines."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "logs").mkdir()
    source = {"name": "logs", "kind": "json_lines", "path": "logs", "pattern": "*.jsonl"}
    catalog = catalogue(source, folder=folder)
    twice = chance.sample(used, len(used) // 3)
    lines = [event.line for event in [*used, *twice]] + [b'{"event_id": "no more"}\n'] * broken
    chance.shuffle(lines)
    expected: Counter[tuple[datetime, str, str, str]] = Counter()
    for event in used:
        expected[event.window] += event.quantity  # type: ignore[assignment] - a Counter counts Decimals just as well

    with fresh_database(postgres_server, template=ledger_template) as name:
        ledger, lake = Ledger(postgres_server.url(name)), Lake(folder / "lake")

        def run(first: int, hours: int) -> Any:
            start = START + first * HOUR
            result = meter(ledger, lake, catalog, start=start, end=start + hours * HOUR, now=NOW, run_id="run")
            assert all(check.passed for check in result.checks), result
            return result

        def rows() -> list[list[str]]:
            with ledger.transaction() as connection:
                return [sorted(map(str, connection.execute(text(f"SELECT * FROM {table}")))) for table in TABLES]

        read = taken = aside = 0
        for arrival in range(arrivals):
            for number, part in enumerate((lines[arrival::arrivals][0::2], lines[arrival::arrivals][1::2])):
                suffix = chance.choice(list(PACKED))
                (folder / "logs" / f"{arrival}-{number}{suffix}").write_bytes(PACKED[suffix](b"".join(part)))
            landed = land(catalog, lake, ledger, now=NOW, run_id="run")
            read, taken, aside = read + landed.lines, taken + landed.event_lines, aside + landed.quarantined
            run(chance.randrange(HOURS), 1)  # an hour is metered before all of it has come
        metered = run(0, HOURS)

        # Conservation: every line is an event, a duplicate or set aside, and every event is in a quantity.
        assert (read, taken, aside) == (len(lines), len(used) + len(twice), broken)
        assert (metered.events, metered.duplicates, metered.conflicts) == (taken, len(twice), 0)
        # Order-free: what one full computation in plain Python comes to.
        with ledger.transaction() as connection:
            held = connection.execute(_HELD).all()
        assert {tuple(row[:4]): row.quantity for row in held if row.quantity} == {
            k: v for k, v in expected.items() if v
        }
        # Idempotence: done again, nothing is changed.
        before = rows()
        assert land(catalog, lake, ledger, now=NOW, run_id="again").landings == 0
        assert run(0, HOURS).new_revisions == 0
        assert rows() == before
        ledger.dispose()
