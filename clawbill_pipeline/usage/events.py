"""What a usage event must be: claims of a record in, a checked event or a fault out. No files, no clock, no ledger."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.names import dimension_set
from clawbill_pipeline.money import EXACT, LIMIT, SCALE, MoneyError, exact, plain, rounded

#: A quantity is smaller than this: the sum of any hour of up to 100 million events then fits the 38 digits that it has.
MOST = Decimal(10) ** 18
#: Clocks of machines differ: an event may be so far ahead of ours.
AHEAD = timedelta(minutes=5)
LONGEST_ID = 512
LONGEST_DIMENSION = 256


class Fault(Exception):
    """A record that is no usage event. ``reason`` is a short code, ``detail`` says what is wrong and how to mend it."""

    def __init__(self, reason: str, field: str, detail: str, tenant_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.field = field
        self.detail = detail
        self.tenant_id = tenant_id


@dataclass(frozen=True, slots=True)
class Repeated:
    """The values of a member that a record has more than once: nobody knows which one counts, so nobody may need it."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.values))


@dataclass(frozen=True, slots=True)
class Claims:
    """What a record says, unchecked; None where it says nothing. ``fields`` are the record's own names of these."""

    event_id: Any
    tenant_id: Any
    service: Any
    quantity: Any
    time: Any
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, str, str, str, str] = ("event_id", "tenant_id", "service", "quantity", "timestamp")
    cost: Any = None
    #: All names in the record, where none may be unknown.
    members: tuple[str, ...] = ()


class Event(NamedTuple):
    """A usage event as the lake keeps it. ``event_time`` is UTC; ``dimensions`` is a dimension set's name;
    ``unique_value`` is what a service of ``unique_count`` counts, and empty for all others; ``cost`` is what the
    provider charged in USD, as a witness, or None."""

    event_id: str
    tenant_id: str
    service: str
    dimensions: str
    quantity: Decimal
    event_time: datetime
    unique_value: str = ""
    cost: Decimal | None = None


# As the catalogue's models have them.
TENANT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?", re.ASCII)
SERVICE = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:s?nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d(?:[.,]\d+)?)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Epoch numbers tell their unit by their size: seconds until the year 5138, then milli-, micro- and nanoseconds.
_UNITS = ((10**11, 6), (10**14, 3), (10**17, 0))


#: The members of a usage record, beside dimensions.
_RECORD = ("event_id", "tenant_id", "service", "quantity", "timestamp", "dimensions", "specversion")


class Judge:
    """Turns claims into events by the rules of one catalogue at one moment."""

    def __init__(self, catalog: Catalog, now: datetime) -> None:
        self.services = catalog.services
        self.tenants = tuple(catalog.tenants)
        self.start = catalog.start
        self.latest = now + AHEAD
        priced = {name for service in catalog.services.values() for name in service.dimensions}
        counted = {service.unique_by for service in catalog.services.values() if service.unique_by}
        self._members = {*_RECORD, *priced, *counted}

    def event(self, claims: Claims) -> Event:
        """The event that ``claims`` describe. Raises Fault."""
        id_field, tenant_field, service_field, quantity_field, time_field = claims.fields
        tenant_id = _text(claims.tenant_id, tenant_field, 64)
        if not TENANT.fullmatch(tenant_id):
            raise Fault(
                "tenant_syntax",
                tenant_field,
                f"{tenant_id[:80]!r} is no tenant id; use 1 to 64 letters, digits, '.', '_' or '-', "
                "beginning and ending with a letter or digit",
            )
        try:
            service = _text(claims.service, service_field, 64)
            known = self.services.get(service)
            if known is None:
                raise Fault(
                    "unknown_service",
                    service_field,
                    f"{service!r} is no service of the catalogue (there is {', '.join(self.services)}); "
                    "add it there, then replay this line",
                )
            unknown = next((name for name in claims.members if name not in self._members), None)
            if unknown is not None:
                raise Fault(
                    "unknown_field",
                    unknown[:80],
                    f"{unknown[:80]!r} is no part of a usage event and no dimension of the catalogue; mend its "
                    "spelling, leave it out, or set unknown_fields: ignore",
                )
            return Event(
                _text(claims.event_id, id_field, LONGEST_ID),
                tenant_id,
                service,
                _dimensions(service, known.dimensions, claims.dimensions),
                quantity(claims.quantity, quantity_field, negative=known.allow_negative),
                self._time(claims.time, time_field),
                _unique_value(service, known.unique_by, claims.dimensions),
                witnessed(claims.cost),
            )
        except Fault as fault:
            fault.tenant_id = tenant_id
            raise

    def _time(self, value: Any, name: str) -> datetime:
        time = instant(value, name)
        if time < self.start:
            raise Fault(
                "before_start",
                name,
                f"{time.isoformat()} is before the catalogue's start, {self.start.isoformat()}; "
                "move `start` back if it shall be billed, then replay this line",
            )
        if time > self.latest:
            raise Fault(
                "in_the_future",
                name,
                f"{time.isoformat()} is more than {AHEAD.seconds // 60} minutes ahead of the time it was read at, "
                f"{(self.latest - AHEAD).isoformat()}; correct the sender's clock, or replay this line then",
            )
        return time


