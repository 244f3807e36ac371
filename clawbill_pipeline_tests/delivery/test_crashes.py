"""Exactly-once effect: after any schedule of crashes, faults and late data, Stripe's total equals the ledger.

CI runs the first seeds; all of them: ``pytest -m slow clawbill_pipeline_tests/delivery/test_crashes.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.delivery.faults import Faulty, faulty
from clawbill_pipeline_tests.delivery.schedule import Schedule
from clawbill_pipeline_tests.delivery.world import BACKENDS, World
from clawbill_pipeline_tests.sandbox.stripe.server import Sandbox

SEEDS, IN_CI = 1000, 50


def _seeds() -> list[object]:
    return [pytest.param(seed, marks=[] if seed < IN_CI else [pytest.mark.slow]) for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def proxy(sandbox: Sandbox) -> Iterator[Faulty]:
    with faulty(sandbox.url) as running:
        yield running


@pytest.mark.parametrize("seed", _seeds())
def test_schedule(seed: int, ledger: Ledger, ledger_url: str, sandbox: Sandbox, proxy: Faulty, tmp_path: Path) -> None:
    proxy.most_a_lane = 0
    world = World(ledger, sandbox, sandbox.account())
    schedule = Schedule(seed, BACKENDS[seed % len(BACKENDS)], ledger_url, world, proxy, tmp_path)
    try:
        schedule.run()
        schedule.check()
    except AssertionError as error:
        again = f"pytest -m '' 'clawbill_pipeline_tests/delivery/test_crashes.py::test_schedule[{seed}]'"
        raise AssertionError(f"seed {seed}; run it again with: {again}\n{error}") from error
