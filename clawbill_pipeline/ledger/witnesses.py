"""What witnesses say beside what was metered, and why it differs. Informative: no break comes of it, and no bill.

A witness is a gateway's own answer (``usage_witnesses``). What metering knows of the same source, copies told apart, is
in ``witnessed_usage``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.ledger.waterfall import Scope
from clawbill_pipeline.money import EXACT, plain

ZERO = Decimal(0)


@dataclass(frozen=True)
class Witness:
    """What a witness says of a tenant's service in ``[starts, ends)``, and what was metered of the same source.

    Quantities in the service's unit, costs in USD as the gateway has them (None where it says none). ``forked`` and
    ``archived`` are copies of usage lines that a gateway counts again and metering does not.
    """

    source: str
    tenant_id: str
    service: str
    starts: datetime
    ends: datetime
    said_quantity: Decimal
    counted_quantity: Decimal
    said_cost: Decimal | None
    counted_cost: Decimal | None
    forked: int
    forked_quantity: Decimal
    archived: int
    archived_quantity: Decimal
    said_at: datetime

    @property
    def is_day(self) -> bool:
        """Whether it speaks of a day; of an hour otherwise."""
        return self.ends - self.starts > HOUR

    @property
    def difference(self) -> Decimal:
        """How much more the witness has."""
        return EXACT.subtract(self.said_quantity, self.counted_quantity)

    @property
    def why(self) -> str:
        """The difference in words; ``unexplained`` where no rule fits."""
        forks = f"{self.forked} usage lines that forks copied ({plain(self.forked_quantity)})"
        archives = f"{self.archived} copies in archives ({plain(self.archived_quantity)})"
        both = EXACT.add(self.forked_quantity, self.archived_quantity)
        if not self.difference:
            return "agrees"
        if self.difference == self.forked_quantity:
            return f"the gateway counts {forks} again"
        if self.difference == self.archived_quantity:
            return f"the gateway counts {archives} again"
        if self.difference == both:
            return f"the gateway counts {forks} and {archives} again"
        if self.difference < 0 and self.said_at < self.ends:
            return "it was asked before the time that it speaks of was over"
        if self.difference < 0:
            return "the gateway has forgotten sessions that were collected before"
        if 0 < self.difference < both:
            return f"the gateway counts some of {forks} and {archives} again"
        return "unexplained: it knows usage that never landed; see the source"


def read_witnesses(
    connection: Connection, start: datetime, end: datetime, tenants: Iterable[str] | None = None
) -> list[Witness]:
    """The newest answers for times within ``[start, end)``, in order; of all tenants, or of these.

    Where there are answers for days and for hours, each is a row: they tell the same once more.
    """
    given = {"start": start, "end": end, "tenants": None if tenants is None else list(tenants)}
    return [Witness(*row) for row in connection.execute(_WITNESSES, given)]


def of_periods(connection: Connection, scope: Scope) -> tuple[Witness, ...]:
    """What witnesses say of times within the billing periods of ``scope``: by days, and by hours where no day is told.

    A day that a period's boundary cuts is of neither period.
    """
    given = scope.parameters
    spans = {name: (start, end) for name, start, end in zip(given["ids"], given["starts"], given["ends"], strict=True)}
    month = given["month_start"], given["month_end"]
    found = read_witnesses(connection, given["first"], given["last"], given["tenant"] and [given["tenant"]])
    days = {(one.source, one.tenant_id, one.service, one.starts.date()) for one in found if one.is_day}
    kept = []
    for one in found:
        start, end = spans.get(one.tenant_id, month)
        told = one.is_day or (one.source, one.tenant_id, one.service, one.starts.date()) not in days
        if told and one.starts >= start and one.ends <= end:
            kept.append(one)
    return tuple(kept)


_WITNESSES = text("""
    WITH said AS (
        SELECT DISTINCT ON (source, tenant_id, service, starts, ends) * FROM usage_witnesses
        WHERE starts >= :start AND ends <= :end
          AND (CAST(:tenants AS text[]) IS NULL OR tenant_id = ANY(CAST(:tenants AS text[])))
        ORDER BY source, tenant_id, service, starts, ends, said_at DESC),
    counted AS (
        SELECT DISTINCT ON (hour, source, tenant_id, service) * FROM witnessed_usage
        WHERE hour >= :start AND hour < :end
        ORDER BY hour, source, tenant_id, service, landings DESC)
    SELECT s.source, s.tenant_id, s.service, s.starts, s.ends, s.quantity, coalesce(sum(c.quantity), 0), s.cost,
           sum(c.cost), CAST(coalesce(sum(c.forked), 0) AS bigint), coalesce(sum(c.forked_quantity), 0),
           CAST(coalesce(sum(c.archived), 0) AS bigint), coalesce(sum(c.archived_quantity), 0), s.said_at
    FROM said s LEFT JOIN counted c
      ON c.source = s.source AND c.tenant_id = s.tenant_id AND c.service = s.service
     AND c.hour >= s.starts AND c.hour < s.ends
    GROUP BY s.source, s.tenant_id, s.service, s.starts, s.ends, s.quantity, s.cost, s.said_at
    ORDER BY s.tenant_id, s.service, s.starts, s.ends, s.source
""")