def _need(value: Any, name: str) -> None:
    """Raises Fault for what is not there, or there more than once."""
    if value is None or value == "":
        raise Fault("missing_field", name, f"the record has no {name!r}; add it")
    if isinstance(value, Repeated):
        raise Fault("ambiguous", name, f"{name!r} is in the record twice; nobody knows which one counts")


def _text(value: Any, name: str, longest: int) -> str:
    _need(value, name)
    if isinstance(value, Decimal) and value.is_finite() and value.copy_abs() < LIMIT:
        value = plain(value) if value == value.to_integral_value() else value
    if not isinstance(value, str):
        raise Fault("not_text", name, f"{name!r} must be a string, not {_kind(value)}")
    if len(value) > longest:
        raise Fault("too_long", name, f"{name!r} has {len(value)} characters; {longest} is the most")
    if not _storable(value):
        raise Fault("not_text", name, f"{name!r} holds a NUL or half a surrogate pair; send plain Unicode text")
    return value


def _storable(value: str) -> bool:
    return "\0" not in value and (value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value))


def _dimensions(service: str, names: tuple[str, ...], claimed: Mapping[str, Any]) -> str:
    if not names:
        return ""
    values = []
    for name in names:
        value = _word(claimed.get(name), name)
        if value is None:
            raise Fault("missing_dimension", name, f"service {service!r} is priced by {name!r}; add it to the record")
        values.append(value)
    return dimension_set(values)


def _unique_value(service: str, name: str | None, claimed: Mapping[str, Any]) -> str:
    if name is None:
        return ""
    value = _word(claimed.get(name), name)
    if value is None:
        raise Fault("missing_field", name, f"service {service!r} counts the values of {name!r}; add it to the record")
    return value


def _word(value: Any, name: str) -> str | None:
    """A dimension's value as text; None for none."""
    if isinstance(value, bool):
        value = str(value).lower()
    # Written out, a number of a large exponent would fill the memory.
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= LONGEST_DIMENSION:
        value = plain(value)
    return None if value is None or value == "" else _text(value, name, LONGEST_DIMENSION)


def quantity(value: Any, name: str, *, negative: bool) -> Decimal:
    """The exact quantity in a JSON number (as Decimal) or a decimal string. Raises Fault; never rounds."""
    found = number(value, name)
    if found < 0 and not negative:
        raise Fault(
            "negative",
            name,
            f"{plain(found)} is negative, and the service takes no usage back; send zero or more, "
            "or set allow_negative in the catalogue",
        )
    if found.copy_abs() >= MOST:
        raise Fault(
            "too_large",
            name,
            f"{plain(found)} is {MOST:,} or more, which no hour could add up exactly; is it usage at all? "
            "Send it in a larger unit",
        )
    return found


def witnessed(value: Any) -> Decimal | None:
    """What a witness says of an amount, with as many places as the ledger has; None for what is no amount.

    Rounded, unlike all that is billed: gateways compute costs as doubles.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    found = Decimal(value)
    return rounded(found, SCALE) if found.is_finite() and found.copy_abs() < MOST else None


def number(value: Any, name: str) -> Decimal:
    """The exact number in a JSON number (as Decimal) or a decimal string, of any size. Raises Fault; never rounds."""
    _need(value, name)
    if isinstance(value, str):
        if _NOT_FINITE.fullmatch(value):
            value = Decimal("NaN")
        elif not _NUMBER.fullmatch(value):
            raise Fault("not_a_number", name, f"{value[:80]!r} is not a number; send a decimal number such as 1.5")
    elif isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise Fault(
            "not_a_number", name, f"{name!r} is {_kind(value)}, not a number; send a decimal number such as 1.5"
        )
    try:
        found = Decimal(value)
        if not found.is_finite():
            raise Fault("not_finite", name, "the quantity is infinite or NaN; send a decimal number such as 1.5")
        return exact(found)
    except (MoneyError, ArithmeticError):
        raise Fault(
            "too_many_digits",
            name,
            "the quantity has more than 26 digits before or 12 after the point, and clawbill never rounds one; "
            "send it in another unit, or rounded",
        ) from None


def instant(value: Any, name: str) -> datetime:
    """The UTC moment in an ISO 8601 text (UTC where it names no zone) or an epoch number. Raises Fault.

    Digits beyond microseconds are cut, so that an event never moves into the next hour.
    """
    _need(value, name)
    try:
        if isinstance(value, str) and _TIME.fullmatch(value):
            time = datetime.fromisoformat(value.upper())
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(value, int | Decimal) and not isinstance(value, bool):
            number = Decimal(value)
            power = next((power for limit, power in _UNITS if abs(number) < limit), -3)
            micros = number.scaleb(power, EXACT)
            return _EPOCH + timedelta(microseconds=int(micros.to_integral_value("ROUND_FLOOR")))
    except (ValueError, ArithmeticError):
        pass
    shown = str(value)[:80] if isinstance(value, str | int | Decimal) else _kind(value)
    raise Fault(
        "time_unreadable", name, f"{shown!r} is no time; send ISO 8601 with a zone, such as 2026-10-01T12:30:00Z"
    )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else "a number"
