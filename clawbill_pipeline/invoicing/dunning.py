"""Moves tenants that owe for too long: past_due to overdue, overdue to suspended, by the catalogue's days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on

from clawbill_pipeline.catalog.dunning import Dunning
from clawbill_pipeline.invoicing.rows import lock_inbox, move_standing
from clawbill_pipeline.invoicing.states import Signal, Standing
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import tenant_standing


@dataclass(frozen=True)
class Advanced:
    """How many tenants became overdue and how many were suspended."""

    overdue: int
    suspended: int


def next_step(standing: Standing, since: datetime, dunning: Dunning) -> tuple[Signal, datetime] | None:
    """What time does to a tenant that stands like this, and when; None where time alone does nothing."""
    if standing == "past_due":
        return "overdue", since + timedelta(days=dunning.overdue_after_days)
    if standing == "overdue" and dunning.suspended_after_days is not None:
        return "suspend", since + timedelta(days=dunning.suspended_after_days)
    return None


def advance_standing(ledger: Ledger, dunning: Dunning, *, now: datetime) -> Advanced:
    """Takes every step that is due at ``now``, dated when it was due. Called again, it changes nothing."""
    with ledger.transaction() as connection:
        lock_inbox(connection)
        newest = (
            select(
                tenant_standing.c.id, tenant_standing.c.tenant_id, tenant_standing.c.standing, tenant_standing.c.since
            )
            .ext(distinct_on(tenant_standing.c.tenant_id))
            .order_by(tenant_standing.c.tenant_id, tenant_standing.c.id.desc())
            .subquery()
        )
        owing = select(newest).where(newest.c.standing.in_(("past_due", "overdue")))
        moved = {"overdue": 0, "suspended": 0}
        for row in connection.execute(owing).all():
            standing, since = row.standing, row.since
            while (step := next_step(standing, since, dunning)) and step[1] <= now:
                signal, since = step
                cause = f"dunning:{row.id}:{signal}"
                change = move_standing(connection, row.tenant_id, [signal], since, cause, now)
                if change is None:
                    break
                standing = change[1]
                moved[standing] += 1
    return Advanced(**moved)
