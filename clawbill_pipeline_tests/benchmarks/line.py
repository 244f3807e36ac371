"""The whole line over made-up usage, station by station: what benchmarks of growth measure. No table is made here.

Real functions, a real PostgreSQL, the rating server and the Stripe stand-in as processes of their own.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import duckdb
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.invoicing.close import close_drafts
from clawbill_pipeline.invoicing.inbox import apply_events
from clawbill_pipeline.invoicing.sweep import sweep_events
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.sharding import Shard
from clawbill_pipeline.ledger.sharding import shards as shards_of
from clawbill_pipeline.metering import meter
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reconciliation.summaries import read_summaries
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.usage import land
from clawbill_pipeline_tests.benchmarks.common import timed
from clawbill_pipeline_tests.benchmarks.rating import TOKEN, serving
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
PERIOD, NEXT = "2026-03", datetime(2026, 4, 1, tzinfo=UTC)
LAG = timedelta(minutes=10)
RUN = "00000000-0000-0000-0000-000000000000"  # as long as Dagster's

#: Ids are as random as UUIDs, which is the dearest kind for lake and metering; tenants and services come evenly.
_LOG = """
COPY (
    SELECT '{"event_id": "' || uuid || '", "tenant_id": "tenant-' || printf('%06d', h % $tenants) || '", "service": "'
        || 'service.' || h // $tenants % $services || '", "quantity": "'
        || CAST(h // 30000 % 1000000 AS DECIMAL(18, 3)) * 0.001 || '", "timestamp": "'
        || strftime($hour::TIMESTAMPTZ + to_microseconds(h % 3600000000), '%Y-%m-%dT%H:%M:%S.%fZ') || '"}'
    FROM (SELECT (hash(i, $hour) >> 2)::BIGINT AS h, md5(i::VARCHAR || $hour)::UUID AS uuid FROM range($events) t(i))
) TO '{target}' (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIM '\x1f'{options})
"""


def write_log(target: Path, hour: datetime, events: int, tenants: int, services: int) -> None:
    """A log of so many usage events of an hour, JSON lines, compressed where the name ends so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    query = _LOG.replace("{target}", str(target))
    query = query.replace("{options}", ", COMPRESSION zstd" if target.suffix == ".zst" else "")
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        given = {"hour": hour.isoformat(), "events": events, "tenants": tenants, "services": services}
        db.execute(query, given)


def catalogue(tenants: int, services: int, **more: object) -> str:
    """A catalogue of so many tenants, each with all services; a rate card of tiers."""
    tiers = [{"up_to": 1000, "unit_amount": "0.001"}, {"up_to": 10000, "unit_amount": "0.0005"}]
    price = {"model": "graduated", "tiers": [*tiers, {"up_to": None, "unit_amount": "0.0002"}]}
    names = [f"service.{number}" for number in range(services)]
    versions = [{"effective_from": "2026-01-01T00:00:00Z", "prices": dict.fromkeys(names, price)}]
    document = {
        "start": f"{START:%Y-%m-%dT%H:%M:%SZ}",
        "rating": {"concurrency": 32},
        "delivery": {"concurrency": 32, "calls_per_second": 10_000},
        "sources": [{"name": "app", "kind": "json_lines", "path": "usage", "pattern": "*.jsonl*"}],
        "services": {name: {"unit": "unit"} for name in names},
        "rate_cards": {"standard": {"currency": "USD", "versions": versions}},
        "tenants": {f"tenant-{number:06d}": {"rate_card": "standard"} for number in range(tenants)},
    }
    return json.dumps({**document, **more})  # which is YAML, too


class Step(NamedTuple):
    """``count`` things were done: seconds by the clock, of this process's processor, and of the database's."""

    count: int
    wall: float
    worker: float
    database: float


@dataclass
class Line:
    """A ledger, a lake, the stand-ins, and the functions that Dagster's assets call. ``steps``: what each took."""

    folder: Path
    catalog: Catalog
    ledger: Ledger
    lake: Lake
    openclaw: OpenClaw
    sandbox: Sandbox
    account: Account
    tenants: int
    services: int
    database_cpu: Callable[[], float] = lambda: 0.0
    steps: dict[str, list[Step]] = field(default_factory=dict)

    @property
    def stripe(self) -> StripeApi:
        return StripeApi(SecretStr(self.account.key), base=self.sandbox.url)

    def measured(self, step: str, count: Callable[[], int]) -> int:
        """Does a step, which says how many it did, and keeps what it took."""
        done: list[int] = []
        before = self.database_cpu()
        took = timed(lambda: done.append(count()))
        self.steps.setdefault(step, []).append(Step(done[0], took.wall, took.cpu, self.database_cpu() - before))
        return done[0]

    def provision(self, stream: bool = False) -> None:
        made = provision(self.ledger, self.catalog, self.stripe, now=START, run_id=RUN)
        assert not made.failed, made.failed[:3]
        if stream:  # which Stripe has in live mode only: who moves to it has the map changed by provisioning
            with self.ledger.transaction() as connection:
                connection.execute(text("UPDATE stripe_items SET backend = 'hour_meter_stream'"))

    def bill(self, hour: datetime, events: int, shards: int = 1) -> None:
        """An hour from its log to Stripe, the shards that it is shared out into one after the other."""
        write_log(self.folder / "usage" / f"{hour:%Y-%m-%dT%H}.jsonl", hour, events, self.tenants, self.services)
        end = hour + HOUR
        now = end + LAG
        self.sandbox.move_to(int(now.timestamp()))
        self.land(now)
        counts: Counter[str] = Counter()
        for shard in shards_of(shards):
            counts["metering"] += self.meter(hour, end, shard)
            given = {"shard": shard, "run_id": RUN}
            done = {
                "rating": lambda given=given: (
                    rate(self.ledger, self.catalog, self.openclaw, start=hour, end=end, now=now, **given).booked
                ),
                "planning": lambda given=given: (
                    plan(self.ledger, self.catalog, hours=(hour, end), now=now, **given).records
                ),
                "sending": lambda given=given: (
                    deliver(self.ledger, self.catalog, self.stripe, now=lambda: now, **given).delivered
                ),
            }
            counts.update({step: self.measured(step, work) for step, work in done.items()})
        assert len(set(counts.values())) == 1, counts

    def land(self, now: datetime) -> int:
        def landed() -> int:
            done = land(self.catalog, self.lake, self.ledger, now=now, run_id=RUN, finished=True)
            assert not done.quarantined, done.problems
            return done.events

        return self.measured("landing", landed)

    def meter(self, start: datetime, end: datetime, shard: Shard | None = None) -> int:
        given = {"start": start, "end": end, "now": end, "run_id": RUN, "shard": shard}
        return self.measured("metering", lambda: meter(self.ledger, self.lake, self.catalog, **given).rows)  # type: ignore[arg-type]

    def compare(self, now: datetime) -> None:
        """What happens once a day: Stripe is read back, and everything compared."""
        given = {"period": PERIOD, "now": now, "run_id": RUN}
        reading = self.measured(
            "reading back",
            lambda: read_summaries(self.ledger, self.catalog, self.stripe, **given).read,  # type: ignore[arg-type]
        )
        assert reading == self.tenants * self.services
        self.measured(
            "reconciling",
            lambda: len(reconcile(self.ledger, self.catalog, self.lake, **given).waterfall),  # type: ignore[arg-type]
        )

    def close(self) -> None:
        """The end of the period: drafts, their comparison, final invoices, payment."""

        def closed() -> int:
            now = NEXT + LAG
            self.sandbox.move_to(int(now.timestamp()))
            self._events(now)
            drafts = close_drafts(
                self.ledger, self.catalog, self.stripe, self.catalog.closing, now=now, run_id=RUN
            ).comparisons
            now = NEXT + 3 * HOUR
            self.sandbox.move_to(int(now.timestamp()))
            self._events(now)
            return len(drafts)

        assert self.measured("closing", closed) == self.tenants

    def _events(self, now: datetime) -> None:
        swept = sweep_events(self.ledger, self.stripe, since=now - timedelta(days=1), now=now)
        applied = apply_events(self.ledger, self.catalog, self.stripe, through=None, now=now, run_id=RUN)
        assert swept.landed, swept.problems
        assert not applied.failed, applied

    def vacuum(self) -> None:
        """What autovacuum does in the end: replaced rows make room, and plans are made for those there are."""
        with self.ledger.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))

    def rows(self) -> dict[str, int]:
        """Rows by table of the ledger."""
        with self.ledger.transaction() as connection:
            tables = connection.scalars(text(_TABLES)).all()
            return {name: connection.scalar(text(f"SELECT count(*) FROM {name}")) or 0 for name in tables}

    def bytes(self) -> dict[str, int]:
        """Bytes by table of the ledger, with all partitions, indexes and TOAST."""
        with self.ledger.transaction() as connection:
            return {row.name: int(row.bytes) for row in connection.execute(text(_BYTES))}

    def lake_bytes(self, of: str) -> int:
        return sum(path.stat().st_size for path in (self.folder / "lake" / of).rglob("*.parquet"))


_TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = 'ledger'::regnamespace AND relkind IN ('r', 'p')
  AND NOT relispartition ORDER BY 1
"""
_BYTES = """
SELECT c.relname AS name, (SELECT sum(pg_total_relation_size(t.relid)) FROM pg_partition_tree(c.oid) t
                           WHERE t.isleaf) AS bytes
FROM pg_class c WHERE relnamespace = 'ledger'::regnamespace AND relkind = 'p' AND NOT relispartition
UNION ALL
SELECT relname, pg_total_relation_size(oid) FROM pg_class
WHERE relnamespace = 'ledger'::regnamespace AND relkind = 'r' AND NOT relispartition
"""


def server_cpu(data: Path) -> Callable[[], float]:
    """Tells the processor seconds so far of the PostgreSQL server whose cluster is in ``data``, dead backends too."""

    def seconds() -> float:
        ticks = 0
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and (process / "cwd").readlink() == data:
                    fields = (process / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
                    ticks += sum(map(int, fields[11:15]))
            except OSError:
                continue
        return ticks / os.sysconf("SC_CLK_TCK")

    return seconds


@contextmanager
def line(folder: Path, url: str, tenants: int, services: int) -> Iterator[Line]:
    """A line in ``folder`` on the empty ledger at ``url``; nothing is provisioned yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "usage").mkdir()
    (folder / "catalog.yaml").write_text(catalogue(tenants, services), encoding="utf-8")
    ledger = Ledger(url)
    ledger.ensure_partitions([START])
    with ledger.transaction() as connection:
        data = Path(connection.scalar(text("SHOW data_directory")) or "")
    sandbox = Sandbox(folder / "stripe", now=int(START.timestamp()))
    try:
        with serving(folder, 1) as server:
            yield Line(
                folder,
                load(folder / "catalog.yaml"),
                ledger,
                Lake(folder / "lake"),
                OpenClaw(server.url, SecretStr(TOKEN), concurrency=32),
                sandbox,
                sandbox.account(),
                tenants,
                services,
                server_cpu(data),
            )
    finally:
        sandbox.stop()
        ledger.dispose()
