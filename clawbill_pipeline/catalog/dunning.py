"""How long a tenant may owe before its standing gets worse. The states themselves are invoicing's."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Dunning(BaseModel):
    """Days of the two steps that no event of Stripe's takes. A payment ends both at any time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overdue_after_days: int = Field(
        7, ge=0, le=365, description="Days past due, after a failed payment, until overdue."
    )
    suspended_after_days: int | None = Field(
        14, ge=0, le=365, description="Days overdue until suspended; null suspends nobody by itself."
    )
