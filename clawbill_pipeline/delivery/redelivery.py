"""Records that Stripe acknowledged and does not hold, set up to be sent once more. Sends nothing (``sending``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import text

from clawbill_pipeline.delivery.backends import BACKENDS
from clawbill_pipeline.ledger import Ledger


class NotSafe(ValueError):
    """Sending again could bill twice; a person has to look."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The newest delivered revision of a window."""

    identifier: str
    backend: str
    value: Decimal


def lost_of(newest: Sequence[Acknowledged], missing: Decimal) -> list[Acknowledged]:
    """Which of an hour's records make up for ``missing`` whole units. Raises NotSafe where that can't be told.

    An absolute record may be sent again at any time: Stripe keeps the newest. A difference may only if it is the one
    that is missing, to the unit.
    """
    if not newest:
        raise NotSafe("no newest delivered record of the hour")
    if all(BACKENDS[record.backend].absolute for record in newest):
        return list(newest)
    same = [record for record in newest if record.value == missing]
    if len(same) != 1:
        raise NotSafe(f"{len(same)} records of the hour have the missing value {missing}")
    return same


def send_lost_again(
    ledger: Ledger, tenant_id: str, service: str, hour: datetime, missing: Decimal, *, now: datetime, by: str
) -> int:
    """Has what Stripe lost planned anew, under new identifiers; returns how many records. Raises NotSafe.

    The old identifiers are used up: their records are rejected from now on, since they have no effect.
    """
    given = {"tenant_id": tenant_id, "service": service, "hour": hour}
    with ledger.transaction() as connection:
        rows = connection.execute(_NEWEST, given).all()
        delivered = [Acknowledged(row.identifier, row.backend, row.value) for row in rows if row.state == "delivered"]
        lost = [record.identifier for record in lost_of(delivered, missing)]
        error = "acknowledged by Stripe, but not held"
        connection.execute(_LOST, {"hour": hour, "identifiers": lost, "error": error})
        detail = json.dumps({"by": by, "missing": str(missing)})
        trail = [
            {"hour": hour, "identifier": name, "at": now, "tenant_id": tenant_id, "detail": detail} for name in lost
        ]
        connection.execute(_TRAIL, trail)
    return len(lost)


_NEWEST = text("""
SELECT DISTINCT ON (customer_id, meter, window_start) identifier, backend, value, state
FROM usage_records WHERE hour = :hour AND tenant_id = :tenant_id AND service = :service
ORDER BY customer_id, meter, window_start, revision DESC
""")
_LOST = text("""
UPDATE usage_records SET state = 'rejected', parked = 'replan', error = :error
WHERE hour = :hour AND identifier = ANY(:identifiers) AND state = 'delivered'
""")
_TRAIL = text("""
INSERT INTO usage_record_trail (hour, identifier, at, kind, tenant_id, detail)
VALUES (:hour, :identifier, :at, 'usage_record.lost', :tenant_id, CAST(:detail AS jsonb))
""")
