"""deploy/celery for real: a broker, two workers as processes of their own, and the same bill to the cent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from clawbill_pipeline_tests.deploy.small_disk import mounted, namespace
from clawbill_pipeline_tests.deploy.wide import DEPLOY
from clawbill_pipeline_tests.scenarios.command import SHARED, clawbill, environment, processes_of

CELLS = SHARED / "openclaw_fleet" / "cells"


def billed_by_workers(state: Path, *more: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "clawbill_pipeline_tests.deploy.wide", "--state", str(state), *map(str, more)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert processes_of(state) == []
    played = json.loads(done.stdout.splitlines()[-1])
    assert sum(played["done"].values()) == played["runs"]
    assert all(played["done"].values()), f"a worker had nothing to do: {played['done']}"
    for name in played["done"]:
        # What runs print is neither wrapped by Celery nor kept in files that nobody removes.
        assert "WARNING/ForkPoolWorker" not in (state / "logs" / f"{name}.log").read_text()
        assert not (state / name / "dagster" / "storage").exists()
    return played


#: What the demonstration takes for services that it finds in cells (sandbox/demo/catalogue.py), for one.
PRICES = {
    "messages": "0", "tokens.input": "0.000003", "tokens.output": "0.000015", "tokens.cache_read": "0.0000003",
    "tokens.cache_write": "0.00000375",
}  # fmt: skip


def check_cells(waterfall: list[dict[str, Any]]) -> None:
    """The bill of the real cells, to the token and to the cent."""
    tokens: dict[str, Decimal] = defaultdict(Decimal)
    for row in waterfall:
        assert row["breaks"] == 0
        exact = Decimal(row["metered_quantity"]) * Decimal(PRICES[row["service"]])
        assert Decimal(row["rated_amount"]) == exact
        for name, unit in (
            ("sent", "0.000001"),
            ("held_by_stripe", "0.000001"),
            ("invoiced_amount", "0.01"),
            ("paid_amount", "0.01"),
        ):
            assert Decimal(row[name]) == exact.quantize(Decimal(unit), ROUND_HALF_UP), (row["service"], name)
        if row["service"].startswith("tokens."):
            tokens[row["tenant_id"]] += Decimal(row["metered_quantity"])
    assert tokens == {"globex": 26_936, "initech": 6_424, "legacyco": 9_263}


@pytest.mark.timeout(600)
@pytest.mark.skipif(not CELLS.is_dir(), reason=f"real OpenClaw cells are not there: {CELLS}")
def test_two_workers_bill_the_real_cells(tmp_path: Path) -> None:
    check_cells(billed_by_workers(tmp_path, "--source", CELLS)["waterfall"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_bill_the_demonstration_as_one_machine_does(tmp_path: Path) -> None:
    alone = json.loads(clawbill("demo", "--state", tmp_path / "alone", "--json", cwd=tmp_path).stdout)
    played = billed_by_workers(tmp_path / "wide")
    assert played["waterfall"] == alone
    # A tenant that nobody knows can't be rated; what workers say of it has the run, the hour and the tenant.
    said = [line for line in played["said"] if line["event"] == "not rated"]
    assert {line["tenant"] for line in said} == {"umbrella"}
    assert all(line["run"] and line["hour"].endswith("+00:00") for line in said)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not CELLS.is_dir(), reason=f"real OpenClaw cells are not there: {CELLS}")
def test_shards_of_an_hour_on_two_workers_bill_what_the_whole_hour_does(tmp_path: Path) -> None:
    alone = json.loads(
        clawbill("demo", "--state", tmp_path / "alone", "--source", CELLS, "--json", cwd=tmp_path).stdout
    )  # fmt: skip
    played = billed_by_workers(tmp_path / "wide", "--source", CELLS, "--shards", "2")
    check_cells(played["waterfall"])
    assert played["waterfall"] == alone
    assert played["shards"]
    assert {"one", "two"} in [set(workers.values()) for workers in played["shards"]]


def test_no_message_is_handed_on_while_a_run_may_still_work_on_it() -> None:
    launcher = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    worker = yaml.safe_load((DEPLOY / "worker.yaml").read_text())["execution"]["config"]
    longest = launcher["run_monitoring"]["max_runtime_seconds"]
    for given in (launcher["run_launcher"]["config"], worker):
        assert given["config_source"]["broker_transport_options"]["visibility_timeout"] > longest
    assert worker["broker"] == launcher["run_launcher"]["config"]["broker"]


def billed_in_chaos(command: list[str], state: Path) -> dict[str, Any]:
    """What the demonstration came to, and what happened, with the real cells. ``command`` starts another one."""
    chaos = [
        sys.executable,
        "-m",
        "clawbill_pipeline_tests.deploy.chaos",
        "--state",
        str(state),
        "--source",
        str(CELLS),
    ]
    done = subprocess.run(
        [*command, *chaos, *(["--disks"] if command else [])],
        env=environment(), capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert processes_of(state) == []
    (document,) = (line for line in done.stdout.splitlines() if line.startswith('{"waterfall"'))
    played: dict[str, Any] = json.loads(document)
    played["happened"] = {what.partition(" during ")[0] for what in played["happened"]}
    return played


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CELLS.is_dir(), reason=f"real OpenClaw cells are not there: {CELLS}")
def test_killed_workers_and_restarted_servers_change_no_bill(tmp_path: Path) -> None:
    played = billed_in_chaos([], tmp_path)
    happened = {"kill_what_works", "restart_broker", "restart_database", "kill_workers", "object_store_away"}
    assert played["happened"] >= happened
    check_cells(played["waterfall"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CELLS.is_dir(), reason=f"real OpenClaw cells are not there: {CELLS}")
def test_full_disks_of_workers_and_of_the_database_change_no_bill(tmp_path: Path) -> None:
    with mounted(tmp_path / "probe", "1m"):
        pass  # else the test is skipped
    played = billed_in_chaos(namespace(), tmp_path / "state")
    assert played["happened"] == {"fill_workers", "fill_database"}
    assert any("no room left below" in why for why in played["said"]), played["said"]
    check_cells(played["waterfall"])
