"""Tenants that share a Stripe customer: who they are, and each one's part of what Stripe has only as their sum.

A part is what is booked for the tenant itself. What belongs to nobody in particular, the rounding and every difference
that Stripe's side has, is the payer's, so that the parts always come to the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Sharing:
    """``payers``: the payer by tenant, of the tenants that another one pays for; ``groups``: the same by payer."""

    payers: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def payer(self, tenant_id: str) -> str:
        """Whose invoices ``tenant_id`` is on; its own if it shares with nobody."""
        return self.payers.get(tenant_id, tenant_id)

    def others(self, payer_id: str) -> tuple[str, ...]:
        """The tenants that ``payer_id`` pays for beside itself, in order."""
        return self.groups.get(payer_id, ())


def read_sharing(connection: Connection) -> Sharing:
    """Who shares with whom, as mapped in the ledger."""
    query = text("SELECT tenant_id, payer_id FROM stripe_customers WHERE payer_id IS NOT NULL ORDER BY tenant_id")
    payers: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(query):
        payers[row.tenant_id] = row.payer_id
        groups[row.payer_id] = (*groups.get(row.payer_id, ()), row.tenant_id)
    return Sharing(payers, groups)
