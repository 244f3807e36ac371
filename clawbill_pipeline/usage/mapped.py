"""Records with fields of their own, read through a mapping of the catalogue: JSON and CSV. No files are opened here."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Fields
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from clawbill_pipeline.catalog.sources import Mapping, TimeValue, Value
from clawbill_pipeline.money import EXACT
from clawbill_pipeline.usage.events import Claims, Fault, Repeated, number
from clawbill_pipeline.usage.inputs import Line
from clawbill_pipeline.usage.json_formats import parse

#: Doubles have no more decimal digits that are sure to be meant.
_SURE_DIGITS = 15


class Mapped:
    """JSON records through a mapping. ``place`` makes an event's id where the mapping names none."""

    def __init__(self, mapping: Mapping, uri: str) -> None:
        self.mapping = mapping
        self._uri = uri

    def records(self, line: Line) -> list[Any]:
        found = parse(line.raw, strict=False)
        return [
            {**record, PLACE: f"{self._uri}:{line.number}" + (f":{number}" if len(found) > 1 else "")}
            if isinstance(record, dict)
            else record
            for number, record in enumerate(found, 1)
        ]

    def claims(self, record: Any) -> Sequence[Claims] | None:
        if not isinstance(record, dict):
            raise Fault("not_an_object", "line", "a usage record must be an object")
        mapping = self.mapping
        tenant = _value(mapping.tenant_id, record)
        event_id = _value(mapping.event_id, record) if mapping.event_id else record[PLACE]
        time = _time(mapping.timestamp, record)
        dimensions = {name: _value(value, record) for name, value in mapping.dimensions.items()}
        claimed = []
        for measure in mapping.usage:
            service = _value(measure.service, record)
            amount = _value(measure.quantity, record)
            if measure.skip_zero and (amount is None or amount == "" or _is_zero(amount)):
                continue
            if measure.quantity.scale != 1 and amount is not None:
                amount = EXACT.multiply(_decimal(amount, measure.quantity, tenant), measure.quantity.scale)
            fields = (
                _name(mapping.event_id),
                _name(mapping.tenant_id),
                _name(measure.service),
                _name(measure.quantity),
                _name(mapping.timestamp),
            )
            # Of several events of one record, each needs an id of its own.
            own = f"{event_id}#{service}" if len(mapping.usage) > 1 and event_id not in (None, "") else event_id
            claimed.append(Claims(own, tenant, service, amount, time, dimensions, fields))
        return claimed

    def shown(self, record: Any) -> Any:
        return {name: value for name, value in record.items() if name != PLACE} if isinstance(record, dict) else record

    def raw(self, line: Line) -> bytes:
        return line.raw


#: A member that no file can have: JSON text holds no bare control character.
PLACE = "\0place"


class MappedCsv(Mapped):
    """CSV records through a mapping. ``header`` gives the file's first line; a value may hold no line break."""

    def __init__(self, mapping: Mapping, uri: str, header: Callable[[], bytes], delimiter: str) -> None:
        super().__init__(mapping, uri)
        self._delimiter = delimiter
        self._header = header

    @cached_property
    def _names(self) -> list[str]:
        return self._row(self._header())

    def _row(self, raw: bytes) -> list[str]:
        if b"\0" in raw:
            raise Fault("nul_byte", "line", "the line holds NUL bytes, as after a crash of its writer; write it again")
        try:
            text = raw.decode("utf-8-sig").rstrip("\r\n")
            rows = list(csv.reader([text], delimiter=self._delimiter, strict=True))
        except UnicodeDecodeError as error:
            raise Fault("broken_utf8", "line", f"byte {error.start} of the line is no UTF-8; write UTF-8") from None
        except csv.Error as error:
            raise Fault("not_csv", "line", f"no CSV record: {error}; a value may hold no line break") from None
        return rows[0] if rows else []

    def records(self, line: Line) -> list[Any]:
        if line.offset == 0:
            return [None]
        row = self._row(line.raw)
        if len(row) != len(self._names):
            raise Fault(
                "not_csv", "line", f"{len(row)} values under {len(self._names)} names; quote what holds the delimiter"
            )
        return [{**dict(zip(self._names, row, strict=True)), PLACE: f"{self._uri}:{line.number}"}]

    def claims(self, record: Any) -> Sequence[Claims] | None:
        return None if record is None else super().claims(record)


def _name(value: Value | None) -> str:
    return value.field or "constant" if value else "place"


def _value(value: Value, record: Fields[str, Any]) -> Any:
    if value.field is None:
        return value.constant
    if value.field in record:
        return record[value.field]
    found: Any = record
    for name in value.field.split("."):
        if not isinstance(found, dict):
            return found if isinstance(found, Repeated) else None
        found = found.get(name)
    return found


def _is_zero(amount: Any) -> bool:
    try:
        return not isinstance(amount, bool) and Decimal(amount) == 0
    except (ArithmeticError, TypeError, ValueError):
        return False


def _decimal(amount: Any, value: Value, tenant: Any) -> Decimal:
    try:
        return number(amount, value.field or "constant")
    except Fault as fault:
        fault.tenant_id = tenant if isinstance(tenant, str) else None
        raise


def _time(value: TimeValue, record: Fields[str, Any]) -> Any:
    """The time as ``events`` reads it: text with a zone, or an epoch number."""
    given = _value(value, record)
    if given is None or given == "" or isinstance(given, Repeated):
        return given
    name = value.field or "constant"
    if value.format == "epoch":
        return _decimal(given, value, None)
    if value.is_plain:
        return given
    try:
        if not isinstance(given, str):
            raise ValueError
        time = datetime.fromisoformat(given) if value.format == "iso" else datetime.strptime(given, value.format)  # noqa: DTZ007
        return (
            (time.replace(tzinfo=ZoneInfo(value.time_zone)) if time.tzinfo is None else time)
            .astimezone(UTC)
            .isoformat()
        )
    except (ValueError, OverflowError):
        raise Fault(
            "time_unreadable", name, f"{str(given)[:80]!r} does not read as {value.format!r}; correct either"
        ) from None


def exact_float(value: float) -> Decimal | str:
    """A double as the decimal number that it was made from, or a text that no quantity is where that is not sure."""
    number = Decimal(repr(value))
    if number.is_finite() and len(number.normalize().as_tuple().digits) > _SURE_DIGITS:
        return f"{value!r} (a double of more than {_SURE_DIGITS} digits)"
    return number


def row_text(row: Fields[str, Any]) -> bytes:
    """A row of a table as a line of JSON that loses nothing: decimals and sure doubles as text, times in UTC."""
    return json.dumps(_plain(row)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Fields):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return str(exact_float(value))
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, Decimal | date):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str | int | bool | None) else str(value)
