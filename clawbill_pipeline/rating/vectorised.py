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
#: Quantities from here on are the engine's, as are those at which an amount could reach its limit.
_MOST = Decimal(10) ** (38 - SCALE) - 1
#: Steps are counted in whole millionths of millionths of a unit, and those must fit DECIMAL(38, 12) too.
_MOST_IN_STEPS = Decimal(10) ** (38 - 2 * SCALE) - 1
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

# A row has at most one piece; one without goes through the engine, which says why where it can't rate it either.
# Only the ways to an amount that the table of pieces uses are in the query.
_SQL = """
CREATE TEMP VIEW {view} AS
SELECT * EXCLUDE (amount, rated),
       CASE WHEN amount IS NULL THEN rated.amount ELSE amount END AS amount,
       CASE WHEN amount IS NULL THEN rated.error END AS error
FROM (
    SELECT *, CASE WHEN amount IS NULL THEN {engine}(price, quantity) END AS rated
    FROM (
        SELECT u.*, ({amount})::DECIMAL(38, 20) AS amount
        FROM ({usage}) AS u
        LEFT JOIN {pieces} AS p ON u.price = p.price AND u.quantity > p.above AND u.quantity <= p.up_to
    )
)
"""
_WAYS = {
    "step": "WHEN p.step IS NOT NULL THEN "
    "((u.quantity * 1000000000000)::HUGEINT + p.shift::HUGEINT) // p.step::HUGEINT * p.unit",
    "fine_unit": "WHEN p.fine_unit IS NOT NULL THEN u.quantity * p.fine_unit",
    "unit": "WHEN p.unit IS NOT NULL AND u.quantity = trunc(u.quantity) THEN u.quantity::HUGEINT * p.unit",
}


@dataclass(frozen=True, slots=True)
class Priced:
    """A price and, for a matrix or time of use, which part of it is meant."""

    price: Price
    part: str | None = None


@contextmanager
def rated(db: duckdb.DuckDBPyConnection, usage: str, prices: Mapping[str, Priced]) -> Iterator[str]:
    """The name of a view over ``usage``, inside the block, with ``amount`` (DECIMAL(38,20), major units) and ``error``.

    ``usage`` is a query of this connection with columns ``price``, a key of ``prices``, and ``quantity``,
    DECIMAL(38,12); what else it has is passed through. Each row has an amount or an error; a negative quantity is the
    engine's to judge.
    """
    name = f"rated_{uuid.uuid4().hex}"
    rows = [row for key, priced in prices.items() for row in _rows(key, priced)]
    db.register(f"{name}_rows", pa.Table.from_pylist(rows, schema=_PIECES))
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
        # Names of our own making and the caller's query: there is no foreign text in this SQL.
        query = {"usage": usage, "pieces": f"{name}_pieces", "engine": f"{name}_engine", "amount": _amount(rows)}
        db.execute(_SQL.format(view=name, **query))
        yield name
    finally:
        db.execute(f"DROP VIEW IF EXISTS {name}")
        db.remove_function(f"{name}_engine")
        db.execute(f"DROP TABLE {name}_pieces")


def _amount(rows: list[dict[str, object]]) -> str:
    ways = " ".join(way for column, way in _WAYS.items() if any(column in row for row in rows))
    amount = f"p.base + CASE {ways} END" if ways else "p.base"
    # Not least and greatest: of an amount that is not there, they would make the limit itself.
    for column, beyond in (("cap", "<"), ("floor", ">")):
        if any(row[column] is not None for row in rows):
            amount = f"CASE WHEN p.{column} {beyond} {amount} THEN p.{column} ELSE {amount} END"
    return amount


def _rows(key: str, priced: Priced) -> list[dict[str, object]]:
    """The price's rows in the table of pieces. What is missing, or too long for 38 digits, is left to the engine."""
    found = pieces_of(priced.price, priced.part)
    if found is None:
        return []
    zero = Piece(-_ULP, ZERO, found.zero, ZERO)
    with exactly():
        rows = (_row(key, piece, found) for piece in (zero, *found.pieces))
        return [row for row in rows if row is not None]


def _row(key: str, piece: Piece, of: Pieces) -> dict[str, object] | None:
    unit, step, most = "unit", dict[str, object](), _MOST
    if piece.step is not None:
        size, start = piece.step.scaleb(SCALE), piece.start.scaleb(SCALE)
        extra = {"up": size - 1, "down": ZERO, "half_up": size // 2}[piece.rounding]
        if size % 1 or start % 1:
            return None
        step, most = {"step": _placed(size, 0), "shift": _placed(extra - start, 0)}, _MOST_IN_STEPS
    elif _fits(piece.unit, _FINE):
        unit = "fine_unit"
    left = _LIMIT - max(abs(piece.base), of.floor or ZERO)
    if piece.unit:
        # One step is kept back: the last one that has begun counts in full.
        most = min(most, (left // piece.unit - 1) * (piece.step or 1))
    above, up_to = _cut(piece.above), _cut(most if piece.up_to is None else min(piece.up_to, most))
    if above >= up_to or left <= 0 or not _fits(piece.unit, PLACES) or not _fits(piece.base, PLACES):
        return None
    return {
        "price": key,
        "above": above,
        "up_to": up_to,
        "base": _placed(piece.base, PLACES),
        unit: _placed(piece.unit, PLACES if unit == "unit" else _FINE),
        **step,
        "cap": None if of.cap is None or of.cap >= _LIMIT else of.cap,
        "floor": of.floor,
    }


def _cut(bound: Decimal) -> Decimal:
    # Quantities have 12 places, so a finer bound cuts them where its first 12 places do.
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
