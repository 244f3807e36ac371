"""When silence is news: how long a source may land nothing. Who is told is the environment's (CLAWBILL_ALERTS)."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field


class Alerting(BaseModel):
    """Hours without a landing after which a source is stale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stale_after_hours: int = Field(24, ge=1, le=8760, description="Hours without a landing until a source is stale.")
    stale_after_hours_by_source: dict[str, int] = Field(
        default_factory=dict, description="For sources that are faster or slower than the others, by name."
    )

    def stale_after(self, source: str) -> timedelta:
        return timedelta(hours=self.stale_after_hours_by_source.get(source, self.stale_after_hours))
