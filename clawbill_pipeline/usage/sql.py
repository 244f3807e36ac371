"""Rows of a database table as usage, in the order of a column that only grows. What a row means is the mapping's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, DateTime, Engine, MetaData, Select, Table, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from clawbill_pipeline.catalog.sources import SqlTable
from clawbill_pipeline.usage.inputs import InputFault, Landing, Line
from clawbill_pipeline.usage.mapped import Mapped, row_text

_ROWS = 20_000


class TableBlock(NamedTuple):
    """Rows as JSON, with where they end.

    A line's number is the row's value of the ordering column, of a time its microseconds since 1970; its offset tells
    rows of one value apart. So a row has the same place whenever it is read.
    """

    texts: list[bytes]
    places: list[tuple[int, int]]
    position: str
    whole: bool = True

    @property
    def data(self) -> bytes:
        return b"\n".join(self.texts)

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))

    def lines(self) -> Iterator[Line]:
        for (number, offset), text in zip(self.places, self.texts, strict=True):
            yield Line(number, offset, text)


class TableRows:
    """The table as an input. Its position is the last row's value of the ordering column, as ``kind value``."""

    def __init__(self, source: SqlTable, env: Mapping[str, str]) -> None:
        self._source = source
        self._url = env.get(source.url_env, "")
        self.uri = source.table
        self.format = Mapped(source.mapping, source.table)
        self.looks_back = False

    def size(self) -> int:
        return 0

    def stamp(self) -> None:
        return None

    def line_at(self, number: int, offset: int) -> Line:
        with self._table() as (engine, table):
            order = table.c[self._source.order_by]
            value: Any = number
            if isinstance(order.type, DateTime):
                at = _EPOCH + timedelta(microseconds=number)
                value = at if order.type.timezone else at.replace(tzinfo=None)
            query = self._ordered(table).where(order == value).offset(offset).limit(1)
            with engine.connect() as connection:
                row = connection.execute(query).mappings().first()
        if row is None:
            raise InputFault("gone", f"table {self.uri} has no such row any more")
        return Line(number, offset, row_text(dict(row)))

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[TableBlock]:
        with self._table() as (engine, table):
            yield from self._rows(engine, table, landed[-1].position if landed else None)

    @contextmanager
    def _table(self) -> Iterator[tuple[Engine, Table]]:
        engine = self._engine()
        try:
            schema, _, name = self._source.table.rpartition(".")
            table = Table(name, MetaData(), schema=schema or None, autoload_with=engine)
            if self._source.order_by not in table.c:
                raise InputFault(
                    "unreadable", f"table {self.uri} has no column {self._source.order_by!r}; see order_by"
                )
            yield engine, table
        # SQLite may even have a complaint that is no UTF-8.
        except (SQLAlchemyError, UnicodeDecodeError) as error:
            # The driver's own words can hold the address, and with it the password.
            raise OSError(
                f"table {self.uri} can't be read ({type(error).__name__}); is ${self._source.url_env} right?"
            ) from None
        finally:
            engine.dispose()

    def _engine(self) -> Engine:
        if not self._url:
            raise OSError(f"set {self._source.url_env} to the URL of the database that has table {self.uri}")
        try:
            url = make_url(self._url)
            return create_engine(url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url)
        except (ArgumentError, ImportError):
            raise OSError(f"{self._source.url_env} is no URL of a database that a driver is installed for") from None

    def _rows(self, engine: Engine, table: Table, position: str | None) -> Iterator[TableBlock]:
        order = table.c[self._source.order_by]
        query = self._ordered(table)
        if position is not None:
            query = query.where(order >= self._start(position))
        with engine.connect() as connection:
            newest = connection.scalar(select(func.max(order)))
            # They have no place in the order, so no later look would find them either.
            unordered = connection.scalar(select(func.count()).select_from(table).where(order.is_(None)))
            if newest is not None:
                yield from self._found(connection, query.where(order <= newest))
        if unordered:
            name = self._source.order_by
            raise InputFault(
                "no_order",
                f"{unordered} rows of table {self.uri} have no {name!r}, and were not read; fill it, or see order_by",
                place=f"{name} is null",
                keep=True,
            )

    def _found(self, connection: Connection, query: Select[Any]) -> Iterator[TableBlock]:
        place = (-1, 0)
        for rows in connection.execution_options(yield_per=_ROWS).execute(query).mappings().partitions():
            places = []
            for row in rows:
                number = _number(row[self._source.order_by])
                place = (number, place[1] + 1 if place[0] == number else 0)
                places.append(place)
            last = rows[-1][self._source.order_by]
            yield TableBlock([row_text(dict(row)) for row in rows], places, _position(last))

    def _ordered(self, table: Table) -> Select[Any]:
        """All rows, those of one value by their ids: in the same order whenever they are read."""
        event_id = self._source.mapping.event_id
        field = event_id.field if event_id is not None else None
        own = [table.c[field]] if field is not None and field in table.c else []
        return select(table).order_by(table.c[self._source.order_by], *own)

    def _start(self, position: str) -> Any:
        kind, _, value = position.partition(" ")
        if kind == "number":
            return int(value) - self._source.overlap
        return datetime.fromisoformat(value) - timedelta(seconds=self._source.overlap)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _number(value: Any) -> int:
    if isinstance(value, datetime):
        return ((value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    return value if isinstance(value, int) else 0


def _position(value: Any) -> str:
    if isinstance(value, datetime):
        return f"time {value.isoformat()}"
    if isinstance(value, int):
        return f"number {value}"
    raise InputFault(
        "unreadable", f"order_by must be a column of whole numbers or times, not of {type(value).__name__}"
    )
