"""What is left of a period's revenue after the provider's cost, where that is known. The costs are the catalogue's.

Revenue is what was rated for windows whose cost is known, cost is their metered quantity at the unit cost of their
hour. Costs come as the reconciliation kept them, so that the same report is the same whatever the catalogue says now.
"""

# ruff: noqa: S608 -- queries are put together from constants; every value is a parameter

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.costs import UnitCost
from clawbill_pipeline.ledger.waterfall import Scope
from clawbill_pipeline.money import EXACT, SCALE, rounded, total

ZERO = Decimal(0)

#: Common table expression ``costs``, in the order of ``cost_parameters``, and the joins that find a window's cost.
COSTS = (
    "costs AS (SELECT * FROM unnest(CAST(:cost_services AS text[]), CAST(:cost_dimensions AS text[]),"
    " CAST(:cost_amounts AS numeric[]), CAST(:cost_pers AS numeric[]), CAST(:cost_currencies AS text[]),"
    " CAST(:cost_starts AS timestamptz[]), CAST(:cost_ends AS timestamptz[]))"
    " WITH ORDINALITY AS c (of_service, of_dimensions, unit_cost, per, cost_currency, begins, expires, number))"
)


def cost_of(window: str) -> str:
    """SQL that joins ``own`` (the cost of the window's dimensions) and ``common`` (of its service) to ``window``."""
    held = (
        "{0}.of_service = {1}.service AND {1}.window_start >= {0}.begins"
        " AND ({0}.expires IS NULL OR {1}.window_start < {0}.expires)"
    )
    return (
        f" LEFT JOIN costs own ON {held.format('own', window)} AND own.of_dimensions = {window}.dimensions"
        f" LEFT JOIN costs common ON {held.format('common', window)} AND common.of_dimensions IS NULL"
        " AND own.number IS NULL"
    )


def cost_parameters(costs: Sequence[UnitCost]) -> dict[str, Any]:
    """The parameters of ``COSTS``."""
    return {
        "cost_services": [cost.service for cost in costs],
        "cost_dimensions": [cost.dimensions for cost in costs],
        "cost_amounts": [cost.amount for cost in costs],
        "cost_pers": [cost.per for cost in costs],
        "cost_currencies": [cost.currency for cost in costs],
        "cost_starts": [cost.starts for cost in costs],
        "cost_ends": [cost.ends for cost in costs],
    }


@dataclass(frozen=True)
class Margin:
    """A tenant's service in a period: ``quantity`` is what has a known cost, ``unknown_quantity`` what has none.

    ``revenue`` (in ``currency``) and ``cost`` (in ``cost_currency``) are of ``quantity`` alone, exact, in major units.
    """

    tenant_id: str
    service: str
    currency: str
    quantity: Decimal
    unknown_quantity: Decimal
    revenue: Decimal
    cost: Decimal
    cost_currency: str

    @property
    def margin(self) -> Decimal | None:
        """Revenue less cost; None where they are in two currencies."""
        return total([self.revenue, self.cost.copy_negate()]) if self.currency == self.cost_currency else None

    @property
    def percent(self) -> Decimal | None:
        """The margin in per cent of the revenue, to two places; None where there is none."""
        if self.margin is None or not self.revenue:
            return None
        with localcontext(EXACT):
            return rounded(self.margin * 100 / self.revenue.copy_abs(), 2)


def read_margins(
    connection: Connection, catalog: Catalog, scope: Scope, costs: Sequence[UnitCost]
) -> tuple[Margin, ...]:
    """The margins of a period, by tenant and service; nothing of services whose cost is unknown throughout."""
    if not costs:
        return ()
    rows = connection.execute(text(_MARGINS), {**scope.parameters, **cost_parameters(costs)}).all()
    unknown: dict[tuple[str, str], Decimal] = {}
    found: dict[tuple[str, str, str, str], list[tuple[Decimal, Decimal, Decimal]]] = {}
    for row in rows:
        if row.number is None:
            so_far = unknown.get((row.tenant_id, row.service), ZERO)
            unknown[row.tenant_id, row.service] = total([so_far, row.quantity])
            continue
        currency = row.currency or (catalog.currency(row.tenant_id) if row.tenant_id in catalog.tenants else None)
        if currency is not None:
            cost = costs[row.number - 1]
            with localcontext(EXACT):
                charged = rounded(row.quantity * cost.amount / cost.per, SCALE)
            key = (row.tenant_id, row.service, currency, cost.currency)
            found.setdefault(key, []).append((row.quantity, row.revenue, charged))
    return tuple(
        Margin(
            tenant_id, service, currency, total(q for q, _, _ in of), unknown.get((tenant_id, service), ZERO),
            total(revenue for _, revenue, _ in of), total(cost for _, _, cost in of), cost_currency,
        )
        for (tenant_id, service, currency, cost_currency), of in sorted(found.items())
    )  # fmt: skip


def totals(margins: Sequence[Margin]) -> Mapping[str, tuple[Decimal, Decimal, Decimal]]:
    """``(revenue, cost, margin)`` by currency, of the margins that are known."""
    known = [margin for margin in margins if margin.margin is not None]
    return {
        currency: (
            total(m.revenue for m in known if m.currency == currency),
            total(m.cost for m in known if m.currency == currency),
            total(m.margin or ZERO for m in known if m.currency == currency),
        )
        for currency in sorted({margin.currency for margin in known})
    }


_KEY = "hour, tenant_id, service, dimensions, window_start"
_MARGINS = f"""
WITH {Scope.PERIODS}, {COSTS},
m AS (SELECT DISTINCT ON ({_KEY}) x.* {Scope.rows("metered_usage")} ORDER BY {_KEY}, revision DESC),
r AS (SELECT DISTINCT ON ({_KEY}) {_KEY}, amount, currency {Scope.rows("rated_usage")} ORDER BY {_KEY}, revision DESC)
SELECT m.tenant_id, m.service, coalesce(own.number, common.number) AS number, r.currency,
       sum(m.quantity) AS quantity, coalesce(sum(r.amount), 0) AS revenue
FROM m LEFT JOIN r USING ({_KEY}) {cost_of("m")}
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"""
