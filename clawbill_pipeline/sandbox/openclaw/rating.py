"""One rating request to its answer: reads the body, finds the price, rates, writes. No HTTP, no clock."""

from __future__ import annotations

import json
import re
from datetime import datetime
from decimal import Decimal
from typing import Any, NoReturn

from clawbill_pipeline.catalog import Catalog, UnknownService, UnknownTenant, split_openclaw_service
from clawbill_pipeline.catalog.models import PricedService
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.money import MoneyError, exact, exponent, plain
from clawbill_pipeline.rating.engine import Line, Rating, RatingError, Share, Usage, price_for_share, rate
from clawbill_pipeline.sandbox.openclaw.problems import Problem

_FIELDS = {"tenant_id", "service", "quantity"}
# Decimal itself would also take blanks, underscores and the digits of every script.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?", re.ASCII)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# Numbers stay exact: a JSON decimal is never a float on its way.
_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)


def answer(catalog: Catalog, body: bytes, now: datetime) -> dict[str, Any]:
    """The answer to a rating request, decimals as strings. Raises Problem.

    A request does not say when its usage was. An hour is rated once it has ended and the catalogue's metering lag has
    passed, so the prices and the billing period are those of that hour, until a day's or a month's last one is rated.
    """
    request = read_object(body)
    if request.keys() != _FIELDS:
        missing, unknown = sorted(_FIELDS - request.keys()), sorted(request.keys() - _FIELDS)
        said = [f"{', '.join(names)} {what}" for names, what in ((missing, "missing"), (unknown, "not known")) if names]
        raise Problem(422, "fields", f"the fields are tenant_id, service and quantity: {'; '.join(said)}")
    tenant_id, service = _name(request, "tenant_id"), _name(request, "service")
    quantity = _quantity(request["quantity"])
    try:
        found = _found(catalog, tenant_id, service, now)
        _, part = split_openclaw_service(service)
        price = price_for_share(found.price, Share(*map(Decimal, found.days))) if found.days else found.price
        rating = rate(price, Usage(quantity, part=part or None))
    except UnknownTenant as error:
        raise Problem(404, "unknown-tenant", _said(error), field="tenant_id") from None
    except UnknownService as error:
        raise Problem(422, "unknown-service", _said(error), field="service") from None
    except RatingError as error:
        raise Problem(422, "unratable", f"service {service!r}: {error}", field="quantity") from None
    digits = exponent(found.currency)
    return {
        "amount_cents": _minor(rating.amount, digits),
        "currency": found.currency,
        "tenant_id": tenant_id,
        "service": service,
        "quantity": plain(quantity),
        "discounts": [{"name": line.name, "amount_cents": _minor(-line.amount, digits)} for line in rating.discounts],
        "lines": [_line(line, digits) for line in rating.lines],
        **({"limits": _limits(rating, digits)} if (rating.maximum, rating.minimum) != (None, None) else {}),
        "rate_card": found.rate_card,
        "rate_card_version": found.version,
        "terms": found.price.digest + (f" {found.days[0]}/{found.days[1]}" if found.days else ""),
    }


def _found(catalog: Catalog, tenant_id: str, service: str, now: datetime) -> PricedService:
    try:
        return catalog.price_for(tenant_id, service, now - catalog.calendar.metering_lag - HOUR)
    except UnknownService:
        return catalog.price_for(tenant_id, service, now)  # prices that have only just begun


def _limits(rating: Rating, digits: int) -> dict[str, str]:
    known = {"unlimited": rating.unlimited, "maximum": rating.maximum, "minimum": rating.minimum}
    return {f"{name}_cents": _minor(amount, digits) for name, amount in known.items() if amount is not None}


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``, numbers exact. Raises Problem (400)."""
    try:
        value = _JSON.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not-json", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Problem(400, "not-json", "the body is not a JSON object")
    return value


def _name(request: dict[str, Any], field: str) -> str:
    value = request[field]
    if not isinstance(value, str) or not value:
        raise Problem(422, "bad-name", f"{field} must be a string that is not empty", field=field)
    return value


def _quantity(value: Any) -> Decimal:
    try:
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            raise MoneyError(f"{value[:50]!r} is not a decimal number")
        return exact(value)
    except MoneyError as error:
        raise Problem(422, "bad-quantity", f"quantity: {error}", field="quantity") from None
    except ArithmeticError:
        raise Problem(422, "bad-quantity", "quantity: the exponent is out of range", field="quantity") from None


def _line(line: Line, digits: int) -> dict[str, Any]:
    said: dict[str, Any] = {"kind": line.kind, "amount_cents": _minor(line.amount, digits)}
    if line.quantity is not None and line.unit_amount is not None:
        said["quantity"], said["unit_amount"] = plain(line.quantity), plain(line.unit_amount)
        if line.per != 1:
            said["per"] = plain(line.per)
    for name in ("tier", "part", "name"):
        if value := getattr(line, name):
            said[name] = value
    return said


def _minor(amount: Decimal, digits: int) -> str:
    # Unrounded: a cent may have a fraction, and only the invoice line rounds.
    return plain(amount.scaleb(digits))


def _said(error: LookupError) -> str:
    return str(error.args[0])
