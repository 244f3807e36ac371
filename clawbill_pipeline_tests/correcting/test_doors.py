"""The two doors to a correction: the command line and Dagster, where a reconciliation opens it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from clawbill_pipeline.cli import cli
from clawbill_pipeline.clock import set_file_clock
from clawbill_pipeline.correcting import NotCorrectable, allow, planned
from clawbill_pipeline.definitions import build_definitions
from clawbill_pipeline.defs.sensors.after_reconciliation import after_reconciliation
from clawbill_pipeline.defs.sensors.approved_corrections import approved_corrections
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline_tests.correcting.works import Works, rated
from clawbill_pipeline_tests.delivery.world import CATALOG, T0, World

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


@pytest.fixture
def works(world: World, tmp_path: Path) -> Works:
    made = Works(world, Lake(tmp_path / "lake"))
    rated(made, amount="12")
    return made


def test_the_command_shows_does_and_asks(works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = works.world
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    set_file_clock(tmp_path / "clock", works.now())
    for name, value in {
        "CLAWBILL_STATE": str(tmp_path), "CLAWBILL_CLOCK": str(tmp_path / "clock"),
        "CLAWBILL_DATABASE_URL": works.ledger.engine.url.render_as_string(hide_password=False),
        "STRIPE_SECRET_KEY": world.account.key, "CLAWBILL_STRIPE_API_BASE": world.sandbox.url,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["correct", *arguments])
        return result.exit_code, result.output

    assert run() == (0, "No open break has a safe remedy.\n")
    found = works.reconcile()
    code, output = run("--plan")
    assert code == 0
    assert "waits" in output
    assert "24 USD" in output
    assert run("--apply")[0] == 0
    assert world.held("acme", "tokens") == 0
    code, output = run("--apply", "--approve", "4711")
    assert (code, "4711" in output) == (1, True)
    code, output = run("--apply", *(part for number in found.values() for part in ("--approve", str(number))))
    assert code == 0, output
    assert "approved" in output
    assert world.held("acme", "tokens") == 12_000_000
    assert "0 gone, 2 not yet proved" in run("--plan")[1]
    assert works.reconcile() == {}
    assert "2 gone, 0 not yet proved" in run("--plan")[1]


def test_the_job_runs_after_a_reconciliation_and_takes_approvals(works: Works) -> None:
    world = works.world
    definitions = build_definitions(
        {
            "catalog": world.catalog, "ledger": works.ledger, "lake": works.lake, "stripe": world.api,
            "openclaw": OpenClaw("http://127.0.0.1:1", SecretStr("none")),
            "clock": dg.ResourceDefinition.hardcoded_resource(works.now),
        }
    )  # fmt: skip
    job = definitions.resolve_job_def("corrective_delivery")

    def asked() -> bool:
        """Whether the sensor asks for a run after a reconciliation."""
        with dg.DagsterInstance.ephemeral() as instance:
            done = dg.GraphDefinition(name="reconciliation").to_job().execute_in_process(instance=instance)
            context = dg.build_run_status_sensor_context(
                sensor_name="after_reconciliation", dagster_event=done.get_run_success_event(),
                dagster_instance=instance, dagster_run=done.dagster_run,
            )  # fmt: skip
            answer = after_reconciliation(context, catalog=world.catalog, ledger=works.ledger, clock=works.now)
            return isinstance(answer, dg.RunRequest)

    found = works.reconcile()
    assert not asked()
    with dg.DagsterInstance.ephemeral() as instance:
        config = {"ops": {"correct_breaks": {"config": {"approve": list(found.values()), "by": "ann"}}}}
        assert job.execute_in_process(instance=instance, run_config=config).success
    assert world.held("globex", "tokens") == 12_000_000
    assert works.trail(found["not_sent", "acme", T0])[0].detail["by"] == "ann"
    assert works.reconcile() == {}
    assert not asked()
    assert works.trail(found["not_sent", "acme", T0])[-1].kind == "correction.proved"
    world.rate("acme", "tokens", T0, "12.5", quantity="200000")
    works.reconcile()
    assert asked()
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
    assert world.held("acme", "tokens") == 12_500_000


def test_what_was_approved_in_the_finance_pages_is_carried_out(works: Works) -> None:
    world = works.world
    definitions = build_definitions(
        {
            "catalog": world.catalog, "ledger": works.ledger, "lake": works.lake, "stripe": world.api,
            "openclaw": OpenClaw("http://127.0.0.1:1", SecretStr("none")),
            "clock": dg.ResourceDefinition.hardcoded_resource(works.now),
        }
    )  # fmt: skip
    job = definitions.resolve_job_def("corrective_delivery")

    def tick(cursor: str | None) -> dg.SensorResult | dg.SkipReason:
        answer = approved_corrections(dg.build_sensor_context(cursor=cursor), ledger=works.ledger)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        return answer

    found = works.reconcile()
    assert isinstance(tick(None), dg.SkipReason)
    (action,) = planned(works.ledger, world.catalog)
    assert action.verdict == "waits"
    allow(works.ledger, world.catalog, action, why="seen", by="anna (web)", now=works.now())
    with pytest.raises(NotCorrectable, match="look at it again"):
        allow(works.ledger, world.catalog, action, why="seen", by="anna (web)", now=works.now())
    asked = tick(None)
    assert isinstance(asked, dg.SensorResult)
    assert len(asked.run_requests or ()) == 1
    assert isinstance(tick(asked.cursor), dg.SkipReason)
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
    assert world.held("acme", "tokens") == 12_000_000
    trail = works.trail(found["not_sent", "acme", T0])
    assert [row.kind for row in trail] == ["correction.approved", "correction.begun", "correction.done"]
    assert [trail[0].detail["by"], trail[1].detail["approved_by"]] == ["anna (web)"] * 2
    assert works.reconcile() == {}
