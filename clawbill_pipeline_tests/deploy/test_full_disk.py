"""A disk that runs full under a worker, for real: nothing is half-read or doubled, and the next run comes to the same.

Each test fills another folder of a process of its own, with file systems of a few megabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.deploy.small_disk import Disk, mounted
from clawbill_pipeline_tests.object_store import Bucket
from clawbill_pipeline_tests.reconciliation.month import CATALOG, PERIOD, Month
from clawbill_pipeline_tests.reconciliation.month import NOW as MONTH_OVER
from clawbill_pipeline_tests.reporting.conftest import month  # noqa: F401
from clawbill_pipeline_tests.scenarios.command import CLAWBILL, environment, processes_of, waterfall_of
from clawbill_pipeline_tests.scenarios.test_interrupted import logs_of_a_day
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue_text
from clawbill_pipeline_tests.usage.test_mapped import PLAIN

TENANTS, HOURS, TWICE = 10, 2, 5


class Worker:
    """A process that does what it is told, with the disk in reach."""

    def __init__(self, disk: Disk, env: Mapping[str, str], *arguments: str) -> None:
        command = disk.command([sys.executable, "-m", "clawbill_pipeline_tests.deploy.stations", *arguments])
        self._process = subprocess.Popen(
            command, env=environment(**env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # How much memory DuckDB needs is a matter of its threads, too.
        os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:2])

    def does(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        self._process.communicate()


@contextmanager
def working(disk: Disk, *arguments: str, **env: str | Path) -> Iterator[Worker]:
    worker = Worker(disk, {name: str(value) for name, value in env.items()}, *arguments)
    try:
        yield worker
    finally:
        worker.end()


@dataclass(frozen=True)
class Usage:
    """A catalogue in a folder, and beside it two hours of events; every fifth is there twice."""

    folder: Path
    events: int

    @property
    def lines(self) -> int:
        return self.events + self.events // TWICE

    def used(self) -> dict[str, Decimal]:
        """What each tenant uses: event ``n`` is of tenant ``n % TENANTS``, and of ``n % 8`` eighths."""
        eighths = {t: sum(n % 8 for n in range(t, self.events, TENANTS)) for t in range(TENANTS)}
        return {f"t-{tenant}": Decimal(count) / 8 for tenant, count in eighths.items()}

    def settings(self, ledger_url: str, **more: str | Path) -> dict[str, str | Path]:
        given = {"CLAWBILL_CATALOG": self.folder / "catalog.yaml", "CLAWBILL_CLOCK": self.folder / "clock"}
        return {**given, "CLAWBILL_DATABASE_URL": ledger_url, **more}


def write_usage(folder: Path, count: int) -> Usage:
    source = {"name": "logs", "kind": "files", "path": "logs", "pattern": "*.parquet", "mapping": PLAIN}
    (folder / "catalog.yaml").write_text(catalogue_text(source))
    (folder / "clock").write_text(NOW.isoformat())
    random = np.random.default_rng(8)
    numbers = np.arange(count)
    begin = int((NOW - timedelta(hours=HOURS)).timestamp() * 1e6)
    events = pa.table(
        {
            "id": pa.array([random.bytes(16).hex() for _ in numbers]),
            "who": pa.array([f"t-{number}" for number in range(TENANTS)]).take(pa.array(numbers % TENANTS)),
            "what": pa.array(["api.calls"]).take(pa.array(numbers * 0)),
            "much": pa.array([Decimal(n) / 8 for n in range(8)]).take(pa.array(numbers % 8)),
            "at": pa.array(begin + numbers * HOURS * 3_600_000_000 // count, pa.timestamp("us", tz="UTC")),
        }
    )
    (folder / "logs").mkdir()
    again = events.take(pa.array(numbers[::TWICE]))
    pq.write_table(pa.concat_tables([events, again]), folder / "logs" / "a.parquet")
    return Usage(folder, count)


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> Usage:
    """Some: two megabytes in the lake."""
    return write_usage(tmp_path_factory.mktemp("usage"), 40_000)


@pytest.fixture(scope="module")
def much_usage(tmp_path_factory: pytest.TempPathFactory) -> Usage:
    """So much that DuckDB does not count it in 60 MB without putting some of it aside."""
    return write_usage(tmp_path_factory.mktemp("usage"), 400_000)


def metered(ledger: Ledger) -> dict[str, Decimal]:
    with ledger.transaction() as connection:
        found = connection.execute(
            text("SELECT tenant_id, sum(quantity) AS used, max(revision) AS revision FROM metered_usage GROUP BY 1")
        ).all()
    assert {row.revision for row in found} == {1}
    return {row.tenant_id: row.used for row in found}


def rows(ledger: Ledger, table: str) -> int:
    with ledger.transaction() as connection:
        count = connection.scalar(text(f"SELECT count(*) FROM {table}"))
    return int(count or 0)


def test_a_lake_that_runs_full_keeps_no_half_of_a_landing(usage: Usage, tmp_path: Path, ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    with (
        mounted(tmp_path / "lake", "8m") as disk,
        working(disk, **usage.settings(ledger_url, CLAWBILL_LAKE=disk.folder)) as worker,
    ):
        disk.fill(leave=1_200_000)
        failed = worker.does("land")
        assert failed["error"] == "DiskFull", failed
        assert f"no room left below {disk.folder}" in failed["said"]
        assert rows(ledger, "landings") == rows(ledger, "landed_hours") == 0
        # The first hour's file had room: it is whole, and nobody's. Of the second one nothing is left.
        (alone,) = (path for path in disk.seen.rglob("*") if path.is_file() and path.name != "ballast")
        assert pq.read_metadata(alone).num_rows == usage.lines // HOURS
        disk.clear()
        assert worker.does("land") == {"events": usage.lines, "problems": []}
        assert worker.does("meter")["events"] == usage.lines
    assert metered(ledger) == usage.used()
    ledger.dispose()


def test_a_worker_without_room_for_temporary_files_says_so_and_writes_nothing(
    much_usage: Usage, tmp_path: Path, ledger_url: str, bucket: Bucket
) -> None:
    ledger = Ledger(ledger_url)
    env = much_usage.settings(ledger_url, CLAWBILL_LAKE=f"{bucket.address}/lake", CLAWBILL_MEMORY_LIMIT="60MB")
    with mounted(tmp_path / "tmp", "64m") as disk, working(disk, **env, TMPDIR=disk.folder) as worker:

        def fails(what: str, leave: int, remedy: str) -> None:
            disk.fill(leave)
            failed = worker.does(what)
            disk.clear()
            assert failed["error"] == "DiskFull", failed
            assert f"no room left below {disk.folder}" in failed["said"]
            assert remedy in failed["said"]
            assert [path for path in disk.seen.rglob("*") if path.is_file()] == []

        # On their way to the store, files are written here first.
        fails("land", 4_000_000, "set TMPDIR")
        assert (rows(ledger, "landings"), [name for name in bucket.names() if "usage_events" in name]) == (0, [])
        assert worker.does("land") == {"events": much_usage.lines, "problems": []}
        # Copies of what is in the store; then these have room, and what DuckDB has no memory for has none.
        fails("meter", 4_000_000, "set TMPDIR")
        fails("meter", 24_000_000, "raise CLAWBILL_MEMORY_LIMIT")
        assert rows(ledger, "metered_usage") == rows(ledger, "metered_hours") == 0
        assert worker.does("meter")["events"] == much_usage.lines
    assert metered(ledger) == much_usage.used()
    ledger.dispose()


def test_a_report_is_the_old_one_or_the_new_one_whatever_room_there_is(
    month: Month,  # noqa: F811
    ledger_url: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    env = Usage(tmp_path, 0).settings(ledger_url)
    (tmp_path / "clock").write_text(MONTH_OVER.isoformat())
    with mounted(tmp_path / "small", "4m") as disk, working(disk, **env, CLAWBILL_REPORTS=disk.folder) as worker:
        disk.fill(leave=20_000)
        failed = worker.does(f"report {PERIOD}")
        assert failed["error"] == "DiskFull", failed
        assert f"no room left below {disk.folder}" in failed["said"]
        assert month.run("SELECT * FROM reports") == []
        disk.clear()
        written = worker.does(f"report {PERIOD}")["files"]
        assert hashes(disk.seen / PERIOD) == written
    with mounted(tmp_path / "other", "4m") as disk, working(disk, **env, CLAWBILL_REPORTS=disk.folder) as worker:
        assert worker.does(f"report {PERIOD}")["files"] == written


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_database_without_room_is_named_and_takes_all_or_nothing(usage: Usage, tmp_path: Path) -> None:
    env = usage.settings("", CLAWBILL_LAKE=tmp_path / "lake")
    with mounted(tmp_path / "small", "160m") as disk, working(disk, str(disk.folder / "postgres"), **env) as worker:

        def fails(what: str, leave: int) -> None:
            disk.fill(leave)
            failed = worker.does(what)
            disk.clear()
            assert failed["error"] == "LedgerError", failed
            assert "has no room left: could not extend file" in failed["said"]
            assert "Free some space on the database's disk" in failed["said"]

        assert worker.does("used") == {}
        fails("land", 0)
        assert worker.does("land") == {"events": usage.lines, "problems": []}
        fails("meter", 100_000)
        assert worker.does("used") == {}
        assert worker.does("meter")["events"] == usage.lines
        # One revision each: nothing was there before.
        assert worker.does("used") == {tenant_id: [str(used), 1] for tenant_id, used in usage.used().items()}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("word", ["landing", "billed", "closing", "reconciling"])
def test_a_machine_without_any_room_says_so_and_goes_on_from_there(tmp_path: Path, word: str) -> None:
    """All on one disk: database, lake, reports, DAGSTER_HOME and logs of `clawbill demo`."""
    used = logs_of_a_day(tmp_path / "logs")
    with mounted(tmp_path / "small", "300m") as disk:
        state = disk.folder / "state"
        command = disk.command([*CLAWBILL, "demo", "--source", str(tmp_path / "logs"), "--state", str(state), "--json"])
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as demo:
            assert demo.stderr is not None
            said = ""
            for line in demo.stderr:
                said += line.decode()
                if word in line.decode():
                    disk.fill()
        assert demo.returncode == 2, said
        assert f"clawbill: no room left below {state}" in said
        assert "free some space there" in said
        disk.clear()
        again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)
        assert again.returncode == 0, again.stderr
        assert processes_of(state) == []
    rows = waterfall_of(again.stdout)
    assert rows["t-1", "calls"]["metered_quantity"] == used
    assert rows["t-1", "calls"]["breaks"] == 0
    assert rows["t-1", "calls"]["paid_amount"] == Decimal("2.41")
