"""What Dagster does about amounts later on: hours whose rows are due again, and a period rated anew."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from clawbill_pipeline.definitions import build_definitions, defs
from clawbill_pipeline.defs.sensors.rating_retries import rating_retries
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.rating.scripted import scripted
from clawbill_pipeline_tests.rating.test_rerating import Prices
from clawbill_pipeline_tests.rating.world import NOW, START, World


@pytest.fixture
def place(ledger_url: str, tmp_path: Path) -> Iterator[tuple[World, Prices]]:
    prices = Prices()
    ledger = Ledger(ledger_url)
    with scripted(answer=prices) as server:
        yield World(ledger, server.url), prices
    ledger.dispose()


def asked(ledger: Ledger, now: datetime) -> list[dg.RunRequest]:
    """What the sensor asks for at ``now``."""
    resources = {"ledger": ledger, "clock": lambda: now}
    with dg.build_sensor_context(resources=resources, definitions=defs) as context:
        return list(rating_retries.evaluate_tick(context).run_requests or ())


def test_an_hour_is_rated_again_once_its_next_attempt_has_come(place: tuple[World, Prices]) -> None:
    world, prices = place
    world.meter(0, 5)
    world.meter(3, 7, tenant="globex")
    prices.down.add("globex")
    world.rate(hours=4)
    assert asked(world.ledger, NOW) == []
    (request,) = asked(world.ledger, NOW + timedelta(hours=2))
    assert request.partition_key == f"{START + timedelta(hours=3):%Y-%m-%d-%H:%M}"
    prices.down.clear()
    world.rate(hours=4, now=NOW + timedelta(hours=2))
    assert asked(world.ledger, NOW + timedelta(hours=4)) == []


def test_a_period_is_rated_anew_on_somebodys_word(place: tuple[World, Prices]) -> None:
    world, prices = place
    world.meter(0, 5)
    world.meter(1, 10)
    world.rate(hours=2)
    prices.cents["calls"] = 3
    given = {
        "ledger": world.ledger,
        "catalog": world.catalog,
        "openclaw": world.openclaw,
        "stripe": StripeApi(SecretStr("sk_test_nobody"), "http://127.0.0.1:9"),
        "clock": lambda: NOW,
    }
    definitions = build_definitions(
        {name: dg.ResourceDefinition.hardcoded_resource(value) for name, value in given.items()}
    )
    config = {"period": "2026-11", "why": "calls were mispriced", "by": "ann"}
    with dg.DagsterInstance.ephemeral() as instance:
        done = definitions.resolve_job_def("period_rerating").execute_in_process(
            run_config={"ops": {"rerate_period": {"config": config}}}, instance=instance
        )
    assert done.success
    assert world.amounts() == {0: Decimal("0.15"), 1: Decimal("0.3")}
    (entry,) = world.rows("SELECT * FROM audit_trail")
    assert (entry["detail"]["by"], entry["detail"]["why"]) == ("ann", "calls were mispriced")
    assert {row["reason"] for row in world.rows("SELECT reason FROM rated_usage WHERE revision = 2")} == {"rerated"}
