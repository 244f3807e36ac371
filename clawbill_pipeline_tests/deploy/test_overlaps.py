"""Runs of the same hour that overlap, as real processes: they wait for one another, say so, and bill it once."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clawbill_pipeline.processes import Child
from clawbill_pipeline_tests.deploy.overlaps import Place, place, warned


@pytest.fixture
def hour(tmp_path: Path, database_url: str) -> Iterator[Place]:
    with place(tmp_path / "state", database_url) as prepared:
        yield prepared


def ended_well(children: list[Child]) -> None:
    try:
        for child in children:
            assert child.process.wait(200) == 0, child.log.read_text()
    finally:
        for child in children:
            child.stop()


@pytest.mark.timeout(300)
def test_two_overlapping_runs_bill_an_hour_once_and_the_later_one_says_whom_it_waited_for(hour: Place) -> None:
    with hour.held_up():
        children = [hour.execute(name) for name in ("one", "two")]
        hour.wait_for(children[0], others=1)
    ended_well(children)
    hour.check_bill()
    told = hour.told("metered_usage")
    assert len(told) == 1, told
    ((loser, winner),) = told.items()
    assert winner.startswith("run ")
    assert winner != f"run {loser}"
    assert sum(map(warned, children)) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_run_that_is_launched_twice_bills_an_hour_once(hour: Place) -> None:
    command = hour.launched()
    with hour.held_up():
        children = [hour.start(name, command) for name in ("one", "two")]
        hour.wait_for(children[0])
    ended_well(children)
    hour.check_bill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_run_and_shards_of_two_layouts_at_once_bill_an_hour_once(hour: Place) -> None:
    shards = ("1/2", "2/3", "1/2", "", "1/3", "3/3", "2/2")
    with hour.held_up():
        children = [
            hour.execute(f"run-{number}", **({"clawbill/shard": shard} if shard else {}))
            for number, shard in enumerate(shards)
        ]
        hour.wait_for(children[0], others=3)
    ended_well(children)
    hour.check_bill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_lands_while_a_run_is_at_it_is_not_lost_on_the_run_that_waits(hour: Place) -> None:
    with hour.held_up():
        first = hour.execute("first")
        hour.wait_for(first)
        hour.write("second", hour.hour)
        second = hour.execute("second")
        hour.wait_for(second, others=1)
    ended_well([first, second])
    hour.check_bill(files=2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_run_holds_nobody_up(hour: Place) -> None:
    with hour.held_up():
        killed = hour.execute("killed")
        hour.wait_for(killed)
        other = hour.execute("other")
        hour.wait_for(other, others=1)
        killed.process.kill()
        killed.process.wait(10)
    ended_well([other])
    killed.stop()
    hour.check_bill()


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_two_daemons_by_mistake_bill_an_hour_once(tmp_path: Path, database_url: str) -> None:
    """Two machines' daemons on one storage: each has its scheduler, its sensors and its own way to launch runs."""
    tick = (datetime.now(UTC) + timedelta(seconds=100)).replace(second=0, microsecond=0)
    with place(tmp_path / "state", database_url, shards=2, tick=tick) as hour:
        homes = [hour.stack.dagster_home(), tmp_path / "other"]
        shutil.copytree(*homes)
        daemon = str(Path(sys.executable).parent / "dagster-daemon")
        daemons = []
        try:
            for number, home in enumerate(homes):
                hour.stack.env["DAGSTER_HOME"] = str(home)
                command = [daemon, "run", "-w", str(home / "workspace.yaml")]
                daemons.append(hour.start(f"daemon-{number}", command))
            assert datetime.now(UTC) < tick, "the machine is too slow: the tick was missed"
            until = time.monotonic() + 300
            while {shard for status, shard in hour.runs() if status == "SUCCESS"} != {"1/2", "2/2"}:
                assert time.monotonic() < until, hour.runs()
                time.sleep(1)
            time.sleep(20)  # for whatever the other daemon still does
            daemons[0].wait_until(lambda: {status for status, _ in hour.runs()} == {"SUCCESS"}, patience=120)
        finally:
            for child in daemons:
                child.stop()
        hour.check_bill()
