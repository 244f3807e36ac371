"""Usage that was posted over HTTP: how a request is kept in the ledger, and how it is read from there. No HTTP in here.

A request is a row, committed before its sender gets an answer: whoever lands usage, on whichever machine, finds it. It
is one line of the input, and its number the line's; a batch has several records. It stays as it was posted until its
events are in the lake and ``keep_days`` have passed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import zstandard
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from clawbill_pipeline.catalog.sources import Http
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock_key
from clawbill_pipeline.ledger.tables import SCHEMA
from clawbill_pipeline.usage.inputs import InputFault, Landing, Line
from clawbill_pipeline.usage.json_formats import CloudEventRecords

#: What the line calls the input: in landings, in quarantine and in ``clawbill explain``.
URI = "POST /usage"
#: Requests that are fetched at a time, and the bytes after which a block ends.
_ROWS, _BLOCK_BYTES = 500, 16 * 1024 * 1024
#: Seconds to wait for requests that are just being stored.
_PATIENCE = 10


@dataclass(frozen=True)
class Posted:
    """A request before it has its number; ``body`` is compressed, ``sha256`` is of what it was."""

    source: str
    sha256: str
    token: str
    events: int
    body: bytes
    received_at: datetime


def posted(source: str, token: str, body: bytes, events: int, received_at: datetime) -> Posted:
    """A request whose ``body`` is one CloudEvent, or an array of ``events`` of them, as JSON."""
    return Posted(source, hashlib.sha256(body).hexdigest(), token, events, zstandard.compress(body, 1), received_at)


# Whoever stores requests holds this lock, beside others who do, from before they get numbers until the commit.
_STORING = lock_key("posted usage")
#: Run by psycopg; its row count is how many requests were new.
INSERT = f"""
WITH storing AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared({_STORING}))
INSERT INTO {SCHEMA}.ingest_requests (source, sha256, token, events, body, received_at)
SELECT posted.* FROM storing, unnest(
    %(source)s::text[], %(sha256)s::text[], %(token)s::text[], %(events)s::integer[], %(body)b::bytea[],
    %(received_at)s::timestamptz[]
) AS posted
ON CONFLICT (source, sha256) DO NOTHING
"""  # noqa: S608 -- a constant of ours


def insert_values(rows: Sequence[Posted]) -> dict[str, list[Any]]:
    """The parameters of INSERT."""
    return {name: [getattr(row, name) for row in rows] for name in Posted.__dataclass_fields__}


class RequestBlock(NamedTuple):
    """Requests with their numbers, in order."""

    requests: list[tuple[int, bytes]]
    whole: bool = True

    @property
    def data(self) -> bytes:
        return b"\n".join(body for _, body in self.requests)

    @property
    def position(self) -> str:
        return f"request {self.requests[-1][0]}"

    @property
    def size(self) -> int:
        return sum(len(body) for _, body in self.requests)

    def lines(self) -> Iterator[Line]:
        for number, body in self.requests:
            yield Line(number, 0, body)


class PostedRequests:
    """The requests of a source as an input. Its position is the number of the last one that was landed."""

    def __init__(self, source: Http, ledger: Ledger) -> None:
        self._source = source.name
        self._ledger = ledger
        self.uri = URI
        self.format = CloudEventRecords()
        self.looks_back = False

    def size(self) -> int:
        return 0

    def stamp(self) -> list[int] | None:
        return None

    def line_at(self, number: int, offset: int) -> Line:
        query = "SELECT body FROM ingest_requests WHERE id = :number AND source = :source"
        with self._ledger.transaction() as connection:
            body = connection.scalar(text(query), {"number": number, "source": self._source})
        if body is None:
            raise InputFault("gone", f"request {number} of source {self._source!r} is not kept any more")
        return Line(number, offset, zstandard.decompress(body))

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[RequestBlock]:
        given = {"source": self._source, "after": _number(landed[-1].position) if landed else 0}
        given["through"] = self._settled()
        requests: list[tuple[int, bytes]] = []
        size = 0
        with self._ledger.transaction() as connection:
            for number, body in connection.execution_options(yield_per=_ROWS).execute(_NEW, given):
                requests.append((number, zstandard.decompress(body)))
                size += len(requests[-1][1])
                if size >= _BLOCK_BYTES:
                    yield RequestBlock(requests)
                    requests, size = [], 0
        if requests:
            yield RequestBlock(requests)

    def _settled(self) -> int:
        """The highest number below which none can appear any more: all who are just storing requests are waited for.

        Numbers are given out before the commit, so that a higher one can be seen before a lower one.
        """
        try:
            with self._ledger.transaction() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE}s'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_STORING})"))
                return connection.scalar(text("SELECT max(id) FROM ingest_requests")) or 0
        except OperationalError:
            raise OSError(f"requests are still being stored after {_PATIENCE} s; the next run lands them") from None


_NEW = text(
    "SELECT id, body FROM ingest_requests WHERE source = :source AND id > :after AND id <= :through ORDER BY id"
)


def _number(position: str) -> int:
    return int(position.removeprefix("request "))


def forget_landed(ledger: Ledger, source: Http, now: datetime) -> int:
    """Deletes requests that were landed and are older than ``keep_days``; returns how many.

    One with an event in quarantine stays, so that it can be replayed. Posted once more, the events of a request that is
    gone are duplicates like any others.
    """
    given = {"source": source.name, "uri": URI, "before": now - timedelta(days=source.keep_days)}
    with ledger.transaction() as connection:
        landed = connection.scalar(_NEWEST, given)
        if landed is None:
            return 0
        return connection.execute(_FORGET, {**given, "through": _number(landed)}).rowcount


_NEWEST = text("""
    SELECT position FROM landings WHERE source = :source AND uri = :uri AND position LIKE 'request %'
    ORDER BY id DESC LIMIT 1
""")
_FORGET = text("""
    DELETE FROM ingest_requests WHERE source = :source AND received_at < :before AND id <= :through AND id NOT IN (
        SELECT CAST(substring(place FROM '^line (\\d+),') AS bigint) FROM quarantine
        WHERE source = :source AND uri = :uri AND place ~ '^line \\d+,'
    )
""")


def waiting(connection: Connection, source: str) -> tuple[int, datetime | None]:
    """``(requests that were posted and are not landed yet, when the oldest of them was posted)``."""
    landed = connection.scalar(_NEWEST, {"source": source, "uri": URI})
    given = {"source": source, "after": _number(landed) if landed else 0}
    return connection.scalar(_WAITING, given) or 0, connection.scalar(_OLDEST, given)


_WAITING = text("SELECT count(*) FROM ingest_requests WHERE source = :source AND id > :after")
_OLDEST = text("SELECT received_at FROM ingest_requests WHERE source = :source AND id > :after ORDER BY id LIMIT 1")
