"""An hour of usage that waits to be billed, and runs of it as real processes that meet in the middle.

``python -m clawbill_pipeline_tests.deploy.overlaps HOUR`` makes a run of ``hourly_billing`` and prints the command that
a launcher starts it with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import psycopg
from dagster import DagsterInstance
from dagster._serdes import deserialize_value
from pydantic import SecretStr
from sqlalchemy import make_url, text

from clawbill_pipeline import processes
from clawbill_pipeline.catalog import load
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.stack import SANDBOX_KEY, Stack
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.scenarios.command import environment

HOUR = timedelta(hours=1)
TENANTS = [f"t-{number}" for number in range(9)]
#: What each tenant used, and what it costs at half a cent a call.
CALLS, AMOUNT = 3, Decimal("0.015")
CATALOGUE = """
version: 1
start: {start:%Y-%m-%dT%H:00:00Z}
calendar: {{metering_lag: {lag}m, late_window: 1h}}
metering: {{shards: {shards}}}
sources: [{{kind: json_lines, name: app, path: usage}}]
services: {{calls: {{unit: call}}}}
rate_cards:
  card:
    currency: USD
    versions: [{{effective_from: 2026-01-01T00:00:00Z, prices: {{calls: {{model: per_unit, unit_amount: "0.005"}}}}}}]
tenants:
"""


@dataclass
class Place:
    """A stack with an hour of usage whose tenants are at Stripe; ``hour`` is the newest that is over."""

    stack: Stack
    hour: datetime
    ledger: Ledger

    @property
    def partition(self) -> str:
        return f"{self.hour:%Y-%m-%d-%H:%M}"

    def write(self, name: str, hour: datetime) -> None:
        """A file with one more call of every tenant, CALLS times, all within the hour."""
        events = [
            {"event_id": f"{name}-{tenant}-{number}", "tenant_id": tenant, "service": "calls", "quantity": 1,
             "timestamp": (hour + timedelta(minutes=number)).isoformat()}
            for tenant in TENANTS for number in range(CALLS)
        ]  # fmt: skip
        folder = self.stack.state / "usage"
        fresh = folder / f".{name}"
        fresh.write_text("".join(json.dumps(event) + "\n" for event in events))
        fresh.rename(folder / f"{name}.jsonl")

    def execute(self, name: str, **tags: str) -> processes.Child:
        """A run of the hour in a process of its own, as `dagster job execute` makes it."""
        given = {"dagster/partition": self.partition, **tags}
        command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "clawbill_pipeline.definitions"]
        return self.start(name, [*command, "-j", "hourly_billing", "--tags", json.dumps(given)])

    def start(self, name: str, command: Sequence[str]) -> processes.Child:
        log = self.stack.state / "logs" / f"{name}.log"
        return processes.start(name, command, env=self.stack.env, log=log, cwd=self.stack.state)

    def launched(self) -> list[str]:
        """The command with which a launcher starts one run of the hour; it may be given more than once."""
        made = subprocess.run(
            [sys.executable, "-m", "clawbill_pipeline_tests.deploy.overlaps", self.partition],
            env=self.stack.env, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        command: list[str] = json.loads(made.stdout.splitlines()[-1])
        return [sys.executable, "-m", *command]

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Nobody writes quantities meanwhile: the first run waits for it, and further ones for the first."""
        with psycopg.connect(self._address) as connection:
            connection.execute("LOCK TABLE ledger.metered_usage IN SHARE MODE")
            yield

    def wait_for(self, child: processes.Child, others: int = 0) -> None:
        """Until a run waits for the one that holds things up, and so many ``others`` wait for it in turn."""
        with psycopg.connect(self._address, autocommit=True) as watcher:

            def all_wait() -> bool:
                found = [row[0] for row in watcher.execute(_WAITING)]
                return "relation" in found and found.count("advisory") >= others

            child.wait_until(all_wait, patience=200)

    @property
    def _address(self) -> str:
        url = make_url(self.stack.env["CLAWBILL_DATABASE_URL"]).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def told(self, asset: str) -> dict[str, str]:
        """Of each run that had to wait at an asset, by its id, for whom: what the metadata of its materialisation says.

        The one that was first at one of them may be second at the next.
        """
        with self.ledger.transaction() as c:
            found = c.execute(
                text("SELECT run_id, event FROM public.event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'")
            ).all()
        said: dict[str, str] = {}
        for row in found:
            event: Any = deserialize_value(row.event)
            made = event.dagster_event.event_specific_data.materialization
            if made.asset_key.path == [asset] and "waited_for" in made.metadata:
                said[row.run_id] = made.metadata["waited_for"].value
        return said

    def check_bill(self, files: int = 1) -> None:
        """To the cent, once: in the ledger, in the outbox and at Stripe."""
        given = {"hour": self.hour}
        with self.ledger.transaction() as c:
            rated = c.execute(text("SELECT tenant_id, revision, quantity, amount FROM rated_usage WHERE hour = :hour"
                                   " ORDER BY revision"), given).all()  # fmt: skip
            records = c.execute(text("SELECT tenant_id, revision, state, units FROM usage_records WHERE hour = :hour"
                                     " ORDER BY revision"), given).all()  # fmt: skip
            metered = c.execute(text("SELECT events, duplicates FROM metered_hours WHERE hour = :hour ORDER BY landings"
                                     " DESC LIMIT 1"), given).one()  # fmt: skip
        assert tuple(metered) == (len(TENANTS) * CALLS * files, 0)
        assert {row.tenant_id: row.amount for row in rated} == dict.fromkeys(TENANTS, AMOUNT * files)
        assert {row.tenant_id: row.units for row in records} == dict.fromkeys(TENANTS, AMOUNT * files * 1_000_000)
        assert {row.state for row in records} == {"delivered"}
        # A change is a revision, and there were so many; nothing was rated or planned twice.
        most = max(Counter(row.tenant_id for row in records).values())
        assert most <= files
        assert Counter(row.tenant_id for row in rated) == Counter(row.tenant_id for row in records)
        stats: Any = httpx.get(f"{self.stack.env['CLAWBILL_STRIPE_API_BASE']}/_sandbox/stats", trust_env=False).json()
        assert stats["meter_events"]["accepted"] == self.all_records(), stats["meter_events"]

    def runs(self) -> list[tuple[str, str]]:
        """Status and shard of the runs of the hour's schedule."""
        query = text("""
            SELECT r.status, coalesce(s.value, '') AS shard FROM public.runs r
            JOIN public.run_tags p ON p.run_id = r.run_id AND p.key = 'dagster/partition' AND p.value = :partition
            LEFT JOIN public.run_tags s ON s.run_id = r.run_id AND s.key = 'clawbill/shard'
            WHERE r.pipeline_name = 'hourly_billing'
        """)
        with self.ledger.transaction() as c:
            return [(row.status, row.shard) for row in c.execute(query, {"partition": self.partition})]

    def all_records(self) -> int:
        with self.ledger.transaction() as c:
            return int(c.scalar(text("SELECT count(*) FROM usage_records")) or 0)


