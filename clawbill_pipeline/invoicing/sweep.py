"""Lands what the webhook missed: lists Stripe's events back to a moment and puts those that are not here in the inbox.

Stripe keeps events for 30 days, so an outage that long can be made good; nothing older can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import stripe

from clawbill_pipeline.invoicing.events import WATCHED, WATCHED_THIN, storable
from clawbill_pipeline.invoicing.landing import Landed, NotAnEvent, land, read_envelope
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

#: How far back Stripe lists events.
REACH = timedelta(days=30)
#: How many types one listing takes, how many events a page holds, and how many land in one commit.
_TYPES, _PAGE, _TOGETHER = 20, 100, 100


@dataclass(frozen=True)
class Swept:
    """How many events Stripe listed since ``since``, and how many of them were missing here and landed."""

    since: datetime
    listed: int
    landed: int
    problems: tuple[str, ...]
    checks: tuple[Check, ...]


def sweep_events(ledger: Ledger, api: StripeApi, *, since: datetime, now: datetime) -> Swept:
    """Lands the watched events that Stripe made since ``since`` and that are not in the inbox.

    Safe beside the webhook, and to call again. What Stripe does not list (it was away, or it is longer ago than
    REACH) is said in ``problems`` and fails a check. Raises LedgerError.
    """
    reach = now - REACH
    start = max(since, reach)
    problems = [f"events before {reach:%Y-%m-%dT%H:%M:%SZ} are no longer listed by Stripe"] if since < reach else []
    client = api.client()
    listed = landed = 0
    for name, events in _listings(client, start):
        try:
            for body in _together(events()):
                rows = [row for row in (_row(text, now, problems) for text in body) if row]
                with ledger.transaction() as connection:
                    landed += land(connection, rows)
                listed += len(body)
        except stripe.StripeError as error:
            problems.append(f"{name}: Stripe did not list them: {type(error).__name__}: {error}")
    check = Check(
        "no_event_missed",
        not problems,
        "Every event that Stripe made since then is in the inbox.",
        {"since": start.isoformat(), "listed": listed, "landed": landed},
    )
    return Swept(start, listed, landed, tuple(problems), (check,))


def _listings(client: stripe.StripeClient, since: datetime) -> Iterator[tuple[str, Callable[[], Iterable[Any]]]]:
    """Each listing by a name for people; calling it asks Stripe."""
    for first in range(0, len(WATCHED), _TYPES):
        types = WATCHED[first : first + _TYPES]
        snapshots: Any = {"types": list(types), "created": {"gte": int(since.timestamp())}, "limit": _PAGE}
        yield (
            f"{types[0]} to {types[-1]}",
            lambda params=snapshots: client.v1.events.list(params).auto_paging_iter(),  # type: ignore[misc]
        )
    start = since.strftime("%Y-%m-%dT%H:%M:%SZ")
    thin: Any = {"types": list(WATCHED_THIN), "created": {"gte": start}, "limit": _PAGE}
    yield "reports of rejected usage", lambda: client.v2.core.events.list(thin).auto_paging_iter()


def _together(events: Iterable[Any]) -> Iterator[list[str]]:
    bodies: list[str] = []
    for event in events:
        bodies.append(json.dumps(storable(event.to_dict())))
        if len(bodies) == _TOGETHER:
            yield bodies
            bodies = []
    if bodies:
        yield bodies


def _row(body: str, now: datetime, problems: list[str]) -> Landed | None:
    try:
        return Landed(read_envelope(body), body, {}, "sweep", now)
    except NotAnEvent as error:
        problems.append(f"an event that Stripe listed can't be kept: {error}")
        return None
