"""Drives the real Dagster definitions in this process, on DAGSTER_HOME's instance: jobs, and sensors with cursor."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class RunFailed(RuntimeError):
    """A Dagster run of the demonstration failed; the message has the run's id, step and error."""


class Line:
    """The code location's definitions and the instance they run on."""

    def __init__(self, definitions: dg.Definitions, instance: DagsterInstance) -> None:
        self._definitions = definitions
        self._instance = instance
        # Keeps connections open, as the webserver does: many runs in one process would open thousands.
        instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=20)
        self.runs = 0

    def hours(self, job: str, start: datetime, end: datetime, *, config: Mapping[str, Any] | None = None) -> None:
        """Runs a job for the hours ``[start, end)``: one run, as a backfill with the single-run policy does."""
        first, last = (f"{hour:%Y-%m-%d-%H:%M}" for hour in (start, end - timedelta(hours=1)))
        tags = {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
        self.run(job, tags=tags, config=config)

    def run(
        self,
        job: str,
        *,
        partition: str | None = None,
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """One run of a job, to its end. Raises RunFailed."""
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            partition_key=partition,
            tags=dict(tags or {}),
            run_config={**_QUIET, **(config or {})},
            raise_on_error=False,
        )
        self.runs += 1
        if not result.success:
            failures = [event for event in result.all_events if event.is_failure and event.step_key]
            data: Any = failures[0].event_specific_data if failures else None
            error = getattr(data, "error", None)
            cause = getattr(error, "cause", None) or error
            why = (getattr(cause, "message", None) or "no message").strip()
            step = failures[0].step_key if failures else "?"
            raise RunFailed(f"run {result.run_id} of {job} failed in {step}: {why}")

    def tick(self, sensor: str) -> int:
        """Evaluates a sensor as the daemon does, and executes what it asks for; returns the number of runs."""
        definition = self._definitions.resolve_sensor_def(sensor)
        kept = f"clawbill/cursor/{sensor}"
        storage = self._instance.daemon_cursor_storage
        cursor = storage.get_cursor_values({kept}).get(kept)
        known = self._definitions.get_repository_def().get_top_level_resources()
        resources = {name: known[name] for name in definition.required_resource_keys}
        with dg.build_sensor_context(
            self._instance, cursor=cursor, definitions=self._definitions, resources=resources
        ) as context:
            asked = definition.evaluate_tick(context)
        done = 0
        for request in asked.run_requests or ():
            if request.run_key and self._ran(sensor, request.run_key):
                continue
            self.run(
                str(definition.job_name),
                partition=request.partition_key,
                tags={**request.tags, "dagster/run_key": request.run_key or "", "dagster/sensor_name": sensor},
                config=request.run_config,
            )
            done += 1
        if asked.cursor is not None:
            storage.set_cursor_values({kept: asked.cursor})
        return done

    def _ran(self, sensor: str, run_key: str) -> bool:
        tags = {"dagster/run_key": run_key, "dagster/sensor_name": sensor}
        filters = dg.RunsFilter(tags=tags, statuses=[DagsterRunStatus.SUCCESS])
        return self._instance.get_runs_count(filters) > 0
