"""Connections, migrations and the few ways in which stations write: transactions, COPY, locks, partitions."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import cached_property
from importlib import resources
from typing import Any

import psycopg
import pyarrow as pa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pyarrow import csv
from sqlalchemy import URL, Connection, Engine, Table, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from clawbill_pipeline.ledger.tables import PARTITIONED, SCHEMA


class LedgerError(RuntimeError):
    """The database can't be used as it is. The message says what to do and holds no password."""


class Ledger:
    """The ledger in one PostgreSQL database. Cheap to make; connects when first used, and is safe across threads."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __repr__(self) -> str:
        return f"Ledger({shown(self._url)})"

    @cached_property
    def engine(self) -> Engine:
        return make_engine(self._url)

    def dispose(self) -> None:
        """Closes the pooled connections."""
        if "engine" in self.__dict__:
            self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises LedgerError when the database is away, was never migrated, or has no room left on its disk.
        """
        try:
            connection = self.engine.connect()
        except OperationalError as error:
            raise LedgerError(f"{shown(self._url)} does not answer: {_first_line(error)}. {_START}") from None
        with connection:
            try:
                with connection.begin():
                    yield connection
            except (DBAPIError, psycopg.Error) as error:  # COPY raises psycopg's own
                problem = getattr(error, "orig", error)
                if isinstance(problem, _NO_LEDGER):
                    raise LedgerError(f"{shown(self._url)} has no ledger yet; run: clawbill migrate") from error
                if isinstance(problem, psycopg.errors.DiskFull):
                    said = f"{shown(self._url)} has no room left: {_first_line(problem)}"
                    raise LedgerError(f"{said}. {_ROOM}") from error
                raise

    def ensure_partitions(self, hours: Iterable[datetime], tables: Iterable[Table] = PARTITIONED) -> None:
        """Makes the monthly partitions that rows of these hours fall into. Raises LedgerError for an archived month."""
        months = sorted({(hour.astimezone(UTC).year, hour.astimezone(UTC).month) for hour in hours})
        wanted = [(table.name, year, month) for table in tables for year, month in months]
        with self.transaction() as connection:
            there = _partitions(connection, *(partition_of(*month) for month in wanted))
        for table, year, month in wanted:
            if partition_of(table, year, month) not in there:
                # One transaction each: no lock on one table is held while another is waited for.
                with self.transaction() as connection:
                    ensure_partition(connection, table, year, month)


def partition_of(table: str, year: int, month: int) -> str:
    """The name of a month's partition, without its schema."""
    return f"{table}_{year:04d}_{month:02d}"


def month_bounds(year: int, month: int) -> tuple[datetime, datetime]:
    """A UTC month as a half-open interval."""
    return datetime(year, month, 1, tzinfo=UTC), datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)


def ensure_partition(connection: Connection, table: str, year: int, month: int, *, archived: bool = False) -> None:
    """Makes the partition of a UTC month. Raises LedgerError for one that is archived, unless ``archived``."""
    name = partition_of(table, year, month)
    if _partitions(connection, name):
        return
    lock(connection, "partitions")
    if _partitions(connection, name):
        return
    if not archived and connection.scalar(_IS_ARCHIVED, {"table": table, "month": date(year, month, 1)}) == "archived":
        raise LedgerError(
            f"{year:04d}-{month:02d} is archived and takes no more rows: sums over it would lack those in the archive. "
            f"`clawbill archive restore {year:04d}-{month:02d}` puts them back"
        )
    first, after = month_bounds(year, month)
    # Attaching waits for nobody who reads or writes the table; PARTITION OF would, and would make all wait behind it.
    # Triggers of rows come with attaching, those of statements don't.
    connection.execute(
        text(
            f"CREATE TABLE {SCHEMA}.{name} (LIKE {SCHEMA}.{table} INCLUDING ALL EXCLUDING IDENTITY);"
            f"ALTER TABLE {SCHEMA}.{table} ATTACH PARTITION {SCHEMA}.{name} "
            f"FOR VALUES FROM ('{first.isoformat()}') TO ('{after.isoformat()}');"
            f"CREATE TRIGGER no_truncate BEFORE TRUNCATE ON {SCHEMA}.{name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse_change()"
        )
    )


def _partitions(connection: Connection, *names: str) -> set[str]:
    """Those of ``names`` that are there."""
    return set(connection.scalars(_PARTITIONS, {"schema": SCHEMA, "names": list(names)}))


# Not by to_regclass, which may remember from before the lock that there was none.
_PARTITIONS = text("""
    SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relname = ANY(:names)
""")
_IS_ARCHIVED = text("""
    SELECT action FROM archived_months WHERE table_name = :table AND month = :month ORDER BY id DESC LIMIT 1
""")
_NO_LEDGER = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
_ROOM = "Free some space on the database's disk, or enlarge it; nothing of this transaction was kept"
_START = "Start it (clawbill up), or set CLAWBILL_DATABASE_URL"


