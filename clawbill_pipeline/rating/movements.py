"""What a change of prices comes to: per service, tenant and currency, up and down. Plain values and sums.

The amounts come from ``simulation``; how they are shown is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

from clawbill_pipeline.money import plain, total
from clawbill_pipeline.rating.engine.arithmetic import exactly, rounded_quotient

#: Decimal places of percentages that are shown. Comparisons with a threshold are exact.
PERCENT_PLACES = 2


@dataclass(frozen=True)
class Cost:
    """What a tenant's use of a service costs under one catalogue: exact, in major units of ``currency``.

    ``fault`` says why something has no price in it; the amount is then without it.
    """

    amount: Decimal
    currency: str
    fault: str = ""


@dataclass(frozen=True)
class Movement:
    """The same usage under the current and the candidate catalogue; None where one of them knows no such tenant."""

    tenant_id: str
    service: str
    quantity: Decimal
    current: Cost | None
    candidate: Cost | None

    @property
    def currency(self) -> str | None:
        """The currency of both amounts; None where they have none in common."""
        found = {cost.currency for cost in (self.current, self.candidate) if cost is not None}
        return found.pop() if len(found) == 1 else None

    @property
    def current_amount(self) -> Decimal | None:
        return self.current.amount if self.current else None

    @property
    def candidate_amount(self) -> Decimal | None:
        return self.candidate.amount if self.candidate else None

    @property
    def change(self) -> Decimal | None:
        """Candidate less current; None where the two can't be compared."""
        if self.current is None or self.candidate is None or self.currency is None:
            return None
        return _difference(self.candidate.amount, self.current.amount)

    @property
    def percent(self) -> Decimal | None:
        """``change`` in per cent of the current amount; None where there is none."""
        return None if self.current is None or self.change is None else _percent(self.change, self.current.amount)

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps ``change`` from telling all, for people."""
        sides = (("current", self.current), ("candidate", self.candidate))
        said = [f"{name}: {cost.fault if cost else 'no such tenant'}" for name, cost in sides if not cost or cost.fault]
        if self.current and self.candidate and self.currency is None:
            said.append(f"currency changes from {self.current.currency} to {self.candidate.currency}")
        return tuple(said)

    @property
    def note(self) -> str:
        return "; ".join(self.faults)

    def as_json(self) -> dict[str, Any]:
        """Decimals as strings."""
        return {
            "tenant_id": self.tenant_id,
            "service": self.service,
            "currency": self.currency,
            "quantity": plain(self.quantity),
            "current": _text(self.current_amount),
            "candidate": _text(self.candidate_amount),
            "change": _text(self.change),
            "percent": _text(self.percent),
            "faults": list(self.faults),
        }


@dataclass(frozen=True)
class Bill:
    """A tenant's comparable movements in one currency, summed over services."""

    tenant_id: str
    currency: str
    current: Decimal
    candidate: Decimal

    @property
    def change(self) -> Decimal:
        return _difference(self.candidate, self.current)

    @property
    def percent(self) -> Decimal | None:
        return _percent(self.change, self.current)

    def moves_more_than(self, percent: Decimal) -> bool:
        """Whether the bill goes up or down by more than ``percent`` per cent; one that comes from nothing always."""
        with exactly():
            return abs(self.change) * 100 > percent * abs(self.current)

    def as_json(self) -> dict[str, Any]:
        """Decimals as strings."""
        return {"tenant_id": self.tenant_id, "currency": self.currency, **_sides(self)}


@dataclass(frozen=True)
class Revenue:
    """All comparable bills of one currency: ``up`` and ``down`` are the sums of those that rise and fall."""

    currency: str
    current: Decimal
    candidate: Decimal
    up: Decimal
    down: Decimal
    tenants: int
    tenants_up: int
    tenants_down: int

    @property
    def change(self) -> Decimal:
        return _difference(self.candidate, self.current)

    @property
    def percent(self) -> Decimal | None:
        return _percent(self.change, self.current)

    def as_json(self) -> dict[str, Any]:
        """Decimals as strings."""
        counts = {"tenants": self.tenants, "tenants_up": self.tenants_up, "tenants_down": self.tenants_down}
        return {"currency": self.currency, **_sides(self), "up": plain(self.up), "down": plain(self.down), **counts}


