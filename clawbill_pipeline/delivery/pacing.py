"""How fast Stripe is asked, and how long to wait after a failure. Knows nothing of what is sent."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

_RANDOM = random.SystemRandom()


class TokenBucket:
    """Lets ``rate`` calls a second pass, evenly; what was not used for up to ``burst`` seconds can be caught up on."""

    def __init__(self, rate: float, burst: float = 0.02) -> None:
        self._interval = 1 / rate
        self._burst = burst
        self._next = time.monotonic()

    async def take(self) -> None:
        """Returns when the next call may be made."""
        now = time.monotonic()
        # Each caller gets a moment of its own, so that many waiting callers wake one by one and in order.
        moment = max(self._next, now - self._burst)
        self._next = moment + self._interval
        if moment > now:
            await asyncio.sleep(moment - now)


@dataclass(frozen=True)
class Backoff:
    """Waiting times in seconds that double from ``first`` up to ``longest``, with jitter."""

    first: float = 0.25
    longest: float = 30.0

    def before(self, attempt: int) -> float:
        """How long to wait before ``attempt`` (the second one is 2); never less than half of the doubled time."""
        ceiling = min(self.longest, self.first * 2.0 ** min(attempt - 2, 30))
        return ceiling * (0.5 + 0.5 * _RANDOM.random())
