"""``period_to_date``: what is booked of an account's period so far, and what one more answer adds. Asks nobody.

The differences that are booked telescope to the rate of the whole. Three things keep them right:

- **Prices that change within the period.** A difference is between two answers under the same terms: where they are
  not those of the last booking, the period without the change is asked for anew, so what is booked is never re-priced.
- **Limits.** A maximum holds at every moment. A minimum is known at the close only: it is booked, as far as usage does
  not reach it, with the period's last hour, and what comes later counts it in. Both are those of the newest answer and
  hold for all that is booked, whichever prices it had. OpenClaw need not tell limits; one that doesn't has them inside
  its amounts, which telescope to the same total, a minimum from the first hour on.
- **The sum.** What is booked next is the period's amount less the sum of what is booked, so nothing can drift.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.ledger.database import lock_all
from clawbill_pipeline.money import total
from clawbill_pipeline.openclaw import Answer, limited, terms_of

ZERO = Decimal(0)


class Group(NamedTuple):
    """What is booked one at a time: an account's service, by its dimensions, in a billing period."""

    tenant_id: str
    service: str
    dimensions: str
    period_start: datetime


@dataclass(frozen=True)
class Standing:
    """A group as it is booked: ``amount`` is the sum of its windows, ``quantity`` what was last asked for.

    ``unlimited`` is its amount before limits, over all terms it was rated under; ``answered`` is that of the last
    answer alone, whose ``terms`` are empty where OpenClaw does not tell them, and None where nothing is booked.
    ``last`` is the window at whose booking the period closes; ``closed`` says whether it has.
    """

    last: datetime
    closed: bool = False
    quantity: Decimal = ZERO
    amount: Decimal = ZERO
    unlimited: Decimal = ZERO
    answered: Decimal = ZERO
    terms: str | None = None
    currency: str | None = None

    def with_(self, quantity: Decimal, answer: Answer, *, window: datetime, without: Decimal | None = None) -> Standing:
        """This group with ``answer`` for ``quantity`` booked on ``window``.

        ``without`` is the answer for the quantity so far under the same terms (before limits), where it was asked for.
        """
        before = self.answered if without is None else without
        unlimited = total([self.unlimited, answer.unlimited, before.copy_negate()])
        return self._standing(quantity, answer, unlimited, window)

    def anew(self, answer: Answer) -> Standing:
        """This group with all of it rated by ``answer``, whatever it was rated by before."""
        return self._standing(self.quantity, answer, answer.unlimited, None)

    def _standing(self, quantity: Decimal, answer: Answer, unlimited: Decimal, window: datetime | None) -> Standing:
        closed = self.closed or window == self.last
        amount = limited(unlimited, answer.maximum, answer.minimum if closed else None)
        return Standing(
            self.last, closed, quantity, amount, unlimited, answer.unlimited, answer.terms, answer.currency
        )  # fmt: skip


def lock_groups(connection: Connection, groups: Iterable[Group]) -> None:
    """Waits until nobody else books in these groups. Once a transaction, after the hours are locked."""
    lock_all(connection, (("period", *group[:3], group.period_start.isoformat()) for group in groups))


def read_standing(connection: Connection, catalog: Catalog, group: Group) -> Standing:
    """How ``group`` stands, which is locked."""
    tenant = catalog.tenant(group.tenant_id)
    close = tenant.close(tenant.period_at(group.period_start))
    hour = utc_hour(close - timedelta(microseconds=1))
    last = max(hour, group.period_start)
    found = connection.execute(_STANDING, {**group._asdict(), "last_hour": hour, "last": last}).one()
    # An hour that was metered without this group will not close it; what comes now is late, and the period is over.
    closed = found.is_booked or (found.is_over and not found.is_awaited)
    if found.asked_quantity is None:
        return Standing(last, closed)
    # Rows of before these columns were booked without them.
    unlimited = found.amount if found.period_unlimited is None else found.period_unlimited
    answered = found.answered_amount if found.unlimited_amount is None else found.unlimited_amount
    # Where OpenClaw does not tell its terms, nobody knows whether they are still those of an earlier run.
    terms = terms_of(found.rate_card_version, found.terms) or "?"
    return Standing(
        last, closed, found.asked_quantity, found.amount, unlimited, answered, terms, found.currency
    )  # fmt: skip


_STANDING = text("""
    WITH booked AS (
        SELECT hour, window_start, revision, booking, amount, currency, asked_quantity, answered_amount,
               unlimited_amount, period_unlimited, rate_card_version, answer ->> 'terms' AS terms
        FROM rated_usage
        WHERE tenant_id = :tenant_id AND service = :service AND dimensions = :dimensions
          AND period_start = :period_start AND basis = 'period_to_date'),
    newest AS (SELECT DISTINCT ON (hour, window_start) amount FROM booked ORDER BY hour, window_start, revision DESC)
    SELECT l.asked_quantity, l.answered_amount, l.unlimited_amount, l.period_unlimited, l.rate_card_version, l.terms,
           l.currency, (SELECT sum(amount) FROM newest) AS amount,
           EXISTS (SELECT FROM booked WHERE hour = :last_hour AND window_start = :last) AS is_booked,
           EXISTS (SELECT FROM metered_hours WHERE hour = :last_hour) AS is_over,
           EXISTS (SELECT FROM metered_usage
                   WHERE hour = :last_hour AND tenant_id = :tenant_id AND service = :service
                     AND dimensions = :dimensions AND window_start = :last) AS is_awaited
    FROM (SELECT) AS one LEFT JOIN (SELECT * FROM booked ORDER BY booking DESC LIMIT 1) AS l ON true
""")
