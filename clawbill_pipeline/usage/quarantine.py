"""Lines that could not be read as usage, and how they are kept. Why a line is here is decided where it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.masking import without_secrets

#: Characters of a line that are kept.
LONGEST_RAW = 2000
#: The position of a landing that brings what quarantine held: this and the entry's id.
REPLAY = "replay of "
#: The field of an entry that is an input as a whole, or its end.
WHOLE = "file"


class Entry(NamedTuple):
    """A line that was set aside, with the landing that read it, or a whole input, with the last landing before."""

    source: str
    uri: str
    place: str
    reason: str
    field: str
    detail: str
    raw: str
    tenant_id: str | None
    landing_id: int | None


def masked(raw: bytes | str) -> str:
    """``raw`` as text that PostgreSQL holds, without secrets, cut to ``LONGEST_RAW`` characters."""
    start = raw[: 4 * LONGEST_RAW]
    shown = start.decode("utf-8", "backslashreplace") if isinstance(start, bytes) else start
    shown = shown.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return without_secrets(shown)[:LONGEST_RAW]


_INSERT = text("""
    INSERT INTO quarantine (source, uri, place, reason, field, detail, raw, tenant_id, landing_id, quarantined_at)
    VALUES (:source, :uri, :place, :reason, :field, :detail, :raw, :tenant_id, :landing_id, :now)
    ON CONFLICT DO NOTHING
""")


@dataclass(frozen=True)
class Quarantined:
    """An entry as the ledger keeps it. ``settled``: its line was landed since, or its input was read to its end."""

    id: int
    source: str
    uri: str
    place: str
    reason: str
    field: str
    detail: str
    raw: str
    tenant_id: str | None
    landing_id: int | None
    quarantined_at: datetime
    settled: bool


# A line is settled by its replay; an input that was left alone, by a later landing of it.
_ENTRIES = """
    SELECT * FROM (
        SELECT q.id, q.source, q.uri, q.place, q.reason, q.field, q.detail, q.raw, q.tenant_id, q.landing_id,
               q.quarantined_at, EXISTS (
                   SELECT FROM landings l WHERE l.source = q.source AND l.uri = q.uri
                   AND (l.position = 'replay of ' || q.id OR q.field = 'file' AND l.id > coalesce(q.landing_id, 0))
               ) AS settled
        FROM quarantine q
        WHERE (CAST(:id AS bigint) IS NULL OR q.id = :id) AND (CAST(:source AS text) IS NULL OR q.source = :source)
        AND (CAST(:tenant_id AS text) IS NULL OR q.tenant_id = :tenant_id)
        AND (CAST(:reason AS text) IS NULL OR q.reason = :reason)
    ) e WHERE :all OR NOT settled ORDER BY id LIMIT :limit
"""


def entries(
    ledger: Ledger,
    *,
    source: str | None = None,
    tenant_id: str | None = None,
    reason: str | None = None,
    settled: bool = False,
    limit: int = 1000,
) -> list[Quarantined]:
    """What is in quarantine, oldest first; with ``settled``, also what has been landed since."""
    given = {"id": None, "source": source, "tenant_id": tenant_id, "reason": reason, "all": settled, "limit": limit}
    return _entries(ledger, given)


def entry(ledger: Ledger, id: int) -> Quarantined:
    """One entry. Raises LookupError where there is none of that id."""
    given = {"id": id, "source": None, "tenant_id": None, "reason": None, "all": True, "limit": 1}
    found = _entries(ledger, given)
    if not found:
        raise LookupError(f"quarantine has no entry {id}; `clawbill quarantine list --all` shows what it has")
    return found[0]


def _entries(ledger: Ledger, given: Mapping[str, Any]) -> list[Quarantined]:
    with ledger.transaction() as connection:
        return [Quarantined(*row) for row in connection.execute(text(_ENTRIES), given)]


def set_aside(connection: Connection, entries: Iterable[Entry], now: datetime) -> None:
    """Keeps ``entries``; those that are there already stay as they are."""
    rows: list[Mapping[str, Any]] = [{**entry._asdict(), "now": now} for entry in entries]
    if rows:
        connection.execute(_INSERT, rows)
