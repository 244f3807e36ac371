"""The sandbox's state: one SQLite file, objects as JSON, group commit. Knows no resource's rules.

Everything runs on the event loop's thread, so a handler is never interrupted. Writes join the open transaction and
``durable()`` resolves when it is committed: many requests share one commit, and none is answered before its own.
WAL with ``synchronous=NORMAL`` hands each commit to the operating system: a killed process loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

_VERSION = 3
_SCHEMA = """
CREATE TABLE objects (
    seq INTEGER PRIMARY KEY, account TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, created INTEGER NOT NULL,
    customer TEXT, parent TEXT, status TEXT, lookup TEXT, data TEXT NOT NULL, UNIQUE (account, kind, id));
CREATE INDEX objects_listed ON objects (account, kind, seq);
CREATE INDEX objects_of_customer ON objects (account, kind, customer, seq) WHERE customer IS NOT NULL;
CREATE INDEX objects_of_parent ON objects (account, kind, parent, seq) WHERE parent IS NOT NULL;
CREATE INDEX objects_looked_up ON objects (account, kind, lookup) WHERE lookup IS NOT NULL;
CREATE TABLE counters (account TEXT, kind TEXT, n INTEGER NOT NULL, PRIMARY KEY (account, kind)) WITHOUT ROWID;
CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), now INTEGER NOT NULL);
CREATE TABLE settings (account TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (account, name)) WITHOUT ROWID;
CREATE TABLE due (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, account TEXT NOT NULL, kind TEXT NOT NULL, ref TEXT NOT NULL);
CREATE INDEX due_next ON due (at, seq);
CREATE INDEX due_of ON due (account, kind, ref);
CREATE TABLE idempotency (
    account TEXT, key TEXT, request TEXT NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (account, key)) WITHOUT ROWID;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, account TEXT NOT NULL, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL,
    created INTEGER NOT NULL, object_id TEXT, thin INTEGER NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_listed ON events (account, thin, seq);
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY, account TEXT NOT NULL, event TEXT NOT NULL, endpoint TEXT NOT NULL, thin INTEGER NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL, next_at REAL NOT NULL, rank INTEGER NOT NULL, first_at REAL,
    answer TEXT);
CREATE INDEX deliveries_waiting ON deliveries (next_at, rank, seq) WHERE state = 'pending';
CREATE INDEX deliveries_of_event ON deliveries (event);
CREATE TABLE meter_events (
    seq INTEGER PRIMARY KEY, account TEXT NOT NULL, identifier TEXT NOT NULL, event_name TEXT NOT NULL,
    customer TEXT, value INTEGER, timestamp INTEGER NOT NULL, received INTEGER NOT NULL, state TEXT NOT NULL,
    request TEXT, meter TEXT, reported INTEGER);
CREATE INDEX meter_events_unreported ON meter_events (account, meter) WHERE reported = 0;
CREATE INDEX meter_events_identified ON meter_events (account, identifier);
CREATE INDEX meter_events_summed ON meter_events (account, event_name, customer, timestamp);
CREATE TABLE usage_records (
    seq INTEGER PRIMARY KEY, account TEXT NOT NULL, item TEXT NOT NULL, timestamp INTEGER NOT NULL,
    quantity INTEGER NOT NULL, UNIQUE (account, item, timestamp));
