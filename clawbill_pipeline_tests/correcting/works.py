"""The delivery world with a lake, OpenClaw, a reconciliation and a correction: what breaks are made of, and unmade."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from clawbill_pipeline.correcting import Corrected, correct
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reconciliation.summaries import read_summaries
from clawbill_pipeline_tests.delivery.world import HOUR, T0, World

PERIOD = "2026-03"


@dataclass
class Works:
    """The delivery world with a lake, OpenClaw, and the two ends of a correction."""

    world: World
    lake: Lake
    openclaw: OpenClaw | None = None

    @property
    def ledger(self) -> Ledger:
        return self.world.ledger

    def now(self) -> datetime:
        return self.world.now() + timedelta(hours=3)

    def reconcile(self) -> dict[tuple[str, str, datetime | None], int]:
        """Reads Stripe back and compares; the open breaks that have a remedy: (cause, tenant, hour) → id."""
        world = self.world
        at = self.now()
        read_summaries(self.ledger, world.catalog, world.api, period=PERIOD, now=at, run_id="test")
        reconcile(self.ledger, world.catalog, self.lake, period=PERIOD, now=at, run_id="test")
        with self.ledger.transaction() as connection:
            rows = connection.exec_driver_sql(
                "SELECT id, cause, tenant_id, hour FROM breaks WHERE closed_at IS NULL AND cause <> 'unexplained'"
            )
            return {(row.cause, row.tenant_id, row.hour): row.id for row in rows}

    def correct(self, *approved: int) -> Corrected:
        def openclaw() -> OpenClaw:
            assert self.openclaw is not None, "nothing of this has to be rated"
            return self.openclaw

        world = self.world
        return correct(
            self.ledger, world.catalog, self.lake, openclaw, lambda: world.api, now=self.now, run_id="run-1",
            by="ann", approved=approved,
        )  # fmt: skip

    def trail(self, number: int) -> list[Any]:
        query = f"SELECT kind, detail FROM audit_trail WHERE subject = 'break {number}' ORDER BY id"
        with self.ledger.transaction() as connection:
            return list(connection.exec_driver_sql(query))


def rated(works: Works, backend: str = "hour_meter", amount: str = "3", hours: int = 1) -> None:
    """Usage of both tenants, rated and not yet planned."""
    works.world.provision_as(backend)
    for number in range(hours):
        for tenant in ("acme", "globex"):
            works.world.rate(tenant, "tokens", T0 + number * HOUR, amount, quantity="200000")
