"""Old months of the large tables as Parquet in the lake: stored, taken out of the database, put back, looked into.

A month leaves the database only after its file was read back and came to the same digest. What is archived stays
explainable: ``looking_into`` puts the rows of one tenant back for the length of a transaction that is never committed.
"""

# ruff: noqa: S608 -- names are those of tables and months; every value is a parameter

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from sqlalchemy import Connection, Numeric, Table, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import BigInteger, Boolean, DateTime, Integer

from clawbill_pipeline.disk import scratch
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger.database import (
    Ledger,
    LedgerError,
    copy_arrow,
    ensure_partition,
    lock,
    month_bounds,
    partition_of,
)
from clawbill_pipeline.ledger.tables import PARTITIONED, SCHEMA

#: Stripe takes usage of the last 35 days: a month that ended longer ago than that can't change by itself any more.
SETTLED = timedelta(days=35)
#: So long a month that is to leave waits for who reads, and lets everybody else wait behind it.
PATIENCE = "30s"
_BATCH = 1 << 16


class ArchiveError(LedgerError):
    """A month can't be archived or put back; the message says why, and what to do."""


@dataclass(frozen=True)
class Archived:
    """A month of a table in the lake. ``digest`` is over its rows, whatever their order; ``sha256`` over the file."""

    table: str
    month: date
    file: str
    rows: int
    digest: Decimal
    sha256: str
    bytes: int
    at: datetime


def archived(connection: Connection) -> list[Archived]:
    """The months that are in the lake alone, the oldest first."""
    return [Archived(*row) for row in connection.execute(text(_ARCHIVED))]


def archive_month(ledger: Ledger, lake: Lake, month: date, *, now: datetime, by: str) -> list[Archived]:
    """Moves a UTC month of every large table into the lake. After a crash, the same call does the rest.

    Raises ArchiveError for a month that may still change: one that ended less than ``SETTLED`` ago, with usage records
    on their way or with open breaks. Nothing has left the database then.
    """
    first, after = month_bounds(month.year, month.month)
    with ledger.transaction() as connection:
        _refuse_unsettled(connection, first, after, now)
        done = {(each.table, each.month) for each in archived(connection)}
    return [
        _archive(ledger, lake, table, first, now=now, by=by)
        for table in PARTITIONED
        if (table.name, first.date()) not in done
    ]


def restore_month(ledger: Ledger, lake: Lake, month: date, *, now: datetime, by: str) -> list[Archived]:
    """Puts an archived month back into the database. The file stays where it is. Raises ArchiveError."""
    found = []
    with ledger.transaction() as connection:
        lock(connection, "archive")
        for each in archived(connection):
            if each.month == month.replace(day=1):
                _put_back(connection, lake, each)
                came = _digest(connection, f"{SCHEMA}.{_name(each)}", _columns(lake, each))
                if came != (each.rows, each.digest):
                    raise ArchiveError(
                        f"{lake.folder.address(each.file)} holds {came[0]} rows that are not the {each.rows} that were "
                        "archived; take it from a backup"
                    )
                _note(connection, "restored", each, now, by)
                found.append(each)
    if not found:
        raise ArchiveError(f"{month:%Y-%m} is not archived; `clawbill archive list` shows what is")
    return found


@contextmanager
def looking_into(
    ledger: Ledger, lake: Lake, start: datetime, end: datetime, tenants: Sequence[str]
) -> Iterator[Connection]:
    """A transaction to read in, in which some tenants' archived rows of the hours ``[start, end)`` are back.

    Where nothing of them is archived it is like any other; it is never committed. Raises ArchiveError for a file that
    is gone or altered.
    """
    with ledger.transaction() as connection:
        wanted = [each for each in archived(connection) if _touches(each, start, end)]
        with connection.begin_nested() as gone_afterwards:
            for each in wanted:
                _put_back(connection, lake, each, tenants)
            try:
                yield connection
            finally:
                gone_afterwards.rollback()


