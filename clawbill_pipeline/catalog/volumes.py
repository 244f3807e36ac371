"""When a tenant's volume is news: how far from usual an hour may be. What is usual is metering's to find."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field


class Volumes(BaseModel):
    """Limits of what is usual, for each tenant and service by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Decimal = Field(
        Decimal(5),
        gt=1,
        le=1000,
        description="A jump is more than so many times the usual quantity; a drop, less than the usual divided by it.",
    )
    minimum_events: int = Field(
        100, ge=1, description="Hours that have, and usually have, fewer events than this are not looked at."
    )
