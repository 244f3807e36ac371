"""Writes what requests bring: one connection, one statement at a time, all that waits in a commit. No HTTP in here."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import psycopg
from sqlalchemy import Engine

log = logging.getLogger(__name__)

Row = TypeVar("Row")

#: Rows in one commit, and rows that may wait for theirs.
BATCH, QUEUE = 100, 500
#: Seconds for one commit, over which the database counts as away.
PATIENCE = 10.0


class DatabaseAway(RuntimeError):
    """The row was not stored, or nobody knows: its sender shall send it again."""


class GroupWriter(Generic[Row]):
    """The writer of one kind of rows in one event loop. Connects when first used, and again after an outage.

    ``insert`` is run by psycopg with what ``values`` makes of rows, and its row count is how many were new: ``counts``
    gets them as ``landed``, the others as ``seen_before``. ``name`` is what the log calls it.
    """

    def __init__(
        self,
        engine: Engine,
        insert: str,
        values: Callable[[Sequence[Row]], Mapping[str, Any]],
        counts: Counter[str],
        name: str,
    ) -> None:
        self._engine = engine
        self._insert = insert
        self._values = values
        self._counts = counts
        self._name = name
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._is_away = False

    async def land(self, row: Row) -> None:
        """Returns when ``row`` is committed, or was before. Raises DatabaseAway."""
        if len(self._waiting) >= QUEUE:
            raise DatabaseAway("too many rows wait")
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((row, stored))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all())
        await stored

    async def close(self) -> None:
        """Ends the connection; what still waits is refused, and its sender sends it again."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                failure: DatabaseAway | None = DatabaseAway("the server stops")
                try:
                    failure = await self._outcome([row for row, _ in batch])
                finally:
                    _settle(batch, failure)
        finally:
            _settle(self._waiting, DatabaseAway("the server stops"))

    async def _outcome(self, rows: list[Row]) -> DatabaseAway | None:
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

    def _away(self, why: str) -> DatabaseAway:
        if not self._is_away:  # once an outage, not once a row
            log.warning("%s can't be stored (%s); senders are asked to send again", self._name, why)
        self._is_away = True
        return DatabaseAway(why)

    async def _write(self, rows: list[Row]) -> int:
        if self._connection is None:
            _, given = self._engine.dialect.create_connect_args(self._engine.url)
            # An answer promises that the row survives a crash, whatever the server's default.
            options = f"-ctimezone=UTC -csynchronous_commit=on -cstatement_timeout={PATIENCE:.0f}s"
            self._connection = await psycopg.AsyncConnection.connect(
                **{**given, "options": options, "connect_timeout": int(PATIENCE)}, autocommit=True
            )
        cursor = await self._connection.execute(self._insert, self._values(rows), prepare=True)
        return cursor.rowcount

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                await connection.close()


def _settle(batch: list[tuple[Row, asyncio.Future[None]]], failure: DatabaseAway | None) -> None:
    for _, stored in batch:
        if not stored.done():  # its request may be gone
            if failure is None:
                stored.set_result(None)
            else:
                stored.set_exception(failure)
