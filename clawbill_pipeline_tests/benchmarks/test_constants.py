"""What `clawbill capacity` multiplies by is measured, all of it; the arithmetic of it. No time is judged."""

from __future__ import annotations

import pytest

from clawbill_pipeline.capacity import Cost, constants, parsed
from clawbill_pipeline_tests.benchmarks.constants import Size, document, measured, per
from clawbill_pipeline_tests.benchmarks.line import Step


def test_what_is_known_already_is_taken_off() -> None:
    event = Cost("event", 2, 1, 0.5)
    steps = [Step(10, 0.001, 0.0005, 0.0001), Step(10, 0.003, 0.0015, 0.0001)]
    assert per("row", steps) == Cost("row", 200, 100, 10)
    assert per("row", steps, [(event, 10)]) == Cost("row", 180, 90, 5)
    assert per("row", steps, [(event, 100)]) == Cost("row", 0, 0, 0)
    assert per("event", steps, count=40) == Cost("event", 100, 50, 5)


def test_the_document_says_what_was_measured() -> None:
    known = constants()
    written = document(
        known.costs, known.row_bytes, known.event_bytes, known.tenant_ids_bytes, known.waterfall_bytes, known.run_bytes
    )
    again = parsed(written)
    assert (again.costs, again.row_bytes) == (known.costs, known.row_bytes)
    assert again.event_bytes == known.event_bytes


@pytest.mark.slow
def test_every_constant_is_measured() -> None:
    known, found = constants(), parsed(measured(Size(tenants=10, many=20, events=20_000, closing=5, hours=20, runs=2)))
    assert found.costs.keys() == known.costs.keys()
    assert found.row_bytes.keys() == known.row_bytes.keys()
    assert min(found.row_bytes.values()) > 0