def make_engine(url: str) -> Engine:
    """An engine whose sessions run in UTC with the ledger's schema first, for a ``postgresql+psycopg`` URL."""
    parsed = _parsed(url)
    if parsed.get_backend_name() != "postgresql":
        raise LedgerError(f"{shown(url)}: the ledger needs PostgreSQL, a URL like postgresql://user@host/database")
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        connect_args={"options": f"-csearch_path={SCHEMA},public -ctimezone=UTC", "connect_timeout": 10},
        pool_pre_ping=True,
    )


def shown(url: str) -> str:
    """A database URL for people: no password, no query."""
    parsed = _parsed(url)
    where = parsed.host or parsed.query.get("host") or "the local socket"
    return f"PostgreSQL database {parsed.database!r} at {where}"


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # whose messages may show the password
        raise LedgerError(
            "CLAWBILL_DATABASE_URL is no database URL; write it like postgresql://user:password@host:5432/database, "
            "with special characters of the password percent-encoded"
        ) from None


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Writes rows with COPY, the fastest way into PostgreSQL; returns how many. ``table`` may be temporary."""
    count = 0
    raw: psycopg.Connection[Any] = connection.connection.dbapi_connection  # type: ignore[assignment]
    with raw.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
    return count


def copy_arrow(connection: Connection, table: str, rows: pa.Table) -> int:
    """As ``copy_rows``, for columns of an Arrow table by their names: several times as fast, and as exact."""
    buffer = io.BytesIO()
    # Quoted whatever it is, a text that is empty differs from one that is not there.
    csv.write_csv(rows, buffer, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    raw: psycopg.Connection[Any] = connection.connection.dbapi_connection  # type: ignore[assignment]
    statement = f"COPY {table} ({', '.join(rows.column_names)}) FROM STDIN (FORMAT csv)"
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(buffer.getbuffer())
    return len(rows)


def copy_out(
    connection: Connection, query: str, parameters: Mapping[str, Any], *, header: bool = False
) -> Iterator[bytes]:
    """The rows of ``query`` (with ``:names``) as CSV in parts, streamed: a month can be larger than memory."""
    compiled = str(text(query).compile(dialect=connection.dialect))
    statement = f"COPY ({compiled}) TO STDOUT WITH (FORMAT csv, HEADER {header})"
    raw: psycopg.Connection[Any] = connection.connection.dbapi_connection  # type: ignore[assignment]
    with raw.cursor() as cursor, cursor.copy(statement, dict(parameters)) as copy:
        for part in copy:
            yield bytes(part)


def lock(connection: Connection, *names: str) -> None:
    """Waits for, and holds until the transaction ends, the lock of that name."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(*names)})


#: Locks of one kind that ``lock_all`` takes at most; PostgreSQL has room for some thousands of locks in all.
STRIPES = 256


def lock_all(connection: Connection, names: Iterable[tuple[str, ...]]) -> None:
    """As ``lock``, for any number of names; always in the same order, so that two workers never wait in a ring.

    Names that begin alike share ``STRIPES`` locks, so that one now and then waits for another: take all names of a
    kind in one call, and not with ``lock``.
    """
    hold(connection, lock_keys(names))


def lock_each(connection: Connection, names: Iterable[tuple[str, ...]]) -> None:
    """As ``lock_all``, a lock for each name: for kinds of which there are few hundreds at most."""
    hold(connection, {lock_key(*name) for name in names})


def hold(connection: Connection, keys: Iterable[int]) -> None:
    """Waits for, and holds until the transaction ends, the locks of these keys, always in the same order."""
    connection.execute(_HOLD, {"keys": sorted(keys)})


_HOLD = text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:keys AS bigint[])) k")


def lock_keys(names: Iterable[tuple[str, ...]]) -> list[int]:
    """The keys that ``lock_all`` takes for these names, in its order."""
    return sorted({lock_key(name[0], str(lock_key(*name) % STRIPES)) for name in names})


def lock_key(*names: str) -> int:
    """The 64-bit key of a named advisory lock."""
    digest = hashlib.sha256("\x1f".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def _alembic(url: str) -> Config:
    config = Config()
    config.set_main_option(
        "script_location", str(resources.files("clawbill_pipeline.ledger") / "migrations").replace("%", "%%")
    )
    config.attributes["url"] = url
    return config


def migrate(url: str) -> None:
    """Brings the ledger's schema to the newest revision. Idempotent, and safe when two processes call it at once.

    A schema of a later version stays as it is: going back to this one needs nothing else.
    """
    current, newest = migration_state(url)
    if current is None or current < newest:
        command.upgrade(_alembic(url), "head")


def migration_state(url: str) -> tuple[str | None, str]:
    """``(revision of the database or None, newest revision of this version)``. They are numbers of equal length.

    A database that is ahead serves this version as well: a migration takes nothing away that the one before it needs.
    """
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
            head = ScriptDirectory.from_config(_alembic(url)).get_current_head()
            return context.get_current_revision(), str(head)
    except OperationalError as error:
        raise LedgerError(f"{shown(url)} does not answer: {_first_line(error)}. {_START}") from None
    finally:
        engine.dispose()