def archived_of(connection: Connection, start: datetime, end: datetime) -> tuple[str, ...]:
    """The months (``YYYY-MM``) of the hours ``[start, end)`` that are archived; no other leaves in this transaction."""
    # A month leaves under a lock that waits for these: what is looked up now holds for what is read next.
    tables = ", ".join(f"ONLY {SCHEMA}.{table.name}" for table in PARTITIONED)
    connection.execute(text(f"LOCK TABLE {tables} IN ACCESS SHARE MODE"))
    return tuple(sorted({f"{each.month:%Y-%m}" for each in archived(connection) if _touches(each, start, end)}))


def refuse_archived(connection: Connection, start: datetime, end: datetime) -> None:
    """Raises ArchiveError where a month of the hours ``[start, end)`` is archived: sums over it would lack its rows."""
    for month in archived_of(connection, start, end):
        raise ArchiveError(
            f"{month} is archived, and this needs its rows; `clawbill archive restore {month}` puts them back"
        )


# --- a month out -----------------------------------------------------------------------------------------------------


def _archive(ledger: Ledger, lake: Lake, table: Table, first: datetime, *, now: datetime, by: str) -> Archived:
    month = first.date()
    file = f"archive/{table.name}/{month:%Y-%m}.parquet"
    with ledger.transaction() as connection:
        lock(connection, "archive")
        # A month that nothing was ever written for is archived as an empty one: then nothing is written later either.
        ensure_partition(connection, table.name, first.year, first.month)
        name = f"{SCHEMA}.{partition_of(table.name, first.year, first.month)}"
        # From here on nobody writes to it; readers wait only for the moment in which it leaves.
        connection.execute(text(f"LOCK TABLE {name} IN SHARE MODE"))
        columns = [column.name for column in table.columns]
        rows, digest = _digest(connection, name, columns)
        size, sha256 = _store(connection, lake, table, name, file)
        made = Archived(table.name, month, file, rows, digest, sha256, size, now)
        connection.execute(text(f"CREATE TEMP TABLE read_back (LIKE {name}) ON COMMIT DROP"))
        _load(connection, lake, made, "read_back")
        if _digest(connection, "read_back", columns) != (rows, digest):
            raise ArchiveError(
                f"{lake.folder.address(file)} does not read back as what was written; nothing was removed"
            )
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
        try:
            connection.execute(text(f"ALTER TABLE {SCHEMA}.{table.name} DETACH PARTITION {name}; DROP TABLE {name}"))
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            raise ArchiveError(
                f"{table.name} is being read just now, for longer than {PATIENCE}; nothing of {first:%Y-%m} was "
                "removed from it: run the same again"
            ) from None
        _note(connection, "archived", made, now, by)
    return made


def _refuse_unsettled(connection: Connection, first: datetime, after: datetime, now: datetime) -> None:
    if now < after + SETTLED:
        raise ArchiveError(
            f"{first:%Y-%m} may still change: usage is taken until {SETTLED.days} days after its end, "
            f"{after + SETTLED:%Y-%m-%d}"
        )
    given = {"first": first, "after": after}
    for query, what in ((_ON_THEIR_WAY, "usage records on their way"), (_OPEN_BREAKS, "open breaks")):
        if count := connection.scalar(text(query), given):
            raise ArchiveError(
                f"{first:%Y-%m} has {count} {what}; settle them first (clawbill outbox, clawbill correct)"
            )


