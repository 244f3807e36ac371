"""Rows of a database table as usage, in the order of a column that only grows. What a row means is the mapping's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Engine, MetaData, Table, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from clawbill_pipeline.catalog.sources import SqlTable
from clawbill_pipeline.usage.inputs import InputFault, Landing, Line
from clawbill_pipeline.usage.mapped import Mapped, row_text

_ROWS = 20_000


class TableBlock(NamedTuple):
    """Rows as JSON, with where they end. A line's number is the row's place in what was read this time."""

    texts: list[bytes]
    first: int
    position: str
    whole: bool = True

    @property
    def data(self) -> bytes:
        return b"\n".join(self.texts)

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))

    def lines(self) -> Iterator[Line]:
        for number, text in enumerate(self.texts, self.first + 1):
            yield Line(number, 0, text)


class TableRows:
    """The table as an input. Its position is the last row's value of the ordering column, as ``kind value``."""

    def __init__(self, source: SqlTable, env: Mapping[str, str]) -> None:
        self._source = source
        self._url = env.get(source.url_env, "")
        self.uri = source.table
        self.format = Mapped(source.mapping, source.table)

    def size(self) -> int:
        return 0

    def stamp(self) -> None:
        return None

    def line_at(self, number: int, offset: int) -> Line:
        raise InputFault("gone", "a row is read again with the table once it was mended there, within the overlap")

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[TableBlock]:
        engine = self._engine()
        try:
            schema, _, name = self._source.table.rpartition(".")
            table = Table(name, MetaData(), schema=schema or None, autoload_with=engine)
            if self._source.order_by not in table.c:
                raise InputFault(
                    "unreadable", f"table {self.uri} has no column {self._source.order_by!r}; see order_by"
                )
            yield from self._rows(engine, table, landed[-1].position if landed else None)
        except SQLAlchemyError as error:
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
        query = select(table).order_by(order)
        if position is not None:
            query = query.where(order >= self._start(position))
        first = 0
        with engine.connect() as connection:
            newest = connection.scalar(select(func.max(order)))
            result = connection.execution_options(yield_per=_ROWS).execute(query.where(order <= newest))
            for rows in result.mappings().partitions():
                last = rows[-1][self._source.order_by]
                yield TableBlock([row_text(dict(row)) for row in rows], first, _position(last))
                first += len(rows)

    def _start(self, position: str) -> Any:
        kind, _, value = position.partition(" ")
        if kind == "number":
            return int(value) - self._source.overlap
        return datetime.fromisoformat(value) - timedelta(seconds=self._source.overlap)


def _position(value: Any) -> str:
    if isinstance(value, datetime):
        return f"time {value.isoformat()}"
    if isinstance(value, int):
        return f"number {value}"
    raise InputFault(
        "unreadable", f"order_by must be a column of whole numbers or times, not of {type(value).__name__}"
    )
