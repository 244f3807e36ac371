"""OpenClaw gateway state as usage: where a fleet's transcripts lie, and what their lines bear. Read-only throughout.

Layout and traps as seen in OpenClaw 2026.6 to 2026.9; each path that is read here is named in ``fleet_inputs``. The
same usage is found in several places (a session, its forks, its archives): it has the same event id in all of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import zstandard

from clawbill_pipeline.catalog.sources import OPENCLAW_SERVICES, OpenClawFleet
from clawbill_pipeline.disk import scratch
from clawbill_pipeline.usage.events import Claims, Fault, instant
from clawbill_pipeline.usage.inputs import Input, InputFault, Landing, Line
from clawbill_pipeline.usage.json_formats import parse
from clawbill_pipeline.usage.openclaw_tenants import Session, Whose
from clawbill_pipeline.usage.stored import DiskFile, Kept, uri_of
from clawbill_pipeline.usage.text import Text

#: OpenClaw's own rule for tenant ids (its fleet host).
TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
DATABASE = "openclaw-agent.sqlite"
#: A member that no line can have: JSON text holds no bare control character.
_SESSION = "\0session"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROWS = 20_000
_FIELDS = {
    "tokens.input": "input",
    "tokens.output": "output",
    "tokens.cache_read": "cacheRead",
    "tokens.cache_write": "cacheWrite",
}


def fleet_cells(source: OpenClawFleet, folder: Path) -> list[tuple[str, Path]]:
    """``(tenant, cell)`` of each cell below the source's folder, in order."""
    if source.tenant is not None:
        return [(source.tenant, folder)]
    if source.tenants and (folder / "agents").is_dir():
        return [(folder.name, folder)]
    return sorted(
        (cell.name, cell) for cell in folder.iterdir() if TENANT.fullmatch(cell.name) and (cell / "agents").is_dir()
    )


def fleet_inputs(source: OpenClawFleet, folder: Path) -> Iterator[Input]:
    """All transcripts of a fleet.

    ``agents/<agent>/agent/openclaw-agent.sqlite`` and the archives in it; below ``sessions``, transcripts of before
    SQLite (``*.jsonl``) and of deleted sessions (``*.jsonl.deleted.*``, ``*.jsonl.reset.*``); imported ones in
    ``session-sqlite-import-archive``.
    """
    for tenant, cell in fleet_cells(source, folder):
        for agent in sorted((cell / "agents").iterdir()):
            database = agent / "agent" / DATABASE
            whose = Whose(source.tenants, tenant, agent.name, partial(_sessions, agent)) if source.tenants else None
            format = Transcript(tenant, agent.name, source.services, whose)
            found: set[str] = set()
            for place in ("sessions", "session-sqlite-import-archive"):
                for path in sorted((agent / place).rglob("*.jsonl*")):
                    if path.is_file() and not path.name.endswith((".lock", ".tmp")) and ".trajectory." not in path.name:
                        # Re-reading is safe: ids never move to other usage. OpenClaw rewrites transcripts at times.
                        made = Text(DiskFile(path, uri_of(path, folder)), format.of(path.name), read_again=True)
                        found.add(made.uri)
                        yield made
            if database.is_file():
                yield Transcripts(database, uri_of(database, folder), format)
                # A database that can't be read says so when its transcripts are.
                with suppress(sqlite3.Error, OSError):
                    archives = list(_archives(database, uri_of(agent / "sessions", folder), format))
                    yield from (archive for archive in archives if archive.uri not in found)