def _store(connection: Connection, lake: Lake, table: Table, name: str, file: str) -> tuple[int, str]:
    """Writes a partition's rows, in the order of their key, and returns the file's size and hash."""
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    order = ", ".join(column.name for column in table.primary_key)
    with scratch("archive") as folder:
        raw: Any = connection.connection.driver_connection
        rows = folder / "rows.csv"
        with (
            rows.open("wb") as out,
            raw.cursor() as cursor,
            cursor.copy(f"COPY (SELECT {columns} FROM {name} ORDER BY {order}) TO STDOUT (FORMAT csv)") as copy,
        ):
            for data in copy:
                out.write(data)
        with lake.folder.made(file) as path:
            with pq.ParquetWriter(path, _schema(table), compression="zstd") as writer:
                for batch in _batches(rows, table):
                    writer.write_batch(batch)
            size = path.stat().st_size
            with path.open("rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    return size, sha256


def _batches(rows: Path, table: Table) -> Iterator[pa.RecordBatch]:
    if not rows.stat().st_size:
        return
    schema = _schema(table)
    yield from pacsv.open_csv(
        rows,
        read_options=pacsv.ReadOptions(column_names=schema.names),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        # PostgreSQL writes null as nothing, and an empty text as "".
        convert_options=pacsv.ConvertOptions(
            column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _schema(table: Table) -> pa.Schema:
    return pa.schema([pa.field(column.name, _type(column.type)) for column in table.columns])


def _type(kind: Any) -> pa.DataType:
    """The Arrow type that holds every value of a column exactly; what Arrow has no type for is text."""
    match kind:
        case BigInteger():
            return pa.int64()
        case Integer():
            return pa.int32()
        case Boolean():
            # PostgreSQL writes t and f, which are text to Arrow's reader.
            return pa.string()
        case Numeric():
            return pa.decimal128(kind.precision, kind.scale)
        case DateTime():
            return pa.timestamp("us", tz="UTC")
        case _:
            return pa.string()


# --- and back --------------------------------------------------------------------------------------------------------


def _put_back(connection: Connection, lake: Lake, each: Archived, tenants: Sequence[str] | None = None) -> None:
    ensure_partition(connection, each.table, each.month.year, each.month.month, archived=True)
    _load(connection, lake, each, f"{SCHEMA}.{_name(each)}", tenants)


def _load(connection: Connection, lake: Lake, each: Archived, name: str, tenants: Sequence[str] | None = None) -> None:
    """Copies a file's rows, or some tenants', into a table that has its columns."""
    with _opened(lake, each) as found:
        for batch in found.iter_batches(_BATCH):
            chosen = batch
            if tenants is not None:
                chosen = batch.filter(pc.is_in(batch["tenant_id"], pa.array(tenants, pa.string())))
            copy_arrow(connection, name, pa.Table.from_batches([chosen]))


def _columns(lake: Lake, each: Archived) -> list[str]:
    """The columns that the table had when the month was archived."""
    with _opened(lake, each) as found:
        return list(found.schema_arrow.names)


@contextmanager
def _opened(lake: Lake, each: Archived) -> Iterator[pq.ParquetFile]:
    try:
        with lake.folder.open(each.file) as source:
            yield pq.ParquetFile(source)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        address = lake.folder.address(each.file)
        raise ArchiveError(f"{address} of {each.month:%Y-%m} can't be read: {error}; take it from a backup") from None


def _note(connection: Connection, action: str, each: Archived, now: datetime, by: str) -> None:
    given = {**each.__dict__, "action": action, "at": now, "by": by}
    connection.execute(text(_INSERT), given)


def _digest(connection: Connection, name: str, columns: Sequence[str]) -> tuple[int, Decimal]:
    """How many rows there are, and a sum over the hashes of these columns that any order of rows gives alike."""
    named = ", ".join(f'"{column}"' for column in columns)
    row = connection.execute(
        text(f"SELECT count(*), coalesce(sum(hashtextextended(ROW({named})::text, 0)::numeric), 0) FROM {name}")
    ).one()
    return int(row[0]), Decimal(row[1])


def _name(each: Archived) -> str:
    return partition_of(each.table, each.month.year, each.month.month)


def _touches(each: Archived, start: datetime, end: datetime) -> bool:
    first, after = month_bounds(each.month.year, each.month.month)
    return first < end and start < after


_ARCHIVED = """
SELECT table_name, month, file, rows, digest, sha256, bytes, at FROM (
  SELECT DISTINCT ON (table_name, month) * FROM archived_months ORDER BY table_name, month, id DESC) newest
WHERE action = 'archived' ORDER BY month, table_name"""
_INSERT = """
INSERT INTO archived_months (table_name, month, action, file, rows, digest, sha256, bytes, at, by_whom)
VALUES (:table, :month, :action, :file, :rows, :digest, :sha256, :bytes, :at, :by)"""
_ON_THEIR_WAY = """
SELECT count(*) FROM usage_records
WHERE hour >= :first AND hour < :after AND state IN ('planned', 'sending', 'unknown')"""
_OPEN_BREAKS = """
SELECT count(*) FROM breaks WHERE closed_at IS NULL AND hour >= :first AND hour < :after"""
