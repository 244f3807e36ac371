"""The rate of meter calls an account may make: a token bucket on the wall clock. Off unless the account is set to one.

Stripe's own: 1,000 calls a second in live mode for v1, and no number is promised in test mode.
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.errors import ApiError


class Limiter:
    """One bucket an account, one second deep."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, account: str, rate: int, now: float) -> None:
        """Takes one token at ``now`` (seconds, any monotonic clock). Raises ApiError (429) where there is none."""
        tokens, filled = self._buckets.get(account, (float(rate), now))
        tokens = min(float(rate), tokens + (now - filled) * rate)
        if tokens < 1:
            self._buckets[account] = tokens, now
            headers = {"stripe-rate-limited-reason": "endpoint-rate"}
            raise ApiError(429, "Request rate limit exceeded.", code="rate_limit", headers=headers)
        self._buckets[account] = tokens - 1, now
