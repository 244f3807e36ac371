"""Who is told: CLAWBILL_ALERTS, checked. An address holds secrets: it is shown nowhere, a route goes by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from pydantic import SecretStr

from clawbill_pipeline.money import MoneyError, currency_code, exact
from clawbill_pipeline.settings import SettingsError

EVERYBODY = "*"
_FORMAT = "owner=address, owner>=100=address or owner>=100 USD=address, where owner is an asset's owner or *"
_ROUTE = re.compile(
    r"(?P<owner>[^=>\s]+)\s*(?:>=\s*(?P<amount>[^=\s]+?)\s*(?P<currency>[A-Za-z]{3})?\s*)?=\s*(?P<address>\S.*)"
)


@dataclass(frozen=True)
class Route:
    """One address, and what goes there: matters of ``owner``'s assets (``*``: of all) that come to ``at_least``.

    ``at_least`` is in the major unit of ``currency``, or of whatever currency a matter is in; None: all, also what has
    no amount. ``name`` is unique and tells nothing of the address.
    """

    name: str
    owner: str
    at_least: Decimal | None
    currency: str | None
    address: SecretStr

    def is_for(self, owners: frozenset[str]) -> bool:
        return self.owner == EVERYBODY or self.owner in owners


def parse_routes(text: str) -> tuple[Route, ...]:
    """The routes in ``text``, one a line or between semicolons; a line that begins with # is a comment.

    Raises SettingsError, which names the entry by its number, never its text: that holds a secret.
    """
    entries = [entry.strip() for line in text.splitlines() for entry in _parts(line)]
    routes: list[Route] = []
    for number, entry in enumerate(filter(None, entries), 1):
        routes.append(_route(entry, number, routes))
    return tuple(routes)


def _parts(line: str) -> list[str]:
    # An address may hold a semicolon of its own: only one before another owner's "=" separates.
    return [] if line.lstrip().startswith("#") else re.split(r";\s*(?=[^=>;/\s]+\s*(?:>=[^=;/]*)?=|$)", line)


def _route(entry: str, number: int, before: list[Route]) -> Route:
    found = _ROUTE.fullmatch(entry)
    if found is None or "://" not in found["address"]:
        raise SettingsError(f"CLAWBILL_ALERTS: entry {number} is not {_FORMAT}")
    try:
        amount = exact(found["amount"]) if found["amount"] else None
        currency = currency_code(found["currency"]) if found["currency"] else None
    except MoneyError as error:
        raise SettingsError(f"CLAWBILL_ALERTS: entry {number}: the amount after >= is no amount: {error}") from None
    name = found["owner"] + (f">={found['amount']}" if amount is not None else "") + (currency or "")
    same = sum(route.name.partition(" #")[0] == name for route in before)
    return Route(
        f"{name} #{same + 1}" if same else name, found["owner"], amount, currency, SecretStr(found["address"].strip())
    )
