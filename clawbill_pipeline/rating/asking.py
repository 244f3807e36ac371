"""Asks OpenClaw with patience and restraint: bounded concurrency, backoff, and a circuit breaker. Books nothing."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

from clawbill_pipeline.openclaw import Answer, OpenClawError, OpenClawSession

#: Longest pause between two attempts, seconds. A server that wants longer is asked again by a later run.
LONGEST_PAUSE = 20.0
#: So many failures in a row, over all rows, and the server counts as down.
BREAKER = 25


class Asker:
    """One run's questions to OpenClaw, inside one event loop."""

    def __init__(self, session: OpenClawSession, *, attempts: int, concurrency: int, first_pause: float = 0.2) -> None:
        self._session = session
        self._attempts = attempts
        self._turn = asyncio.Semaphore(concurrency)
        self._first_pause = first_pause
        self._failures = 0
        self._not_before = 0.0

    async def rate(
        self, tenant_id: str, service: str, quantity: Decimal, currency: str, *, negative: bool = False
    ) -> Answer:
        """As ``OpenClawSession.rate``; network errors, 429 and 5xx are tried again a few times.

        Pauses double and carry jitter; a ``Retry-After`` is honoured by all questions of the run. After ``BREAKER``
        failures in a row nothing is sent any more in this run, and every further row fails at once, to be tried by
        the next run.
        """
        async with self._turn:
            for attempt in range(self._attempts):
                if self._failures >= BREAKER:
                    raise OpenClawError(
                        f"OpenClaw failed {BREAKER} times in a row and was left alone for the rest of this run",
                        retryable=True,
                    )
                await self._wait()
                try:
                    answer = await self._session.rate(tenant_id, service, quantity, currency, negative=negative)
                except OpenClawError as error:
                    if not error.retryable:
                        self._failures = 0  # it answers
                        raise
                    self._failures += 1
                    pause = self._first_pause * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                    wanted = error.retry_after or 0
                    if wanted <= LONGEST_PAUSE:
                        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + wanted)
                    if attempt + 1 == self._attempts or wanted > LONGEST_PAUSE:
                        raise
                    await asyncio.sleep(min(pause, LONGEST_PAUSE))
                else:
                    self._failures = 0
                    return answer
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _wait(self) -> None:
        while (pause := self._not_before - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(pause)
