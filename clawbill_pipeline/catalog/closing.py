"""What happens to an invoice that is about to go out while nobody decided on it. The comparison is invoicing's."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Closing(BaseModel):
    """A draft is compared with the ledger from when it is made until ``margin`` before Stripe finalises it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on_undecided: Literal["finalize", "hold"] = Field(
        "hold", description="A draft that still waits for usage when time is up: let it go out, or hold it."
    )
    margin_minutes: int = Field(10, ge=1, le=1440, description="How long before Stripe finalises a draft time is up.")

    @property
    def margin(self) -> timedelta:
        return timedelta(minutes=self.margin_minutes)