def warned(child: processes.Child) -> bool:
    """Whether a run has said that it waits for another one."""
    return "another run is at the same metering, waiting for it: run " in child.log.read_text()


# Longer than a run waits in silence.
_WAITING = """
    SELECT l.locktype FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE NOT granted AND waitstart < clock_timestamp() - interval '1 second' AND application_name LIKE 'run %'
"""


@contextmanager
def place(state: Path, database: str, *, shards: int = 1, tick: datetime | None = None) -> Iterator[Place]:
    """PostgreSQL is ``database``; the stand-ins are processes, on the real clock.

    At ``tick`` the hour's schedule asks for it.
    """
    tick = tick or datetime.now(UTC)
    hour = tick.replace(minute=0, second=0, microsecond=0) - HOUR
    with Stack(state, environment(CLAWBILL_DATABASE_URL=database)) as stack:
        catalogue = stack.state / "catalog.yaml"
        tenants = "".join(f"  {tenant}: {{rate_card: card}}\n" for tenant in TENANTS)
        start = hour - 2 * HOUR
        catalogue.write_text(CATALOGUE.format(start=start, shards=shards, lag=tick.minute) + tenants, encoding="utf-8")
        stack.env["CLAWBILL_CATALOG"] = str(catalogue)
        (stack.state / "usage").mkdir()
        stack.database()
        stack.openclaw(catalogue)
        stack.stripe()
        home = stack.dagster_home()
        # Dagster makes its tables when it is set up; two that do so at once are another matter.
        with mock.patch.dict(os.environ, stack.env), DagsterInstance.from_config(str(home)) as instance:
            assert instance.get_runs_count() == 0
        ledger = Ledger(database)
        try:
            api = StripeApi(SecretStr(SANDBOX_KEY), base=stack.env["CLAWBILL_STRIPE_API_BASE"])
            made = provision(ledger, load(catalogue), api, now=datetime.now(UTC), run_id="test")
            assert not made.failed, made.failed
            ledger.ensure_partitions([hour])
            prepared = Place(stack, hour, ledger)
            prepared.write("first", hour)
            yield prepared
        finally:
            ledger.dispose()


def main(partition: str) -> None:
    from dagster._core.definitions.reconstruct import ReconstructableRepository
    from dagster._grpc.types import ExecuteRunArgs

    from clawbill_pipeline.definitions import defs

    jobs = ReconstructableRepository.for_module("clawbill_pipeline.definitions", "defs", str(Path.cwd()))
    with DagsterInstance.get() as instance:
        origin = jobs.get_reconstructable_job("hourly_billing").get_python_origin()
        definition = defs.resolve_job_def("hourly_billing")
        tags = {"dagster/partition": partition}
        run = instance.create_run_for_job(definition, tags=tags, job_code_origin=origin)
        args = ExecuteRunArgs(origin, run.run_id, instance.get_ref(), set_exit_code_on_failure=True)
        sys.stdout.write(json.dumps(args.get_command_args()) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
