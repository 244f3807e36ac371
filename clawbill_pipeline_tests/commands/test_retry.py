"""`clawbill retry`: what waits for an amount is shown, asked for again and sent on, or given up on record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from clawbill_pipeline.cli import cli
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.rating.scripted import Asked, Step, scripted
from clawbill_pipeline_tests.rating.world import CATALOGUE, NOW, TOKEN, World


class Rater:
    """OpenClaw, which is down for some tenants and refuses others."""

    def __init__(self) -> None:
        self.down, self.refused = {"acme", "globex"}, {"nippon"}

    def __call__(self, asked: Asked) -> Step:
        tenant = asked.json["tenant_id"]
        if tenant in self.refused:
            return 422, {"title": "no such plan"}
        return (503, "down") if tenant in self.down else (200, {"amount_cents": "150"})


@pytest.fixture
def place(ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Rater]]:
    """Four rows in the queue, all of whose next attempts have come; and the environment that leads there."""
    rater, ledger = Rater(), Ledger(ledger_url)
    (tmp_path / "catalog.yaml").write_text(CATALOGUE)
    with scripted(answer=rater) as server:
        for name, value in {
            "CLAWBILL_STATE": str(tmp_path), "CLAWBILL_DATABASE_URL": ledger_url,
            "CLAWBILL_CATALOG": str(tmp_path / "catalog.yaml"), "OPENCLAW_URL": server.url, "OPENCLAW_TOKEN": TOKEN,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        world = World(ledger, server.url)
        for hour, tenant in enumerate(("acme", "globex", "nippon", "initech")):
            world.meter(hour, 2, tenant=tenant)
        world.rate(hours=4)
        with ledger.transaction() as c:
            c.execute(text("UPDATE rating_failures SET next_attempt_at = :now WHERE kind = 'retry'"), {"now": NOW})
            c.execute(
                text(
                    "INSERT INTO stripe_customers (tenant_id, customer_id, subscription_id, currency, livemode,"
                    " mapped_at) VALUES ('acme', 'cus_1', 'sub_1', 'USD', false, now())"
                )
            )
            item = "INSERT INTO stripe_items VALUES ('acme', 'calls', 'si_1', 'p', 'm', 'm', 'hour_meter', now())"
            c.execute(text(item))
        yield world, rater
    ledger.dispose()


def retry(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["retry", *arguments], catch_exceptions=False)


def test_the_list_shows_what_waits_and_why(place: tuple[World, Rater]) -> None:
    shown = retry("list").output
    assert [line.split()[1] for line in shown.splitlines()[2:]] == ["acme", "globex", "nippon", "initech"]
    assert "OpenClaw answered 503: down" in shown
    assert "no such plan" in shown
    assert "is not in the catalogue" in shown
    assert TOKEN not in shown
    assert [line.split()[1] for line in retry("list", "--kind", "refused").output.splitlines()[2:]] == ["nippon"]
    assert [line.split()[1] for line in retry("list", "--tenant", "acme").output.splitlines()[2:]] == ["acme"]


def test_a_run_asks_for_what_is_due_and_plans_what_it_got(place: tuple[World, Rater]) -> None:
    world, rater = place
    rater.down.remove("acme")
    result = retry("run")
    assert (result.exit_code, result.output) == (1, "2 were due: 1 have an amount, 1 wait on, 0 refused.\n")
    assert [(tenant, kind) for tenant, kind, _ in world.failures()] == [
        ("globex", "retry"), ("nippon", "refused"), ("initech", "unmapped"),
    ]  # fmt: skip
    (record,) = world.rows("SELECT tenant_id, state, units FROM usage_records")
    assert (record["tenant_id"], record["state"], record["units"]) == ("acme", "planned", 1_500_000)
    assert retry("run").output.startswith("0 were due"), "what failed again waits for its next attempt"


def test_what_is_dropped_is_given_up_on_record(place: tuple[World, Rater]) -> None:
    world, _ = place
    assert retry("drop", "--kind", "retry").exit_code == 2, "without a reason nothing is dropped"
    given = ("drop", "--kind", "retry", "--tenant", "globex", "--why", "a test account")
    assert retry(*given).output == "1 rows are not asked for any more.\n"
    (entry,) = world.rows("SELECT * FROM audit_trail WHERE kind = 'rating.dropped'")
    assert (entry["tenant_id"], entry["detail"]["why"]) == ("globex", "a test account")
    assert "a test account" in retry("list", "--tenant", "globex").output
    assert retry(*given).output == "0 rows are not asked for any more.\n"
