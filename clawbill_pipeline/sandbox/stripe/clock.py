"""The sandbox's clock, and the due effects it brings about. What an effect does is in the resource modules.

Set, it stands still and moves by ``POST /_sandbox/clock`` only; never set, it follows the wall clock. Either way the
effects happen in the order of their time, and each one sees its own time as now.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.store import Store

if TYPE_CHECKING:
    from clawbill_pipeline.sandbox.stripe.core import Call

_AT_ONCE = 200


class Clock:
    """Now, in unix seconds. ``effects`` says what each kind of due effect does: ``effect(call, id of the object)``."""

    def __init__(self, store: Store, effects: dict[str, Callable[[Call, str], None]], start: int | None = None) -> None:
        self._store = store
        self._effects = effects
        self._moving = asyncio.Lock()
        self._effect_at: int | None = None
        row = store.db.execute("SELECT now FROM clock").fetchone()
        self._set: int | None = row["now"] if row else None
        if start is not None and (self._set is None or start > self._set):
            # Within --now on a fresh folder; on an older one time never goes back.
            self._set = start
            store.db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", (start,))

    @property
    def follows_the_wall(self) -> bool:
        return self._set is None

    def now(self) -> int:
        """Unix seconds: of the effect under way, else the set time, else the wall's."""
        if self._effect_at is not None:
            return self._effect_at
        return int(time.time()) if self._set is None else self._set

    async def set(self, now: int) -> int:
        """Moves to ``now`` and returns how many effects happened on the way. Raises ApiError (400) for going back."""
        async with self._moving:
            if now < self.now():
                raise ApiError(400, f"The clock stands at {self.now()} and only moves forward.", param="now")
            self._store.begin()
            if self._set is None:
                self._keep(self.now())
            happened = await self._run_until(now)
            self._store.begin()
            self._keep(now)
            await self._store.durable()
            return happened

    async def catch_up(self) -> int:
        """Makes everything happen that is due by now; returns how much that was."""
        async with self._moving:
            return await self._run_until(self.now())

    def _keep(self, now: int) -> None:
        self._set = now
        self._store.db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", (now,))

    async def _run_until(self, end: int) -> int:
        happened = 0
        while True:
            self._store.begin()
            for _ in range(_AT_ONCE):
                sql = "SELECT seq, at, account, kind, ref FROM due WHERE at <= ? ORDER BY at, seq LIMIT 1"
                row = self._store.db.execute(sql, (end,)).fetchone()
                if row is None:
                    await self._store.durable()
                    return happened
                self._happen(row)
                happened += 1
            await self._store.durable()
            await asyncio.sleep(0)

    def _happen(self, row: sqlite3.Row) -> None:
        from clawbill_pipeline.sandbox.stripe.core import Call

        if self._set is not None and row["at"] > self._set:
            self._keep(row["at"])
        self._effect_at = row["at"] if self._set is None else self._set
        try:
            with self._store.savepoint():
                self._store.db.execute("DELETE FROM due WHERE seq = ?", (row["seq"],))
                self._effects[row["kind"]](Call(self._store, self, row["account"]), row["ref"])
        finally:
            self._effect_at = None
