"""Lines that could not be read as usage, and how they are kept. Why a line is here is decided where it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

#: Characters of a line that are kept.
LONGEST_RAW = 2000

# Secrets that end up in logs, by the forms that their issuers give them, and by the names that fields have.
_SECRETS = re.compile(
    r"""(?ix)
    \b(?:sk|rk|pk)_(?:live|test)_\w+ | \bwhsec_[\w+/=]+ | \bsk-[\w-]{8,} | \bgh[pousr]_\w{8,} | \bxox[a-z]-[\w-]{8,}
    | \bAKIA[0-9A-Z]{12,} | \beyJ[\w-]{8,}\.[\w-]+\.[\w-]* | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*
    | (?<=bearer\ )[^\s"',]+ | (?<=basic\ )[\w+/=]{8,} | (?<=://)[^\s/@:"]*:[^\s/@"]+(?=@)
    | (?<="password":)\s*"[^"]*" | (?<="passwd":)\s*"[^"]*" | (?<="secret":)\s*"[^"]*" | (?<="token":)\s*"[^"]*"
    | (?<="api_key":)\s*"[^"]*" | (?<="apikey":)\s*"[^"]*" | (?<="authorization":)\s*"[^"]*"
    | (?<="access_token":)\s*"[^"]*" | (?<="client_secret":)\s*"[^"]*"
    """
)


class Entry(NamedTuple):
    """A line, or a whole input, that was set aside. ``landing_id`` is None where nothing of the input was landed."""

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
    return _SECRETS.sub("***", shown)[:LONGEST_RAW]


_INSERT = text("""
    INSERT INTO quarantine (source, uri, place, reason, field, detail, raw, tenant_id, landing_id, quarantined_at)
    VALUES (:source, :uri, :place, :reason, :field, :detail, :raw, :tenant_id, :landing_id, :now)
    ON CONFLICT DO NOTHING
""")


def set_aside(connection: Connection, entries: Iterable[Entry], now: datetime) -> None:
    """Keeps ``entries``; those that are there already stay as they are."""
    rows: list[Mapping[str, Any]] = [{**entry._asdict(), "now": now} for entry in entries]
    if rows:
        connection.execute(_INSERT, rows)