@dataclass(frozen=True)
class Comparison:
    """Two catalogues over the usage of ``[start, end)``, by tenant and service.

    ``later`` names rate cards of the candidate that change after ``end``, with the moment: those prices rate nothing.
    """

    start: datetime
    end: datetime
    movements: tuple[Movement, ...]
    as_of: datetime | None = None
    later: tuple[tuple[str, datetime], ...] = ()

    @cached_property
    def bills(self) -> tuple[Bill, ...]:
        """Tenants by the size of their change, the largest first, up or down."""
        parts: dict[tuple[str, str], list[Movement]] = {}
        for movement in self.movements:
            if movement.change is not None and movement.currency is not None:
                parts.setdefault((movement.tenant_id, movement.currency), []).append(movement)
        bills = [
            Bill(
                *key,
                total(m.current.amount for m in of if m.current),
                total(m.candidate.amount for m in of if m.candidate),
            )
            for key, of in parts.items()
        ]
        return tuple(sorted(bills, key=lambda bill: (-abs(bill.change), bill.tenant_id, bill.currency)))

    @cached_property
    def revenue(self) -> tuple[Revenue, ...]:
        """By currency, in the order of its code."""
        return tuple(
            _revenue(currency, [bill for bill in self.bills if bill.currency == currency])
            for currency in sorted({bill.currency for bill in self.bills})
        )

    @property
    def unclear(self) -> tuple[Movement, ...]:
        """Movements whose change does not tell all, but for tenants that neither catalogue knows."""
        return tuple(m for m in self.movements if m.faults and (m.current or m.candidate))

    @property
    def unbilled(self) -> tuple[str, ...]:
        """Tenants with usage that neither catalogue knows."""
        return tuple(sorted({m.tenant_id for m in self.movements if m.current is None and m.candidate is None}))

    def beyond(self, percent: Decimal) -> tuple[Bill, ...]:
        """The bills that move by more than ``percent`` per cent, up or down."""
        return tuple(bill for bill in self.bills if bill.moves_more_than(percent))

    def as_json(self) -> dict[str, Any]:
        """All of it: decimals as strings, instants in ISO 8601."""
        return {
            "from": self.start.isoformat(),
            "to": self.end.isoformat(),
            "as_of": self.as_of and self.as_of.isoformat(),
            "revenue": [revenue.as_json() for revenue in self.revenue],
            "tenants": [bill.as_json() for bill in self.bills],
            "movements": [movement.as_json() for movement in self.movements],
            "in_neither_catalogue": list(self.unbilled),
            "later_versions": [{"rate_card": card, "effective_from": at.isoformat()} for card, at in self.later],
        }


def _revenue(currency: str, bills: Iterable[Bill]) -> Revenue:
    bills = list(bills)
    changes = [bill.change for bill in bills]
    up, down = [c for c in changes if c > 0], [c for c in changes if c < 0]
    current, candidate = total(bill.current for bill in bills), total(bill.candidate for bill in bills)
    return Revenue(currency, current, candidate, total(up), total(down), len(bills), len(up), len(down))


def _sides(row: Bill | Revenue) -> dict[str, str | None]:
    return {
        "current": plain(row.current),
        "candidate": plain(row.candidate),
        "change": plain(row.change),
        "percent": _text(row.percent),
    }


def _text(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)


def _difference(one: Decimal, other: Decimal) -> Decimal:
    with exactly():
        return one - other


def _percent(change: Decimal, of: Decimal) -> Decimal | None:
    if not of:
        return None
    with exactly():
        return rounded_quotient(change * 100, abs(of), PERCENT_PLACES)
