"""The benchmark of more than one worker, small: every line of its table is measured. No time is judged."""

from __future__ import annotations

import pytest

from clawbill_pipeline_tests.benchmarks import wide
from clawbill_pipeline_tests.benchmarks.common import output_of


def names(rows: list[wide.Row]) -> list[str]:
    return [what for what, *_ in rows]


def test_shards_are_told_beside_the_whole() -> None:
    shards = list(wide.sharded(wide.TINY))
    assert names(shards) == [
        "2,000 events from the lake to Stripe, one process",
        "2,000 events from the lake to Stripe, two shards in turn",
    ]
    (_, alone, first, _), (_, together, ratio, _) = shards
    assert (first, ratio) == ("", f"{together / alone:.2f}")


@pytest.mark.slow
def test_hours_go_through_workers_and_launchers() -> None:
    table = output_of("clawbill_pipeline_tests.benchmarks.wide", "--tiny")
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == [
        "an hour without usage, in this process",
        "an hour without usage, default launcher",
        "an hour without usage, Celery launcher",
        "5,000 events, one worker",
        "5,000 events, two workers, a shard each",
        "2,000 events from the lake to Stripe, one process",
        "2,000 events from the lake to Stripe, two shards in turn",
        "50 events to the ledger, hour 1",
        "50 events to the ledger, hour 3",
    ]
