"""How much may be set right while nobody looks. What is safe to do about which break is correcting's."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from clawbill_pipeline.money import currency_code


class Correcting(BaseModel):
    """An action on breaks that come to less than the limit runs by itself; any other waits for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    automatic_below: Decimal = Field(
        Decimal(10), ge=0, description="Limit in major units, for currencies without one of their own; 0: never."
    )
    automatic_below_by_currency: dict[str, Decimal] = Field(
        default_factory=dict, description="Limits by currency: {JPY: 1500}."
    )

    @field_validator("automatic_below_by_currency")
    @classmethod
    def _codes(cls, limits: dict[str, Decimal]) -> dict[str, Decimal]:
        if any(limit < 0 for limit in limits.values()):
            raise ValueError("a limit is below 0; 0 lets nothing run by itself")
        return {currency_code(name): limit for name, limit in limits.items()}

    def limit(self, currency: str | None) -> Decimal:
        """In major units of ``currency``."""
        return self.automatic_below_by_currency.get(currency or "", self.automatic_below)
