"""How tenants stand (paid, overdue, ...), as they were last reported. Kept in SQLite; nothing is done about it here."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tenant_status (
    tenant_id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    reported_at TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True)
class Status:
    """A reported status; ``reported_at`` is ISO 8601."""

    status: str
    reported_at: str


class Standing:
    """The statuses in ``folder``, which processes may share. What ``put`` returned from is on the disk.

    One thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "openclaw.sqlite", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA busy_timeout = 5000")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def put(self, tenant_id: str, status: Status) -> Status:
        """Keeps ``status``. One that says the same as the last changes nothing. Returns what is kept."""
        # The assignments leave the row as it is where the status is the same; RETURNING needs them to touch it.
        row = self._db.execute(
            "INSERT INTO tenant_status AS t VALUES (?, ?, ?) ON CONFLICT (tenant_id) DO UPDATE SET "
            "status = excluded.status, "
            "reported_at = CASE WHEN t.status = excluded.status THEN t.reported_at ELSE excluded.reported_at END "
            "RETURNING status, reported_at",
            (tenant_id, status.status, status.reported_at),
        ).fetchone()
        return Status(*row)

    def get(self, tenant_id: str) -> Status | None:
        """The last status reported for the tenant, or None."""
        sql = "SELECT status, reported_at FROM tenant_status WHERE tenant_id = ?"
        row = self._db.execute(sql, (tenant_id,)).fetchone()
        return Status(*row) if row else None
