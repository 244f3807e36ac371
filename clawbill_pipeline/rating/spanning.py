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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.ledger.database import lock_each
from clawbill_pipeline.ledger.sharding import BUCKETS, bucket
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
    # By the tenant's bucket, so that shards have none of these in common.
    lock_each(connection, {("period", str(bucket(group.tenant_id))) for group in groups})


def read_standings(
    connection: Connection, catalog: Catalog, groups: Sequence[Group], *, summed: bool = False
) -> dict[Group, Standing]:
    """How ``groups`` stand, which are locked: by what is on record with their last booking, in constant time each.

    ``summed`` adds up their windows instead, of which there are hundreds.
    """
    last = [_last_hour(catalog, group) for group in groups]
    given = {
        **{name: [getattr(group, name) for group in groups] for name in Group._fields},
        "last_hour": last,
        "last": [max(hour, group.period_start) for hour, group in zip(last, groups, strict=True)],
        "summed": summed,
    }
    return {groups[row.number - 1]: _standing(row) for row in connection.execute(_STANDINGS, given)}


def _last_hour(catalog: Catalog, group: Group) -> datetime:
    tenant = catalog.tenant(group.tenant_id)
    close = tenant.close(tenant.period_at(group.period_start))
    return utc_hour(close - timedelta(microseconds=1))


def _standing(row: Any) -> Standing:
    # An hour that was metered without this group will not close it; what comes now is late, and the period is over.
    closed = row.is_booked or (row.is_over and not row.is_awaited)
    if row.asked_quantity is None:
        return Standing(row.last, closed)
    # Rows of before these columns were booked without them.
    unlimited = row.amount if row.period_unlimited is None else row.period_unlimited
    answered = row.answered_amount if row.unlimited_amount is None else row.unlimited_amount
    # Where OpenClaw does not tell its terms, nobody knows whether they are still those of an earlier run.
    terms = terms_of(row.rate_card_version, row.terms) or "?"
    return Standing(row.last, closed, row.asked_quantity, row.amount, unlimited, answered, terms, row.currency)


_STANDINGS = text(f"""
    SELECT g.number, g.last, l.asked_quantity, l.answered_amount, l.unlimited_amount, l.period_unlimited,
           l.rate_card_version, l.terms, l.currency,
           CASE WHEN l.period_amount IS NULL OR :summed THEN (
               SELECT sum(amount)
               FROM (SELECT DISTINCT ON (hour, window_start) amount FROM rated_usage r
                     WHERE (r.tenant_id, r.service, r.dimensions, r.period_start)
                         = (g.tenant_id, g.service, g.dimensions, g.period_start) AND r.basis = 'period_to_date'
                     ORDER BY hour, window_start, revision DESC) AS newest)
           ELSE l.period_amount END AS amount,
           EXISTS (SELECT FROM rated_usage r
                   WHERE (r.hour, r.tenant_id, r.service, r.dimensions, r.window_start)
                       = (g.last_hour, g.tenant_id, g.service, g.dimensions, g.last)
                     AND r.basis = 'period_to_date') AS is_booked,
           EXISTS (SELECT FROM metered_hours m WHERE m.hour = g.last_hour)
               OR EXISTS (SELECT FROM metered_shards s
                          LEFT JOIN stripe_customers c ON c.tenant_id = g.tenant_id
                          WHERE s.hour = g.last_hour
                            AND s.shard = bucket(coalesce(c.payer_id, g.tenant_id)) * s.shards / {BUCKETS} + 1)
               AS is_over,
           EXISTS (SELECT FROM metered_usage m
                   WHERE (m.hour, m.tenant_id, m.service, m.dimensions, m.window_start)
                       = (g.last_hour, g.tenant_id, g.service, g.dimensions, g.last)) AS is_awaited
    FROM unnest(CAST(:tenant_id AS text[]), CAST(:service AS text[]), CAST(:dimensions AS text[]),
                CAST(:period_start AS timestamptz[]), CAST(:last_hour AS timestamptz[]), CAST(:last AS timestamptz[]))
        WITH ORDINALITY AS g (tenant_id, service, dimensions, period_start, last_hour, last, number)
    LEFT JOIN LATERAL (
        SELECT asked_quantity, answered_amount, unlimited_amount, period_unlimited, period_amount, rate_card_version,
               answer ->> 'terms' AS terms, currency
        FROM rated_usage r
        WHERE (r.tenant_id, r.service, r.dimensions, r.period_start)
            = (g.tenant_id, g.service, g.dimensions, g.period_start) AND r.basis = 'period_to_date'
        ORDER BY booking DESC LIMIT 1) AS l ON true
""")  # noqa: S608 - of constants
