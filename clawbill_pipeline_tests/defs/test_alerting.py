"""The sensors that tell people: owners come from the definitions, and nothing that goes wrong there ends a tick."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.definitions import defs
from clawbill_pipeline.defs.presentation import DATA, FINANCE
from clawbill_pipeline.defs.sensors.alerts import alerts, owners_of
from clawbill_pipeline.defs.sensors.failed_runs import failed_runs
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline_tests.alerts.receivers import Hook, hook
from clawbill_pipeline_tests.reconciliation.month import CATALOG

# Building the context of a failed run is in beta.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
NOW = datetime(2026, 11, 4, tzinfo=UTC)


@pytest.fixture
def posted() -> Iterator[Hook]:
    with hook() as kept:
        yield kept


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url)
    yield made
    made.dispose()


def _given(ledger: Ledger, routes: str | None, catalog: Catalog | None = None) -> dict[str, Any]:
    given: dict[str, Any] = {
        "settings": Settings(alerts=SecretStr(routes) if routes else None, web_url="https://billing.example.com"),
        "ledger": ledger,
        "clock": lambda: NOW,
    }
    return given | ({"catalog": catalog} if catalog else {})


def test_every_owner_of_a_matter_is_in_the_definitions() -> None:
    from clawbill_pipeline.alerts.matters import ASSET_OF_STEP, ASSETS_OF_KIND
    from clawbill_pipeline.ledger.causes import STEPS

    owners = owners_of(defs.get_repository_def())
    assert set(ASSET_OF_STEP) == set(STEPS)
    for asset in {*ASSET_OF_STEP.values(), *(name for names in ASSETS_OF_KIND.values() for name in names)}:
        assert owners[asset] & {DATA, FINANCE}


def _tick(ledger: Ledger, routes: str | None) -> str:
    catalog = parse(f"{CATALOG}\nsources: [{{name: logs, kind: json_lines, path: usage}}]")
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def()) as context,
    ):
        reason = alerts(context, **_given(ledger, routes, catalog))
    assert isinstance(reason, dg.SkipReason)
    assert reason.skip_message is not None
    return reason.skip_message


def test_the_sensor_tells_the_owner_of_the_asset(ledger: Ledger, posted: Hook) -> None:
    routes = f"{FINANCE}={posted.url()}; {DATA}={posted.url()}"
    assert _tick(ledger, routes) == "1 messages sent, 0 to be tried again."
    assert posted.received[0]["title"] == "clawbill: Stale sources: 1"
    assert posted.received[0]["message"].endswith("https://billing.example.com")
    assert _tick(ledger, routes) == "0 messages sent, 0 to be tried again."
    assert "nobody is told" in _tick(ledger, None)


def test_a_dead_receiver_ends_no_tick(ledger: Ledger) -> None:
    assert _tick(ledger, "*=json://127.0.0.1:1/") == "0 messages sent, 1 to be tried again."


@dg.asset(name="rated_usage")
def broken() -> None:
    raise RuntimeError("acme: secret detail")


def _tell_of(ledger: Ledger, routes: str | None, tags: dict[str, str]) -> str:
    """Lets a run fail, and the sensor look at it; returns the run's id."""
    job = dg.Definitions([broken], jobs=[dg.define_asset_job("rating", [broken])]).resolve_job_def("rating")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, raise_on_error=False, tags={"dagster/partition": "2026-10-01-00:00", **tags}
        )
        context = dg.build_run_status_sensor_context(
            sensor_name="failed_runs",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            repository_def=defs.get_repository_def(),
        ).for_run_failure()
        failed_runs(context, **_given(ledger, routes))
    return result.run_id


def test_a_failed_run_is_told_to_the_owner_of_the_asset_that_failed(
    ledger: Ledger, posted: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAWBILL_DAGSTER_URL", "https://dagster.example.com")
    routes = f"{FINANCE}={posted.url()}; {DATA}>=1={posted.url()}; team:sales={posted.url()}"
    run_id = _tell_of(ledger, routes, {})
    (message,) = posted.received
    assert message["title"] == "clawbill: run of rating 2026-10-01-00:00 failed"
    assert message["message"].endswith(f"https://dagster.example.com/runs/{run_id}")
    assert "in rated_usage" in message["message"]
    assert "secret detail" not in message["message"]


def test_a_run_that_is_tried_again_is_not_told(ledger: Ledger, posted: Hook) -> None:
    _tell_of(ledger, f"*={posted.url()}", {"dagster/will_retry": "true"})
    _tell_of(ledger, None, {})
    assert posted.received == []


def test_a_failed_run_is_told_without_a_ledger_too(posted: Hook) -> None:
    away = Ledger("postgresql+psycopg://nobody@127.0.0.1:1/none")
    _tell_of(away, f"*={posted.url()}; *=json://127.0.0.1:1/", {})
    assert len(posted.received) == 1


def _evaluated(name: str, instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    """A tick of the sensor as Dagster's daemon has it: resources come from the definitions and the environment."""
    sensor = defs.get_repository_def().get_sensor_def(name)
    resources = {key: made for key, made in (defs.resources or {}).items() if key in sensor.required_resource_keys}
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=defs, resources=resources, sensor_name=name
    ) as context:
        return sensor.evaluate_tick(context)


def test_ticks_as_the_daemon_has_them(
    ledger: Ledger, posted: Hook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLAWBILL_STATE", str(tmp_path))
    monkeypatch.setenv("CLAWBILL_DATABASE_URL", ledger.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("CLAWBILL_ALERTS", f"{DATA}={posted.url()}")
    with dg.DagsterInstance.ephemeral() as instance:
        assert "messages sent" in str(_evaluated("alerts", instance).skip_message)
        # A run status sensor begins with what comes after its first tick.
        first = {name: _evaluated(name, instance).cursor for name in ("failed_runs", "after_reconciliation")}
        job = dg.Definitions([broken], jobs=[dg.define_asset_job("rating", [broken])]).resolve_job_def("rating")
        assert not job.execute_in_process(instance=instance, raise_on_error=False).success
        reconciliation = dg.GraphDefinition(name="reconciliation").to_job()
        assert reconciliation.execute_in_process(instance=instance).success
        _evaluated("failed_runs", instance, first["failed_runs"])
        after = _evaluated("after_reconciliation", instance, first["after_reconciliation"])
    assert [message["title"] for message in posted.received][-1:] == ["clawbill: run of rating failed"]
    assert "No break can be corrected" in str(after.skip_message)
