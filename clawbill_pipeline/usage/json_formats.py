"""JSON as usage: the plain record and CloudEvents 1.0. Numbers stay exact; files and rules of events are elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from clawbill_pipeline.usage.events import Claims, Fault, Repeated
from clawbill_pipeline.usage.inputs import Line


def _leniently(members: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(members)
    if len(record) < len(members):
        told: dict[str, list[Any]] = {}
        for name, value in members:
            told.setdefault(name, []).append(value)
        record |= {name: Repeated(tuple(values)) for name, values in told.items() if len(values) > 1}
    return record


def _strictly(members: list[tuple[str, Any]]) -> dict[str, Any]:
    record = _leniently(members)
    if len(record) < len(members):
        name = next(name for name, value in record.items() if isinstance(value, Repeated))[:80]
        raise Fault("ambiguous", "line", f"{name!r} is in the record twice; nobody knows which one counts")
    return record


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # its exponent alone is beyond all numbers
        return Decimal("Infinity")


def _decoder(record: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> json.JSONDecoder:
    return json.JSONDecoder(parse_float=_number, parse_int=Decimal, parse_constant=Decimal, object_pairs_hook=record)


_STRICT, _LENIENT = _decoder(_strictly), _decoder(_leniently)
_SPACE = re.compile(r"\s")
#: Where a CloudEvent says what a usage event needs.
CLOUDEVENT_FIELDS = ("id", "subject", "type", "data.quantity", "time")


def parse(raw: bytes, *, strict: bool = True) -> list[Any]:
    """The JSON value in a line, exact; a batch (array) gives its members. Raises Fault.

    An object that has a member twice is a Fault; or else, not ``strict``, has it as Repeated, which only matters to who
    needs it: the fast ways see no more of a record than what they need. Several lines that only carriage returns part
    are several values; a broken one of them is its Fault.
    """
    if b"\0" in raw:
        raise Fault("nul_byte", "line", "the line holds NUL bytes, as after a crash of its writer; write it again")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault(
            "broken_utf8", "line", f"byte {error.start} of the line is no UTF-8; write the file as UTF-8"
        ) from None
    try:
        value = (_STRICT if strict else _LENIENT).decode(text.strip())
    except (ValueError, ArithmeticError, RecursionError) as error:
        if "\r" in text.strip():  # lines that old Macs ended
            return [value for part in text.split("\r") if part.strip() for value in _parts(part, strict)]
        why = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise Fault("not_json", "line", f"no JSON value: {why}; write one JSON object a line") from None
    return value if isinstance(value, list) else [value]


def _parts(part: str, strict: bool) -> list[Any]:
    try:
        return parse(part.encode(), strict=strict)
    except Fault as fault:
        return [fault]


def _object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise Fault("not_an_object", "line", "a usage record must be a JSON object")
    return record


class JsonRecords:
    """``{event_id, tenant_id, service, quantity, timestamp, …dimensions}``; dimensions may be in an object as well.

    A record with a ``specversion`` is a CloudEvent and read as one. ``closed``: a record with any other member is none.
    """

    def __init__(self, *, closed: bool = False) -> None:
        self.closed = closed

    def records(self, line: Line) -> list[Any]:
        return parse(line.raw, strict=False)

    def claims(self, record: Any) -> Sequence[Claims] | None:
        record = _object(record)
        if record.get("specversion") is not None:
            return _cloud_event(record)
        nested = record.get("dimensions")
        told = {**nested, **record} if isinstance(nested, dict) else record
        return (
            Claims(
                record.get("event_id"),
                record.get("tenant_id"),
                record.get("service"),
                record.get("quantity"),
                record.get("timestamp"),
                dimensions=told,
                members=tuple(told) if self.closed else (),
            ),
        )

    def shown(self, record: Any) -> Any:
        return record

    def raw(self, line: Line) -> bytes:
        return line.raw


def _cloud_event(record: dict[str, Any]) -> Sequence[Claims]:
    if record.get("specversion") != "1.0":
        raise Fault("not_a_cloudevent", "specversion", 'specversion must be "1.0"')
    source, event_id = record.get("source"), record.get("id")
    for name, value in (("source", source), ("id", event_id)):
        if not isinstance(value, str) or not value:
            raise Fault("missing_field", name, f"a CloudEvent needs {name!r}, a string; add it")
    if _SPACE.search(str(source)):
        raise Fault("not_a_cloudevent", "source", "source must be a URI reference, without white space")
    data = record.get("data")
    if not isinstance(data, dict):
        raise Fault("missing_field", "data", 'the CloudEvent needs "data", an object with "quantity"')
    return (
        Claims(
            f"{source} {event_id}",
            record.get("subject"),
            record.get("type"),
            data.get("quantity"),
            record.get("time"),
            dimensions={**record, **data},
            fields=CLOUDEVENT_FIELDS,
        ),
    )


class CloudEventRecords:
    """CloudEvents 1.0 in JSON (github.com/cloudevents/spec, json-format)."""

    def records(self, line: Line) -> list[Any]:
        return parse(line.raw)

    def claims(self, record: Any) -> Sequence[Claims] | None:
        return _cloud_event(_object(record))

    def shown(self, record: Any) -> Any:
        return record

    def raw(self, line: Line) -> bytes:
        return line.raw
