"""Workers that share nothing but the ledger and an object store come to what one worker comes to on its own disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.clock import set_file_clock
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import meter
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline.sandbox.demo import logs
from clawbill_pipeline.sandbox.demo.catalogue import starter
from clawbill_pipeline.settings import STARTER, Settings
from clawbill_pipeline.usage import land
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.object_store import Bucket
from clawbill_pipeline_tests.rating.scripted import Asked, scripted
from clawbill_pipeline_tests.scenarios.command import environment

#: Enough for a late file and a half line.
HOURS = 16
END = logs.START + timedelta(hours=HOURS)
TABLES = {
    "landings": "source, uri, position, size, sha256, lines, event_lines, events, quarantined, skipped",
    "landed_hours": "landing_id, hour, events, file",
    "quarantine": "source, uri, place, reason, field, detail, raw, tenant_id",
    "metered_usage": "hour, tenant_id, service, dimensions, window_start, revision, quantity, events, reason",
    "metered_hours": "hour, landings, events, duplicates, conflicts, changed",
    "rated_usage": "hour, tenant_id, service, dimensions, window_start, revision, quantity, amount, currency",
}


class Machine:
    """A worker with a state folder of its own; ``env`` is what it is told beside."""

    def __init__(self, state: Path, usage: str, database: str, **env: str) -> None:
        state.mkdir()
        (state / "catalog.yaml").write_text(starter(STARTER).replace("path: usage", f"path: {usage}"))
        self.settings = Settings.from_env({"CLAWBILL_STATE": str(state), "CLAWBILL_DATABASE_URL": database, **env})
        self.catalog: Catalog = load(self.settings.catalog_file)
        self.lake = Lake(self.settings.lake_root)
        self.ledger = Ledger(self.settings.need_database())

    def land(self) -> int:
        landed = land(self.catalog, self.lake, self.ledger, now=END, run_id="run")
        assert landed.problems == ()
        return landed.events

    def meter_and_rate(self, openclaw: str) -> None:
        hours: Any = {"start": logs.START, "end": END, "now": END, "run_id": "run"}
        assert all(check.passed for check in meter(self.ledger, self.lake, self.catalog, **hours).checks)
        rate(self.ledger, self.catalog, OpenClaw(openclaw, SecretStr("token"), timeout=30), **hours)

    def books(self) -> dict[str, list[tuple[Any, ...]]]:
        with self.ledger.transaction() as connection:
            rows = {name: text(f"SELECT {columns} FROM {name} ORDER BY 1, 2, 3, 4") for name, columns in TABLES.items()}
            return {name: [tuple(row) for row in connection.execute(query)] for name, query in rows.items()}


@pytest.fixture
def database(postgres_server: AnyServer, ledger_template: str) -> Iterator[str]:
    with fresh_database(postgres_server, template=ledger_template) as name:
        yield postgres_server.url(name)


def test_two_workers_over_an_object_store_come_to_what_one_comes_to_on_disk(
    tmp_path: Path, bucket: Bucket, ledger_url: str, database: str
) -> None:
    logs.write_logs(tmp_path / "usage", END)
    assert len(list((tmp_path / "usage").iterdir())) == HOURS + 1
    for path in (tmp_path / "usage").iterdir():
        bucket.put(f"usage/{path.name}", path.read_bytes())

    def priced(asked: Asked) -> tuple[int, dict[str, str]]:
        return 200, {"amount_cents": str(Decimal(asked.json["quantity"]) / 100)}

    store = {"CLAWBILL_LAKE": f"{bucket.address}/lake"}
    alone = Machine(tmp_path / "alone", str(tmp_path / "usage"), ledger_url)
    one = Machine(tmp_path / "one", f"{bucket.address}/usage", database, **store)
    other = Machine(tmp_path / "other", f"{bucket.address}/usage", database, **store)
    with scripted(answer=priced) as openclaw:
        assert alone.land() == one.land() > 500
        assert other.land() == 0
        for machine in (alone, other, one):
            machine.meter_and_rate(openclaw.url)
    books = alone.books()
    assert len(books["rated_usage"]) > 100
    assert len(books["quarantine"]) >= 1
    assert one.books() == other.books() == books
    # Nothing of it is on the machines: a third one could go on where they are.
    assert [path.name for state in ("one", "other") for path in (tmp_path / state).iterdir()] == ["catalog.yaml"] * 2
    assert sum("/usage_ids/" in key for key in bucket.names()) == HOURS
    for machine in (alone, one, other):
        machine.ledger.dispose()


def test_two_processes_that_land_at_once_double_nothing(tmp_path: Path, bucket: Bucket, ledger_url: str) -> None:
    first = logs.START + timedelta(hours=4)
    count = logs.write_logs(tmp_path / "usage", first)
    for path in sorted((tmp_path / "usage").iterdir()):
        bucket.put(f"usage/{path.name}", path.read_bytes().replace(b'"event_id": "', b'"event_id": "store-'))
    catalogue = starter(STARTER).replace("path: usage", f"path: {tmp_path / 'usage'}", 1)
    disk = "  - name: app"
    assert catalogue.count(disk) == 1
    more = f"  - {{name: stored, kind: json_lines, path: '{bucket.address}/usage'}}\n"
    (tmp_path / "catalog.yaml").write_text(catalogue.replace(disk, more + disk))
    set_file_clock(tmp_path / "clock", first)
    (tmp_path / "meeting").mkdir()
    workers = []
    for name in ("one", "other"):
        env = environment(
            CLAWBILL_STATE=str(tmp_path / name), CLAWBILL_CATALOG=str(tmp_path / "catalog.yaml"),
            CLAWBILL_CLOCK=str(tmp_path / "clock"), CLAWBILL_DATABASE_URL=ledger_url,
            CLAWBILL_LAKE=f"{bucket.address}/lake",
        )  # fmt: skip
        command = [sys.executable, "-m", "clawbill_pipeline_tests.scenarios.landing_worker", str(tmp_path / "meeting")]
        workers.append(subprocess.Popen([*command, name, "2"], env=env, stdout=subprocess.PIPE, text=True))
    said = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert [(one["inputs"], one["problems"]) for one in said] == [(2 * count, [])] * 2
    ledger = Ledger(ledger_url)
    with ledger.transaction() as connection:
        landings = connection.execute(text("SELECT source, uri, events, run_id FROM landings ORDER BY 1, 2")).all()
        files = connection.scalars(text("SELECT file FROM landed_hours ORDER BY file")).all()
    ledger.dispose()
    assert len({(row.source, row.uri) for row in landings}) == len(landings) == 2 * count
    assert sum(one["events"] for one in said) == sum(row.events for row in landings)
    # What a worker wrote for a landing that the other one had is no file of the lake's.
    rows = Lake(f"{bucket.address}/lake").rows(files)
    assert sum(held for held in rows.values() if held) == sum(row.events for row in landings)
