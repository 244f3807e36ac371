"""Reports to OpenClaw: in order, once, with retries that stay queued."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import insert
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clawbill_pipeline.invoicing.standing import Reported, report_standing
from clawbill_pipeline.ledger.tables import tenant_standing
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.web.server import listening
from clawbill_pipeline_tests.invoicing.conftest import NOW, Inbox
from clawbill_pipeline_tests.web.serving import served


@dataclass
class Rater:
    """An OpenClaw that notes what it is told, and answers as ``answers`` says (200 where it says nothing)."""

    told: list[tuple[str, str, str]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    url: str = ""

    async def put(self, request: Request) -> Response:
        tenant_id = request.path_params["tenant_id"]
        status = (await request.json())["status"]
        self.told.append((tenant_id, status, request.headers["authorization"]))
        return JSONResponse({}, self.answers.get(tenant_id, 200))

    def report(self, inbox: Inbox) -> Reported:
        return report_standing(inbox.ledger, OpenClaw(self.url, SecretStr("token")), now=NOW, run_id="run_1")

    @property
    def statuses(self) -> list[tuple[str, str]]:
        return [(tenant_id, status) for tenant_id, status, _ in self.told]


@pytest.fixture
def rater() -> Iterator[Rater]:
    rater = Rater()
    with served(Starlette(routes=[Route("/tenants/{tenant_id}/status", rater.put, methods=["PUT"])])) as rater.url:
        yield rater


def stand(inbox: Inbox, tenant_id: str, *standings: str) -> None:
    with inbox.ledger.transaction() as connection:
        for number, standing in enumerate(standings):
            since = NOW + timedelta(seconds=number)
            connection.execute(
                insert(tenant_standing).values(
                    tenant_id=tenant_id, standing=standing, since=since, cause=f"evt_{standing}", recorded_at=NOW
                )
            )


def test_the_newest_standing_is_told_once(inbox: Inbox, rater: Rater) -> None:
    stand(inbox, "globex", "trialing", "past_due", "current")
    stand(inbox, "a b", "overdue")
    result = rater.report(inbox)
    assert sorted(rater.told) == [("a b", "overdue", "Bearer token"), ("globex", "paid", "Bearer token")]
    assert (result.reported, result.superseded, result.queued, result.checks[0].passed) == (2, 2, 0, True)
    assert {row.reported_at for row in inbox.rows("tenant_standing")} == {NOW}
    assert rater.report(inbox).reported == 0
    assert len(rater.told) == 2
    assert [row.detail["status"] for row in inbox.rows("audit_trail", "tenant_id")] == ["overdue", "paid"]


def test_a_failure_stays_queued_and_holds_up_nobody(inbox: Inbox, rater: Rater) -> None:
    rater.answers = {"globex": 503, "gone": 404}
    for tenant_id in ("globex", "gone", "initech"):
        stand(inbox, tenant_id, "past_due", "overdue")
    result = rater.report(inbox)
    assert (result.reported, result.superseded, result.queued, result.checks[0].passed) == (1, 1, 2, False)
    rows = {(row.tenant_id, row.standing): row for row in inbox.rows("tenant_standing")}
    assert rows["globex", "overdue"].attempts == 1
    assert "503" in rows["globex", "overdue"].error
    assert rows["globex", "past_due"].reported_at is None

    rater.answers = {}
    assert rater.report(inbox).reported == 2
    rows = {(row.tenant_id, row.standing): row for row in inbox.rows("tenant_standing")}
    assert (rows["globex", "overdue"].attempts, rows["globex", "overdue"].error) == (2, None)
    assert ("globex", "past_due") not in rater.statuses


def test_an_openclaw_that_is_away_loses_nothing(inbox: Inbox) -> None:
    stand(inbox, "globex", "overdue")
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    result = Rater(url=f"http://127.0.0.1:{port}").report(inbox)
    assert result.queued == 1
    assert result.problems[0].startswith("globex (overdue): OpenClaw can't be reached")
