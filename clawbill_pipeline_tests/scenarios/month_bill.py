"""What the company of the simulated month owes, reckoned from its log files in plain Decimals. Imports nothing of
clawbill's: prices and calendar are spelled out once more.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from clawbill_pipeline_tests.scenarios.month_usage import TENANTS, Story

D = Decimal
ZERO = D(0)
#: By card: currency, digits of its money, a small and a large token, a call, 1,000 rows, a GB-hour, a minute, minimum.
PRICES: dict[str, tuple[Any, ...]] = {
    "standard": ("USD", 2, D("0.00002"), D("0.00006"), D("0.0004"), D("0.05"), D("0.02"), D("0.5"), D(25)),
    "growing": ("USD", 2, D("0.000018"), D("0.00005"), D("0.0004"), D("0.05"), D("0.018"), D("0.4"), D(0)),
    "grown": ("USD", 2, D("0.00001"), D("0.00003"), D("0.0004"), D("0.04"), D("0.012"), D("0.4"), D(0)),
    "euro": ("EUR", 2, D("0.000019"), D("0.000055"), D("0.0003"), D("0.045"), D("0.018"), D("0.45"), D(0)),
    "yen": ("JPY", 0, D("0.003"), D("0.009"), D("0.06"), D(7), D(3), D(70), D(0)),
}
SERVICES = ("tokens", "calls", "exports", "storage", "support", "people")


@dataclass
class Used:
    """What a tenant used in one billing period under one card: quantities by service, rows by the hour."""

    tokens: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    calls: Decimal = ZERO
    exports: dict[datetime, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    storage: Decimal = ZERO
    support: Decimal = ZERO
    people: int = 0


@dataclass(frozen=True)
class Read:
    """All that the files hold: lines, those that are no usage event, those that say again what was said, and usage by
    tenant and period's end (None: still open), under the old prices and the new."""

    lines: int
    bad: int
    again: int
    used: dict[tuple[str, datetime | None], tuple[Used, Used]]


def read(story: Story, folders: list[Path]) -> Read:
    """Reads every file below ``folders``."""
    lines = bad = again = 0
    seen: dict[str, dict[str, Any]] = {}
    for file in sorted(file for folder in folders for file in folder.rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            lines += 1
            try:
                event = json.loads(line, parse_float=D, parse_int=D)
                event["quantity"] = D(event["quantity"])
                event["at"] = datetime.fromisoformat(event["timestamp"])
            except (ValueError, ArithmeticError, KeyError):
                bad += 1
                continue
            if event["quantity"] < 0:
                bad += 1
            elif event["event_id"] in seen:
                again += 1
            else:
                seen[event["event_id"]] = event
    used: dict[tuple[str, datetime | None], tuple[Used, Used]] = {}
    for tenant in TENANTS:
        for end in [*story.ends(tenant), None]:
            used[tenant, end] = (Used(), Used())
    met: set[tuple[str, datetime | None, str]] = set()
    for event in sorted(seen.values(), key=lambda event: event["at"]):
        tenant, service, at = event["tenant_id"], event["service"], event["at"]
        period = next((end for end in story.ends(tenant) if at < end), None)
        place = used[tenant, period][at >= story.change]
        if service == "tokens":
            place.tokens[event.get("model", "small")] += event["quantity"]
        elif service == "exports":
            place.exports[at.replace(minute=0, second=0, microsecond=0)] += event["quantity"]
        elif service == "people":
            if (tenant, period, event["user_id"]) not in met:
                met.add((tenant, period, event["user_id"]))
                place.people += 1
        else:
            setattr(place, service, getattr(place, service) + event["quantity"])
    return Read(lines, bad, again, used)


def owed(tenant: str, used: tuple[Used, Used], *, closed: bool = False, whole: bool = False) -> dict[str, Decimal]:
    """What a period's usage costs, by service, unrounded, in the major unit.

    Once it is ``closed`` the minimum is owed: for some usage, and for none where we know the ``whole`` period.
    """
    card = TENANTS[tenant][0]
    before = PRICES[card]
    after = PRICES["grown" if tenant in ("grower", "vandelay", "mover") else card]
    amounts = {service: D(0) for service in SERVICES}
    for place, prices in zip(used, (before, after), strict=True):
        amounts["tokens"] += sum(
            (quantity * prices[3 if model == "large" else 2] for model, quantity in place.tokens.items()), D(0)
        )
        amounts["calls"] += place.calls * prices[4]
        amounts["exports"] += sum((_packages(rows) for rows in place.exports.values()), D(0)) * prices[5]
        amounts["support"] += place.support * prices[7]
        amounts["people"] += place.people * prices[7] / 2
    # What was rated under the old prices keeps its amount; the rest of the period is what the new ones add.
    old, both = used[0].storage, used[0].storage + used[1].storage
    amounts["storage"] = _tiers(old, before[6]) + _tiers(both, after[6]) - _tiers(old, after[6])
    if closed and (whole or used[0].support + used[1].support):
        amounts["support"] = max(amounts["support"], after[8])
    return amounts


def lines(tenant: str, used: tuple[Used, Used], *, whole: bool) -> dict[str, Decimal]:
    """The invoice lines of a closed period: OpenClaw's amounts reach Stripe in millionths, calls as they are."""
    digits = D(1).scaleb(-PRICES[TENANTS[tenant][0]][1])
    millionths = {
        service: amount if service == "calls" else amount.quantize(D("0.000001"), ROUND_HALF_UP)
        for service, amount in owed(tenant, used, closed=True, whole=whole).items()
    }
    return {service: amount.quantize(digits, ROUND_HALF_UP) for service, amount in millionths.items()}


def _packages(rows: Decimal) -> Decimal:
    return (rows / 1000).to_integral_value(ROUND_CEILING)


def _tiers(quantity: Decimal, price: Decimal) -> Decimal:
    first = min(quantity, D(500))
    return first * price + (quantity - first) * price / 2
