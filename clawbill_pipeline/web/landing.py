"""Writes landed events: one connection, one statement at a time, all that waits in one commit. No HTTP in here."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import Any

import psycopg
from sqlalchemy import Engine

from clawbill_pipeline.invoicing.landing import INSERT, Landed, insert_values

log = logging.getLogger(__name__)

#: Events in one commit, and events that may wait for theirs: each can be as large as the webhook takes.
BATCH, QUEUE = 100, 500
#: Seconds for one commit, over which the database counts as away.
PATIENCE = 10.0


class InboxAway(RuntimeError):
    """The event was not stored, or nobody knows: Stripe shall send it again."""


class InboxWriter:
    """The inbox's writer in one event loop. Connects when first used, and again after the database was away."""

    def __init__(self, engine: Engine, counts: Counter[str]) -> None:
        self._engine = engine
        self._counts = counts
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._waiting: list[tuple[Landed, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._is_away = False

    async def land(self, row: Landed) -> None:
        """Returns when ``row`` is committed, or was before. Raises InboxAway."""
        if len(self._waiting) >= QUEUE:
            raise InboxAway("too many events wait")
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((row, stored))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all())
        await stored

    async def close(self) -> None:
        """Ends the connection; what still waits is refused, and Stripe sends it again."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                failure: InboxAway | None = InboxAway("the server stops")
                try:
                    failure = await self._outcome([row for row, _ in batch])
                finally:
                    _settle(batch, failure)
        finally:
            _settle(self._waiting, InboxAway("the server stops"))

    async def _outcome(self, rows: list[Landed]) -> InboxAway | None:
        # A connection that stood idle may have died with a restart of the database: one more try on a new one.
        fresh = self._connection is None
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    new = await self._write(rows)
            except (psycopg.Error, OSError, TimeoutError) as error:
                await self._disconnect()
                if fresh or isinstance(error, TimeoutError):
                    return self._away(type(error).__name__)
                fresh = True
            else:
                self._is_away = False
                self._counts["landed"] += new
                self._counts["seen_before"] += len(rows) - new
                return None

    def _away(self, why: str) -> InboxAway:
        if not self._is_away:  # once an outage, not once an event
            log.warning("webhook: events can't be stored (%s); Stripe is asked to send them again", why)
        self._is_away = True
        return InboxAway(why)

    async def _write(self, rows: list[Landed]) -> int:
        if self._connection is None:
            _, given = self._engine.dialect.create_connect_args(self._engine.url)
            options = f"-ctimezone=UTC -cstatement_timeout={PATIENCE:.0f}s"
            self._connection = await psycopg.AsyncConnection.connect(
                **{**given, "options": options, "connect_timeout": int(PATIENCE)}, autocommit=True
            )
        cursor = await self._connection.execute(INSERT, insert_values(rows), prepare=True)
        return cursor.rowcount

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                await connection.close()


def _settle(batch: list[tuple[Landed, asyncio.Future[None]]], failure: InboxAway | None) -> None:
    for _, stored in batch:
        if not stored.done():  # its request may be gone
            if failure is None:
                stored.set_result(None)
            else:
                stored.set_exception(failure)