class Transcript:
    """Lines of an agent's transcripts. Usage is in the assistant's messages; all other lines bear none.

    The tenant is the cell's unless ``whose`` tells it. ``session`` is the one that lines belong to that don't say it.
    """

    def __init__(
        self, tenant: str, agent: str, services: Sequence[str], whose: Whose | None = None, session: str = ""
    ) -> None:
        self._tenant = None if whose else tenant
        self._agent = agent
        self._services = services
        self._whose = whose
        self._session = session

    def of(self, file: str) -> Transcript:
        """The same for the transcript of one session: ``<session>.jsonl`` and what may stand behind it."""
        if self._whose is None:
            return self
        session = file.partition(".jsonl")[0].rpartition(".")[2]
        return Transcript(self._tenant or "", self._agent, self._services, self._whose, session)

    def records(self, line: Line) -> list[Any]:
        try:
            found = parse(line.raw)
        except Fault as fault:
            fault.tenant_id = self._tenant
            raise
        if self._whose is None:
            return found
        session = line.session or self._session
        return [{**record, _SESSION: session} if isinstance(record, dict) else record for record in found]

    def _tenant_of(self, record: dict[str, Any], time: Any) -> str:
        if self._whose is None:
            return self._tenant or ""
        return self._whose.tenant(record[_SESSION], instant(time, "timestamp"))

    def claims(self, record: Any) -> Sequence[Claims] | None:
        if not isinstance(record, dict):
            raise Fault("not_an_object", "line", "a transcript's line must be a JSON object", self._tenant)
        message = record.get("message")
        if record.get("type") != "message" or not isinstance(message, dict) or message.get("role") != "assistant":
            return None
        usage = message.get("usage")
        if usage is None or _is_mirrored(message):
            return None
        if not isinstance(usage, dict):
            raise Fault("not_an_object", "usage", "usage must be an object of token counts", self._tenant)
        time = record.get("timestamp") or message.get("timestamp")
        tenant = self._tenant_of(record, time)
        event_id = f"{self._agent}/{self._id(record, message, time)}"
        dimensions = {"provider": message.get("provider"), "model": message.get("model"), "agent": self._agent}
        costs = usage.get("cost")
        claimed = []
        for service in OPENCLAW_SERVICES:
            count = usage.get(_FIELDS[service]) if service in _FIELDS else Decimal(1)
            # No tokens of a kind are no usage of it; whatever else is no number is a fault.
            if service in self._services and count is not None and not (isinstance(count, Decimal) and count.is_zero()):
                fields = ("id", "tenant", "service", f"usage.{_FIELDS.get(service, '')}", "timestamp")
                cost = costs.get(_FIELDS.get(service)) if isinstance(costs, dict) else None
                own = f"{event_id}#{service}"
                claimed.append(Claims(own, tenant, service, count, time, dimensions, fields, cost))
        return claimed

    def _id(self, record: dict[str, Any], message: dict[str, Any], time: Any) -> str:
        """What tells this usage from any other of the agent, and is the same in every copy of the line.

        Before SQLite ids have eight hexadecimal digits and are unique in their session only: the time tells them apart.
        """
        own = record.get("id")
        if isinstance(own, str) and len(own) >= 32:
            return own
        if not own:
            said = json.dumps(message, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
            own = hashlib.sha256(said).hexdigest()[:32]
        try:
            return f"{own}@{instant(time, 'timestamp'):%Y-%m-%dT%H:%M:%S.%fZ}"
        except Fault as fault:
            fault.tenant_id = self._tenant
            raise

    def shown(self, record: Any) -> Any:
        """Without what was said: conversations are none of billing's business."""
        if not isinstance(record, dict):
            return record
        kept = {name: value for name, value in record.items() if name != _SESSION}
        if isinstance(record.get("message"), dict):
            kept["message"] = {name: value for name, value in record["message"].items() if name != "content"}
        return kept

    def raw(self, line: Line) -> bytes:
        return b"(%d bytes of a conversation, which is not kept)" % len(line.raw)


def _is_mirrored(message: dict[str, Any]) -> bool:
    return message.get("api") == "openclaw-transcript" or (
        message.get("provider") == "openclaw" and message.get("model") in ("delivery-mirror", "gateway-injected")
    )


# --- SQLite --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    rowid: int
    session_id: str
    seq: int
    created_at: int
    text: bytes
    fault: Fault | None

    @property
    def anchor(self) -> str:
        """Tells this row from another one that gets its row number later."""
        same = f"{self.session_id}\x1f{self.seq}\x1f{self.created_at}"
        return f"{self.rowid}:{hashlib.sha256(same.encode('utf-8', 'replace')).hexdigest()[:8]}"


class RowBlock(NamedTuple):
    """Rows of a transcript table. A line's number is the row's; its offset is its place in the session (seq)."""

    rows: list[Row]
    position: str
    whole: bool = True

    @property
    def size(self) -> int:
        return sum(len(row.text) for row in self.rows)

    @property
    def data(self) -> bytes:
        return b"\n".join(row.text for row in self.rows)

    def lines(self) -> Iterator[Line]:
        for row in self.rows:
            yield Line(row.rowid, row.seq, row.text, row.fault, row.session_id)


class Transcripts:
    """The table ``transcript_events`` of an agent's database, of any schema (``event_zstd`` came with 23).

    The position is the last row's number, with anchors: rows that must still be what they were. SQLite gives the
    number of a deleted last row to a new one, and VACUUM may renumber: what comes after the last sound anchor is read
    again then, and what was read before is a duplicate by its event id.
    """

    def __init__(self, path: Path, uri: str, format: Transcript) -> None:
        self.looks_back = False
        self._path = path
        self.uri = uri
        self.format = format

    def size(self) -> int:
        with _database(self._path) as db:
            return int(db.execute("SELECT count(*) FROM transcript_events").fetchone()[0]) if _columns(db) else 0

    def stamp(self) -> list[int] | None:
        return None

    def line_at(self, number: int, offset: int) -> Line:
        with _database(self._path) as db:
            rows = _rows_after(db, number - 1, _columns(db), limit=1)
        for line in RowBlock(rows, "").lines():
            if (line.number, line.offset) == (number, offset):
                return line
        raise InputFault("gone", f"{self.uri} has no row {number} with seq {offset} any more")

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[RowBlock]:
        anchors = landed[-1].position.removeprefix("row ").split(" ") if landed else []
        with _database(self._path) as db:
            columns = _columns(db)
            while columns:
                anchors = _sound(db, anchors)
                rows = _rows_after(db, int(anchors[0].partition(":")[0]) if anchors else 0, columns)
                if not rows:
                    return
                anchors = _thinned([*(row.anchor for row in reversed(rows)), *anchors])
                yield RowBlock(rows, "row " + " ".join(anchors))


def _columns(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM pragma_table_info('transcript_events')")}


def _sound(db: sqlite3.Connection, anchors: list[str]) -> list[str]:
    """The anchors, newest first, from the first one on that still holds."""
    for index, anchor in enumerate(anchors):
        query = "SELECT rowid, session_id, seq, created_at, x'', NULL FROM transcript_events WHERE rowid = ?"
        row = db.execute(query, (int(anchor.partition(":")[0]),)).fetchone()
        if row is not None and Row(*row).anchor == anchor:
            return anchors[index:]
    return []


def _thinned(anchors: list[str]) -> list[str]:
    """The newest anchors, then ever fewer the older they are."""
    newest = int(anchors[0].partition(":")[0])
    kept: dict[int, str] = {}
    for anchor in anchors:
        kept.setdefault((newest - int(anchor.partition(":")[0])).bit_length(), anchor)
    return list(kept.values())


def _rows_after(db: sqlite3.Connection, rowid: int, columns: set[str], limit: int = _ROWS) -> list[Row]:
    packed = "event_zstd" if "event_zstd" in columns else "NULL"
    query = (
        f"SELECT rowid, session_id, seq, created_at, CAST(event_json AS BLOB), {packed} FROM transcript_events "  # noqa: S608
        "WHERE rowid > ? ORDER BY rowid LIMIT ?"
    )
    found = []
    for number, session_id, seq, created_at, text, blob in db.execute(query, (rowid, limit)):
        found.append(Row(number, session_id, seq, created_at, *_event_text(text, blob)))
    return found


def _event_text(text: bytes | None, packed: bytes | None) -> tuple[bytes, Fault | None]:
    if text is not None:
        return text, None
    try:
        return _unpacked(packed or b""), None
    except (zstandard.ZstdError, MemoryError) as error:
        return b"", Fault("corrupt_row", "event_zstd", f"the compressed event can't be read: {error}; restore the row")


def _unpacked(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed)


def _archives(database: Path, sessions_uri: str, format: Transcript) -> Iterator[Text]:
    """Transcripts of deleted and of resting sessions that the database keeps itself.

    Each has the uri of the file that OpenClaw makes of it, so that it is read once.
    """
    with _database(database) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in ("session_transcript_archives", "session_transcript_cold_archives"):
            if table in tables:
                query = f"SELECT rowid, archive_name, length(archive_blob) FROM {table} WHERE archive_blob IS NOT NULL"  # noqa: S608
                for rowid, name, size in db.execute(query + " ORDER BY rowid").fetchall():
                    blob: Callable[[], io.BytesIO] = partial(_blob, database, table, rowid)
                    yield Text(Kept(f"{sessions_uri}/{name}", blob, size), format.of(name), read_again=True)


def _blob(database: Path, table: str, rowid: int) -> io.BytesIO:
    with _database(database) as db:
        row = db.execute(f"SELECT archive_blob FROM {table} WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608
    if row is None:
        raise FileNotFoundError(f"an archive of {database} is gone; OpenClaw has published or deleted it")
    return io.BytesIO(row[0])


def _sessions(agent: Path) -> dict[str, Session]:
    """The sessions of an agent by their ids: of before SQLite, archived ones, and those that are there."""
    found: dict[str, Session] = {}
    with suppress(OSError, ValueError, AttributeError):
        entries = json.loads((agent / "sessions" / "sessions.json").read_bytes())
        found |= {entry["sessionId"]: Session(key) for key, entry in entries.items() if "sessionId" in entry}
    database = agent / "agent" / DATABASE
    if database.is_file():
        with suppress(sqlite3.Error, OSError), _database(database) as db:
            columns: dict[str, set[str]] = {}
            for table in ("session_transcript_archives", "session_windows", "session_nodes"):
                rows = db.execute("SELECT name FROM pragma_table_info(?)", (table,))
                columns[table] = {name for (name,) in rows}
            if "session_key" in columns["session_transcript_archives"]:
                rows = db.execute("SELECT session_id, session_key FROM session_transcript_archives")
                found |= {session: Session(key) for session, key in rows}
            began = "w.created_at" if "created_at" in columns["session_windows"] else "NULL"
            forks = "fork_source_session_id" in columns["session_nodes"]
            source = "n.fork_source_session_id" if forks else "NULL"
            nodes = "LEFT JOIN session_nodes n ON n.session_key = w.session_key" if forks else ""
            query = f"SELECT w.session_id, w.session_key, {began}, {source} FROM session_windows w {nodes}"  # noqa: S608
            for session, key, at, fork in db.execute(query):
                found[session] = Session(key, _EPOCH + timedelta(milliseconds=at) if at else None, fork)
    return found


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads and disturbs nobody.

    Plain ``mode=ro`` on a resting WAL database makes a ``-wal`` and a ``-shm`` file that belong to us, and which the
    gateway could then not write: such a database is opened as immutable, and one whose ``-shm`` is gone from a copy.
    """
    with path.open("rb") as file:
        header = file.read(20)
    wal, shm = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if header[18:20] != b"\x02\x02":
        how = "mode=ro"
    elif not wal.exists():
        how = "mode=ro&immutable=1"
    elif shm.exists():
        how = "mode=ro"
    else:
        with scratch("openclaw") as folder:
            for part in (path, wal):
                shutil.copy(part, folder)
            with _connected(folder / path.name, "mode=ro") as db:
                yield db
        return
    with _connected(path, how) as db:
        yield db


@contextmanager
def _connected(path: Path, how: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{how}", uri=True, timeout=10)) as db:
        db.execute("PRAGMA query_only = ON")
        try:
            yield db
        except UnicodeDecodeError:  # what is broken is quoted in the complaint
            raise sqlite3.DatabaseError("the database is damaged: its schema holds what is no UTF-8") from None