"""
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Store:
    """SQLite under the sandbox. Raises SystemExit where another sandbox holds the folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "stripe.sqlite3"
        self._commit: asyncio.Future[None] | None = None
        self._after: list[Callable[[], None]] = []
        #: What the busiest call would read each time: meters by (account, event name). Emptied when a meter changes.
        self.meters: dict[tuple[str, str], dict[str, Any] | None] = {}
        #: Called when a delivery was queued; the delivery worker puts its own here.
        self.wake_delivery: Callable[[], None] = lambda: None
        db = sqlite3.connect(self.path, isolation_level=None, timeout=0.2, cached_statements=256)
        db.row_factory = sqlite3.Row
        try:
            # One process a folder: the lock is held for good, and the system frees it when the process dies.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise SystemExit(f"{self.path}: written by another version of the sandbox; use a fresh --state folder")
        except sqlite3.OperationalError as error:
            raise SystemExit(f"{self.path}: {error}. Another sandbox holds it; give this one its own --state") from None
        self.db = db
        rows = db.execute("SELECT account, name, value FROM settings")
        self._settings = {(row["account"], row["name"]): json.loads(row["value"]) for row in rows}

    # Transactions

    def begin(self) -> None:
        """Opens the shared transaction, if none is open, and schedules its commit on the running loop."""
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")
        if self._commit is None:
            loop = asyncio.get_running_loop()
            self._commit = loop.create_future()
            loop.call_soon(self._do_commit, self._commit)

    async def durable(self) -> None:
        """Returns when everything written so far is committed. Raises what the commit raised."""
        if self._commit is not None:
            await asyncio.shield(self._commit)

    def after_commit(self, call: Callable[[], None]) -> None:
        """Calls ``call`` once the open transaction is committed (to wake a worker)."""
        self._after.append(call)

    def _do_commit(self, waiting: asyncio.Future[None]) -> None:
        self._commit = None
        after, self._after = self._after, []
        try:
            if self.db.in_transaction:
                self.db.execute("COMMIT")
        except sqlite3.Error as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            waiting.set_exception(error)
            waiting.exception()  # Some commits nobody waits for.
            return
        waiting.set_result(None)
        for call in after:
            call()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undoes what its block wrote if the block raises; the rest of the shared transaction stays."""
        self.begin()
        self.db.execute("SAVEPOINT call")
        try:
            yield
        except BaseException:
            self.meters.clear()
            self.db.execute("ROLLBACK TO call")
            self.db.execute("RELEASE call")
            raise
        self.db.execute("RELEASE call")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """For a block that writes last, or not at all: it needs nothing undone."""
        self.begin()
        yield

    def close(self) -> None:
        """Commits what is open and closes the file."""
        if self.db.in_transaction:
            self.db.execute("COMMIT")
        self.db.close()

    # Identifiers

    def count(self, account: str, kind: str) -> int:
        """The next number (1, 2, ...) of ``kind`` in ``account``."""
        sql = "INSERT INTO counters VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1 RETURNING n"
        return int(self.db.execute(sql, (account, kind)).fetchone()[0])

    def new_id(self, account: str, prefix: str) -> str:
        """``cus_`` and 14 more characters: the same in every run that does the same things in the same order."""
        return f"{prefix}_{scrambled(account, prefix, self.count(account, prefix))}"

    # Objects

    def put(self, account: str, kind: str, obj: dict[str, Any]) -> dict[str, Any]:
        """Writes ``obj`` (new or changed). Keys that begin with ``_`` are the sandbox's own and never shown."""
        if kind == "meter":
            self.meters.clear()
        self.db.execute(
            "INSERT INTO objects (account, kind, id, created, customer, parent, status, lookup, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (account, kind, id) DO UPDATE SET customer ="
            " excluded.customer, parent = excluded.parent, status = excluded.status, lookup = excluded.lookup,"
            " data = excluded.data",
            (
                account,
                kind,
                obj["id"],
                obj.get("created", 0),
                obj.get("customer"),
                obj.get("_parent"),
                obj.get("status"),
                obj.get("_lookup"),
                json.dumps(obj, separators=(",", ":")),
            ),
        )
        return obj

    def get(self, account: str, kind: str, identifier: str) -> dict[str, Any] | None:
        """The object, or None."""
        sql = "SELECT data FROM objects WHERE account = ? AND kind = ? AND id = ?"
        row = self.db.execute(sql, (account, kind, identifier)).fetchone()
        return None if row is None else _loaded(row["data"])

    def has(self, account: str, kind: str, identifier: str) -> bool:
        """Whether the object is there."""
        sql = "SELECT 1 FROM objects WHERE account = ? AND kind = ? AND id = ?"
        return self.db.execute(sql, (account, kind, identifier)).fetchone() is not None

    def drop(self, account: str, kind: str, identifier: str) -> None:
        """Removes an object for good."""
        self.db.execute("DELETE FROM objects WHERE account = ? AND kind = ? AND id = ?", (account, kind, identifier))

    def select(self, account: str, kind: str, **where: str) -> list[dict[str, Any]]:
        """All objects with these values of ``customer``, ``parent``, ``status`` or ``lookup``, oldest first."""
        tests = "".join(f" AND {column} = ?" for column in where)
        sql = f"SELECT data FROM objects WHERE account = ? AND kind = ?{tests} ORDER BY seq"  # noqa: S608 (own names)
        return [_loaded(row["data"]) for row in self.db.execute(sql, (account, kind, *where.values()))]

    # Settings

    def setting(self, account: str, name: str, default: Any) -> Any:
        """The account's value, else the one for all accounts (``*``), else ``default``."""
        for owner in (account, "*"):
            if (owner, name) in self._settings:
                return self._settings[owner, name]
        return default

    def set_setting(self, account: str, name: str, value: Any) -> None:
        """Keeps ``value`` for ``account``, or for all with ``*``."""
        self.db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", (account, name, json.dumps(value)))
        self._settings[account, name] = value

    # What is due

    def schedule(self, at: int, account: str, kind: str, ref: str) -> None:
        """Notes that ``kind`` is due for the object ``ref`` at ``at`` (unix seconds)."""
        self.db.execute("INSERT INTO due (at, account, kind, ref) VALUES (?, ?, ?, ?)", (at, account, kind, ref))

    def unschedule(self, account: str, kind: str, ref: str) -> None:
        """Forgets what was due."""
        self.db.execute("DELETE FROM due WHERE account = ? AND kind = ? AND ref = ?", (account, kind, ref))


def scrambled(*parts: object, length: int = 14) -> str:
    """Letters and digits that look random and follow from ``parts`` alone."""
    number = int.from_bytes(sha256("\0".join(map(str, parts)).encode()).digest()[:24])
    text = ""
    for _ in range(length):
        number, digit = divmod(number, 62)
        text += _ALPHABET[digit]
    return text


def _loaded(text: str) -> dict[str, Any]:
    obj: dict[str, Any] = json.loads(text)
    return obj
