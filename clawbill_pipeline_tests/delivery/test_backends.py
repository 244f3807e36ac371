"""Which backend serves a meter, what each one sends, and how fast the limiter lets calls pass."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from clawbill_pipeline.delivery import pacing
from clawbill_pipeline.delivery.backends import BACKENDS, MeterMismatch, Record, backend_of_meter
from clawbill_pipeline.delivery.pacing import Backoff, TokenBucket
from clawbill_pipeline_tests.delivery.world import T0


def _meter(**changes: Any) -> dict[str, Any]:
    return {
        "event_name": "tokens",
        "status": "active",
        "livemode": False,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
        "event_time_window": "hour",
    } | changes


@pytest.mark.parametrize(
    ("changes", "calls", "backend"),
    [
        ({}, 500, "hour_meter"),
        ({"event_time_window": None}, 500, "sum_meter"),
        ({"livemode": True}, 1000, "hour_meter"),
        ({"livemode": True}, 1001, "hour_meter_stream"),
        ({"livemode": True, "event_time_window": None}, 5000, "sum_meter_stream"),
        ({}, 5000, "hour_meter"),
    ],
)
def test_the_meter_decides(changes: dict[str, Any], calls: int, backend: str) -> None:
    """The stream is live mode only, for who needs more than the 1,000 calls a second that v1 takes."""
    assert backend_of_meter(_meter(**changes), calls).name == backend


@pytest.mark.parametrize(
    "changes", [{"status": "inactive"}, {"event_time_window": "day"}, {"default_aggregation": {"formula": "count"}}]
)
def test_a_meter_that_cannot_hold_usage_records_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MeterMismatch, match="'tokens'"):
        backend_of_meter(_meter(**changes))


def test_a_correction_is_stamped_later_but_for_legacy_records() -> None:
    """``set`` replaces what a moment had: at another moment it would add."""
    record = Record("id", "cus_1", "si_1", "tokens", Decimal(5), T0, revision=3)
    start = int(T0.timestamp())
    assert BACKENDS["hour_meter"].params(record)["timestamp"] == start + 3
    assert BACKENDS["sum_meter_stream"].params(record)["timestamp"] == "2026-03-01T00:00:03Z"
    assert BACKENDS["usage_record"].params(record) == {
        "subscription_item": "si_1",
        "quantity": 5,
        "timestamp": start,
        "action": "set",
    }


def test_values_that_stripe_never_takes() -> None:
    most = Decimal(10**15 - 1)
    for name, backend in BACKENDS.items():
        assert backend.hindrance(most) is None
        assert (backend.hindrance(Decimal(-1)) is not None) == (name == "usage_record")
        if name != "usage_record":
            assert backend.hindrance(most + 1)
            assert backend.hindrance(-most - 1)


def test_the_limiter_spreads_calls_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own, so that nothing depends on the machine: 64 callers, 100 calls a second, for 10 s."""
    clock = [0.0]
    passed: list[float] = []
    waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    async def sleep(seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        waiting.append((clock[0] + seconds, len(passed), future))
        await future

    async def caller(bucket: TokenBucket) -> None:
        while clock[0] < 10:
            await bucket.take()
            passed.append(clock[0])
            await asyncio.sleep(0)

    async def run() -> None:
        bucket = TokenBucket(100)
        callers = [asyncio.create_task(caller(bucket)) for _ in range(64)]
        while not all(task.done() for task in callers):
            for _ in range(5):
                await asyncio.sleep(0)
            if waiting:
                waiting.sort(key=lambda entry: entry[0])
                clock[0], _, future = waiting.pop(0)
                future.set_result(None)

    async def patched(seconds: float) -> None:
        await (sleep(seconds) if seconds > 0 else asyncio.sleep(0))

    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(pacing, "asyncio", SimpleNamespace(sleep=patched))
    asyncio.run(run())
    within = [at for at in passed if at < 10]
    assert abs(len(within) - 1000) <= 20
    for second in range(10):
        assert abs(sum(second <= at < second + 1 for at in within) - 100) <= 3


def test_waits_double_and_end_somewhere() -> None:
    backoff = Backoff(first=1, longest=30)
    for attempt, most in ((2, 1), (3, 2), (4, 4), (7, 30), (500, 30)):
        waits = {backoff.before(attempt) for _ in range(50)}
        assert most / 2 <= min(waits) <= max(waits) <= most
        assert len(waits) > 1
