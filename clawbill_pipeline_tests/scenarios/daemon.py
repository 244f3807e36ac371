"""Dagster's own daemon at moments of our choosing: its scheduler, its sensors, its run queue and its retries.

Nothing of it is imitated. Ticks, cursors, run keys and the queue are in the instance's storage as ever; only the time
is frozen where Dagster asks for it, and a run that leaves the queue is executed here, to its end, instead of in a
process of its own. What the time means to clawbill is its own clock's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._cli.job import _create_run
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import ScheduleIterationTimes, launch_scheduled_runs

#: As often as the daemon looks at sensors that say no other interval.
MINUTE = timedelta(minutes=1)
_HERE = {"module": "dagster._core.launcher.sync_in_memory_run_launcher", "class": "SyncInMemoryRunLauncher"}
_NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}


def run_here(home: Path) -> None:
    """Makes the instance of a DAGSTER_HOME execute its runs in this process; the rest of its dagster.yaml stays.

    What steps print is not captured: that takes two processes a step.
    """
    file = home / "dagster.yaml"
    given = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**given, "run_launcher": _HERE, "compute_logs": _NO_CAPTURE}))


@contextmanager
def daemon(instance: DagsterInstance, module: str = "clawbill_pipeline.definitions") -> Iterator[Daemon]:
    """The daemon of ``module``'s definitions, which are loaded into this process."""
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(module_name=module, attribute="defs"), location_name="clawbill"
    )
    # Keeps connections open, as the webserver does: many runs in one process would open thousands.
    instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=20)
    with (
        WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)) as workspace,
        # A tick is evaluated with an instance of its own, whose connections cost more than the tick: it has ours.
        # Not by a Mock, which would remember every call.
        mock.patch.object(DagsterInstance, "from_ref", lambda _: instance),  # noqa: PT008
        mock.patch.object(DagsterInstance, "__exit__", lambda *_: None),  # noqa: PT008
    ):
        yield Daemon(instance, workspace)


class Daemon:
    """``scheduler`` and ``sensors`` are one round each, with all runs that it brings about, at a moment."""

    def __init__(self, instance: DagsterInstance, workspace: WorkspaceProcessContext) -> None:
        self._instance, self._workspace = instance, workspace
        self._log = logging.getLogger("month.daemon")
        self._log.setLevel(logging.ERROR)  # ticks and runs are in the instance
        self._iterations: dict[str, ScheduleIterationTimes] = {}
        self._queue = QueuedRunCoordinatorDaemon(interval_seconds=1)
        self._retries = EventLogConsumerDaemon()

    def scheduler(self, now: datetime) -> int:
        """The schedules' ticks up to ``now``; returns the number of runs that came of them and are over."""
        with freeze_time(now):
            _finish(launch_scheduled_runs(self._workspace, self._log, now, self._iterations))
            return self._run_queue()

    def sensors(self, now: datetime) -> int:
        """A tick of each sensor whose interval is over; returns the number of runs that came of them and are over."""
        with freeze_time(now):
            _finish(execute_sensor_iteration(self._workspace, self._log, None, None))
            return self._run_queue()

    def launch(self, now: datetime, job: str, partition: str | None = None) -> None:
        """A run that a person asks for in the UI, to its end."""
        with freeze_time(now):
            workspace = self._workspace.create_request_context()
            (location,) = workspace.code_locations
            (repository,) = location.get_repositories().values()
            tags = {"dagster/partition": partition} if partition else {}
            run = _create_run(
                self._instance, location, repository, repository.get_full_job(job), {}, tags, None, None
            )  # fmt: skip
            self._instance.submit_run(run.run_id, workspace)
            self._run_queue()

    def _run_queue(self) -> int:
        runs = 0
        while queued := self._instance.get_runs_count(RunsFilter(statuses=[DagsterRunStatus.QUEUED])):
            _finish(self._queue.run_iteration(self._workspace))
            runs += queued
        if runs:
            _finish(self._retries.run_iteration(self._workspace))
        return runs


def _finish(iteration: Iterator[Any]) -> None:
    """Runs an iteration to its end. Raises RuntimeError for an error in it, which the daemon would only log."""
    for said in iteration:
        if said is not None:
            raise RuntimeError(getattr(said, "to_string", said.__str__)())
