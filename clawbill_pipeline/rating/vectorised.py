"""Rates rows by the million in DuckDB, to the same digit as the engine. The tables of prices are made in ``pieces``.

A price that is linear or climbs in steps becomes rows of a table that usage is joined to by its range; what has no such
table, or could overflow 38 digits, goes through the engine row by row inside the same query. Nothing is ever rounded:
a row whose exact amount does not fit DECIMAL(38, 20) gets an error instead of an amount.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import duckdb
import pyarrow as pa
from duckdb.func import ARROW, SPECIAL

from clawbill_pipeline.catalog.prices import ZERO, Price
from clawbill_pipeline.money import SCALE
from clawbill_pipeline.rating.engine import RatingError, Usage, rate
from clawbill_pipeline.rating.engine.arithmetic import exactly
from clawbill_pipeline.rating.pieces import Piece, Pieces, pieces_of

#: Decimal places of amounts. Quantities have 12, so prices by whole units may have 20 and by parts of a unit 8.
PLACES = 20
_LIMIT = Decimal(10) ** (38 - PLACES)
_FINE = PLACES - SCALE
#: Steps are counted in whole millionths of millionths of a unit, and those must fit DECIMAL(38, 12) too.
_MOST_IN_STEPS = Decimal(10) ** (38 - 2 * SCALE)
_ULP = Decimal(1).scaleb(-SCALE)

_AMOUNT = pa.decimal128(38, PLACES)
_PIECES = pa.schema(
    [
        ("price", pa.string()),
        ("above", pa.decimal128(38, SCALE)),
        ("up_to", pa.decimal128(38, SCALE)),
        ("base", _AMOUNT),
        ("unit", _AMOUNT),
        ("fine_unit", pa.decimal128(38, _FINE)),
        ("step", pa.decimal128(38, 0)),
        ("shift", pa.decimal128(38, 0)),
        ("cap", _AMOUNT),
        ("floor", _AMOUNT),
    ]
)
_RATED = pa.struct([("amount", _AMOUNT), ("error", pa.string())])

# A row has exactly one piece. The engine's function rates what has none, and says why where it can't.
_SQL = """
CREATE TEMP VIEW {view} AS
SELECT u.*,
       greatest(least(p.base + CASE
           WHEN p.step IS NOT NULL THEN
               ((u.quantity * 1000000000000)::HUGEINT + p.shift::HUGEINT) // p.step::HUGEINT * p.unit
           WHEN p.fine_unit IS NOT NULL THEN u.quantity * p.fine_unit
           ELSE u.quantity::HUGEINT * p.unit
       END, p.cap), p.floor)::DECIMAL(38, 20) AS amount,
       NULL::VARCHAR AS error
