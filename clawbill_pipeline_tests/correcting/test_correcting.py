"""From a break to its end: found, corrected at Stripe, and proved gone by the next reconciliation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from clawbill_pipeline.correcting import Corrected, NotCorrectable, planned, prove, standing
from clawbill_pipeline.delivery.operations import Which, park
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline_tests.correcting.works import Works, rated
from clawbill_pipeline_tests.delivery.world import CATALOG, HOUR, T0, World
from clawbill_pipeline_tests.reconciliation.month import Month
from clawbill_pipeline_tests.sandbox.openclaw.test_server import TOKEN, running


@pytest.fixture
def works(world: World, tmp_path: Path) -> Works:
    return Works(world, Lake(tmp_path / "lake"))


def _proved_gone(works: Works, *numbers: int) -> None:
    assert works.reconcile() == {}
    assert prove(works.ledger, now=works.now()) == len(numbers)
    assert prove(works.ledger, now=works.now()) == 0
    assert standing(works.ledger) == [(number, True) for number in sorted(numbers, reverse=True)]
    for number in numbers:
        assert [entry.kind for entry in works.trail(number)] == [
            "correction.begun", "correction.done", "correction.proved",
        ]  # fmt: skip


@pytest.mark.parametrize("backend", ["hour_meter", "sum_meter"])
def test_what_was_rejected_is_sent_again(works: Works, backend: str) -> None:
    rated(works, backend)
    works.world.plan()
    works.world.execute("UPDATE usage_records SET state = 'rejected' WHERE tenant_id = 'acme'")
    works.world.deliver()
    number = works.reconcile()["rejected", "acme", T0]
    result = works.correct()
    assert ([action.verdict for action in result.done], result.problems) == (["automatic"], ())
    begun = works.trail(number)[0].detail
    assert (begun["break"], begun["by"], begun["remedy"], begun["run_id"]) == (number, "ann", "redeliver", "run-1")
    assert works.world.held("acme", "tokens") == 3_000_000
    _proved_gone(works, number)


def test_above_the_limit_a_person_approves(works: Works) -> None:
    rated(works, amount="12")
    works.world.plan()
    works.world.execute("UPDATE usage_records SET parked = 'no_such_customer'")
    found = works.reconcile()
    first, second = found["parked", "acme", T0], found["parked", "globex", T0]
    result = works.correct()
    assert (result.done, len(result.waiting)) == ((), 2)
    assert result.waiting[0].why == "comes to 12 USD, the limit is 10"
    assert works.trail(first) == []
    result = works.correct(first)
    assert [(a.verdict, [b.id for b in a.breaks]) for a in result.done] == [("approved", [first])]
    assert (works.world.held("acme", "tokens"), works.world.held("globex", "tokens")) == (12_000_000, 0)
    assert set(works.reconcile()) == {("parked", "globex", T0)}
    assert works.correct(second).proved == 1
    assert works.reconcile() == {}
    assert prove(works.ledger, now=works.now()) == 1
    row = works.world.rows(tenant_id="acme")[0]
    retried = works.world.audited("usage_record.retried")
    assert row.identifier in retried
    detail = (
        "SELECT detail->>'by' FROM usage_record_trail"
        f" WHERE kind = 'usage_record.retried' AND identifier = '{row.identifier}'"
    )
    with works.ledger.transaction() as connection:
        assert connection.exec_driver_sql(detail).scalar_one() == f"ann, for break {first}"


def test_what_a_person_parked_stays_until_a_person_lets_it_go(works: Works) -> None:
    rated(works, amount="1")
    works.world.plan()
    park(works.ledger, Which(tenant_id="acme"), reason="disputed", now=works.now(), by="bob")
    found = works.reconcile()
    number = found["parked", "acme", T0]
    result = works.correct()
    assert [action.why for action in result.waiting] == ["a person parked it"]
    assert works.world.held("acme", "tokens") == 0
    works.correct(number)
    assert works.world.held("acme", "tokens") == 1_000_000


@pytest.mark.parametrize("backend", ["hour_meter", "sum_meter"])
def test_what_stripe_lost_is_sent_under_a_new_identifier(works: Works, backend: str) -> None:
    rated(works, backend, hours=2)
    works.world.plan()
    lost = works.world.rows(tenant_id="acme", window_start=T0)[0]
    works.world.execute(
        "UPDATE usage_records SET state = 'delivered', settled_at = :at WHERE identifier = :it",
        at=works.world.now(), it=lost.identifier,
    )  # fmt: skip
    works.world.deliver()
    assert works.world.held("acme", "tokens") == 3_000_000
    found = works.reconcile()
    number = found["lost_after_acknowledgement", "acme", T0]
    assert set(found) == {("lost_after_acknowledgement", "acme", T0)}
    result = works.correct()
    assert ([action.remedy for action in result.done], result.problems) == (["resend"], ())
    assert works.world.held("acme", "tokens") == 6_000_000
    states = [(row.revision, row.state, row.error) for row in works.world.rows(tenant_id="acme", window_start=T0)]
    assert states == [(1, "rejected", "acknowledged by Stripe, but not held"), (2, "delivered", None)]
    _proved_gone(works, number)


def test_rated_but_not_sent(works: Works) -> None:
    rated(works)
    number = works.reconcile()["not_sent", "acme", T0]
    result = works.correct()
    assert [(action.remedy, len(action.breaks)) for action in result.done] == [("plan", 2)]
    assert works.world.held("acme", "tokens") == works.world.held("globex", "tokens") == 3_000_000
    assert works.reconcile() == {}
    assert works.trail(number)[-1].kind == "correction.done"


def test_a_break_that_stays_is_not_tried_again_by_itself(works: Works) -> None:
    rated(works)
    works.world.plan()
    works.world.execute("UPDATE usage_records SET parked = 'invalid_value' WHERE tenant_id = 'acme'")
    works.world.deliver()
    number = works.reconcile()["parked", "acme", T0]
    assert len(works.correct().done) == 1
    assert works.reconcile()["parked", "acme", T0] == number
    result = works.correct()
    assert [action.why for action in result.waiting] == ["was corrected before, and is open still"]
    assert (number, False) in standing(works.ledger)


def test_a_correction_that_fails_stops_no_other(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    rated(works, hours=2)
    works.world.plan()
    works.world.execute("UPDATE usage_records SET parked = 'no_such_customer' WHERE tenant_id = 'acme'")
    works.world.deliver()
    found = works.reconcile()
    broken = found["parked", "acme", T0]
    works.world.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON usage_records FOR EACH ROW"
        f" WHEN (OLD.hour = '{T0.isoformat()}') EXECUTE FUNCTION refuse()"
    )
    result = works.correct()
    assert len(result.done) == 1
    assert "disk full" in result.problems[0]
    assert [entry.kind for entry in works.trail(broken)] == ["correction.begun", "correction.failed"]
    assert works.world.held("acme", "tokens") == 3_000_000


def test_only_what_can_be_corrected_can_be_approved(works: Works) -> None:
    rated(works)
    works.reconcile()
    with pytest.raises(NotCorrectable, match="999"):
        planned(works.ledger, works.world.catalog, {999})
    works.correct()
    assert works.reconcile() == {}
    assert planned(works.ledger, works.world.catalog) == []
    assert works.correct() == Corrected((), (), 2, ())


@pytest.fixture
def rater(tmp_path: Path) -> Iterator[OpenClaw]:
    folder = tmp_path / "openclaw"
    folder.mkdir()
    (folder / "catalog.yaml").write_text(CATALOG)
    with running(folder) as server:
        yield OpenClaw(str(server.http.base_url).rstrip("/"), SecretStr(TOKEN))


def test_hours_that_were_not_metered_or_rated_are_done_again(works: Works, rater: OpenClaw) -> None:
    works.openclaw = rater
    works.world.provision_as("hour_meter")
    month = Month(works.ledger, works.lake, works.world.catalog)
    month.ledger.ensure_partitions([T0])
    month.used("acme", "tokens", T0, 200_000)
    month.used("globex", "tokens", T0 + HOUR, 100_000)
    month.land_usage()
    month.meter(keys=[("globex", "tokens", T0 + HOUR)])
    month.run("DELETE FROM breaks")
    found = works.reconcile()
    assert set(found) == {("not_metered", "acme", T0), ("not_rated", "globex", T0 + HOUR)}
    # Nothing of theirs is rated yet, so nobody knows what they are worth.
    assert [action.why for action in works.correct().waiting] == ["what it is worth is not known"] * 2
    result = works.correct(*found.values())
    assert ([action.remedy for action in result.done], result.problems) == (["meter", "rate"], ())
    assert works.world.held("acme", "tokens") == 3_000_000
    assert works.world.held("globex", "tokens") == 1_500_000
    _proved_gone(works, *found.values())