FROM ({usage}) AS u
JOIN {pieces} AS p ON u.price = p.price AND u.quantity > p.above AND (u.quantity <= p.up_to OR p.up_to IS NULL)
UNION ALL
SELECT * EXCLUDE (rated), rated.amount, rated.error
FROM (
    SELECT u.*, {engine}(u.price, u.quantity) AS rated
    FROM ({usage}) AS u
    WHERE u.quantity IS NULL OR u.quantity < 0 OR u.price IS NULL OR u.price NOT IN (SELECT price FROM {pieces})
)
"""
_RANGE = """
SELECT price, max(quantity) AS most, bool_and(quantity = trunc(quantity)) AS whole
FROM ({usage}) WHERE quantity >= 0 AND price IS NOT NULL GROUP BY price
"""


@dataclass(frozen=True, slots=True)
class Priced:
    """A price and, for a matrix or time of use, which part of it is meant."""

    price: Price
    part: str | None = None


@contextmanager
def rated(db: duckdb.DuckDBPyConnection, usage: str, prices: Mapping[str, Priced]) -> Iterator[str]:
    """The name of a view over ``usage``, inside the block, with ``amount`` (DECIMAL(38,20), major units) and ``error``.

    ``usage`` is a query of this connection with columns ``price``, a key of ``prices``, and ``quantity``,
    DECIMAL(38,12); what else it has is passed through. It is run twice (once for the range of quantities), so it must
    give the same rows again. Each row has an amount or an error; a negative quantity is the engine's to judge.
    """
    name = f"rated_{uuid.uuid4().hex}"
    # Names of our own making and the caller's query: there is no foreign text in this SQL.
    ranges = {price: (most, whole) for price, most, whole in db.sql(_RANGE.format(usage=usage)).fetchall()}
    rows = [row for key in ranges.keys() & prices.keys() for row in _rows(key, prices[key], *ranges[key])]
    table = pa.Table.from_pylist(rows, schema=_PIECES)
    db.register(f"{name}_rows", table)
    db.execute(f"CREATE TEMP TABLE {name}_pieces AS FROM {name}_rows")
    db.unregister(f"{name}_rows")
    db.create_function(
        f"{name}_engine",
        lambda keys, quantities: _by_engine(prices, keys, quantities),
        ["VARCHAR", f"DECIMAL(38, {SCALE})"],
        f"STRUCT(amount DECIMAL(38, {PLACES}), error VARCHAR)",
        type=ARROW,
        null_handling=SPECIAL,
    )
    try:
        db.execute(_SQL.format(view=name, usage=usage, pieces=f"{name}_pieces", engine=f"{name}_engine"))
        yield name
    finally:
        db.execute(f"DROP VIEW IF EXISTS {name}")
        db.remove_function(f"{name}_engine")
        db.execute(f"DROP TABLE {name}_pieces")


def _rows(key: str, priced: Priced, most: Decimal, whole: bool) -> list[dict[str, object]]:
    """The price's rows in the table of pieces; none if it has no table, or one that 38 digits can't hold."""
    found = pieces_of(priced.price, priced.part)
    if found is None:
        return []
    zero = Piece(-_ULP, ZERO, found.zero, ZERO)
    rows: list[dict[str, object]] = []
    with exactly():
        for piece in (zero, *found.pieces):
            if piece.above >= most and piece is not zero:
                break
            row = _row(key, piece, found, most, whole)
            if row is None:
                return []
            rows.append(row)
    return rows


def _row(key: str, piece: Piece, of: Pieces, most: Decimal, whole: bool) -> dict[str, object] | None:
    units, unit = most, "unit"
    step: dict[str, object] = {}
    if piece.step is not None:
        size, start = piece.step.scaleb(SCALE), piece.start.scaleb(SCALE)
        if size % 1 or start % 1 or most >= _MOST_IN_STEPS:
            return None
        extra = {"up": size - 1, "down": ZERO, "half_up": size // 2}[piece.rounding]
        step = {"step": _placed(size, 0), "shift": _placed(extra - start, 0)}
        units = most // piece.step + 1
    elif not whole:
        unit = "fine_unit"
    places = PLACES if unit == "unit" else _FINE
    top = max(abs(piece.base) + units * piece.unit, of.floor)
    if top >= _LIMIT or not _fits(piece.unit, places) or not _fits(piece.base, PLACES):
        return None
    return {
        "price": key,
        # Quantities have 12 places, so a finer bound cuts them where its first 12 places do.
        "above": _cut(piece.above),
        "up_to": None if piece.up_to is None or piece.up_to >= most else _cut(piece.up_to),
        "base": _placed(piece.base, PLACES),
        unit: _placed(piece.unit, places),
        **step,
        "cap": None if of.cap is None or of.cap >= _LIMIT else of.cap,
        "floor": of.floor,
    }


def _cut(bound: Decimal) -> Decimal:
    return _placed(bound - bound % _ULP, SCALE)


def _fits(number: Decimal, places: int) -> bool:
    return not number % Decimal(1).scaleb(-places)


def _placed(number: Decimal, places: int) -> Decimal:
    """The same number with just ``places`` places: Arrow would not drop a zero."""
    return number.quantize(Decimal(1).scaleb(-places))


def _by_engine(prices: Mapping[str, Priced], keys: pa.ChunkedArray, quantities: pa.ChunkedArray) -> pa.Array:
    rows = zip(keys.to_pylist(), quantities.to_pylist(), strict=True)
    return pa.array([_rated_row(prices.get(key), key, quantity) for key, quantity in rows], _RATED)


def _rated_row(priced: Priced | None, key: str | None, quantity: Decimal | None) -> dict[str, object]:
    if priced is None or quantity is None:
        return {"amount": None, "error": f"no price {key!r}" if priced is None else "no quantity"}
    try:
        amount = rate(priced.price, Usage(quantity, part=priced.part)).amount
        with exactly():
            if abs(amount) >= _LIMIT or not _fits(amount, PLACES):
                raise RatingError(f"the amount {amount:f} does not fit DECIMAL(38, {PLACES})")
            return {"amount": _placed(amount, PLACES), "error": None}
    except RatingError as error:
        return {"amount": None, "error": str(error)}
