"""From matters to messages: what goes to which route, many matters in one message. No database, clock or network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

from clawbill_pipeline.alerts.matters import Matter, Owners, Told
from clawbill_pipeline.alerts.routes import Route
from clawbill_pipeline.money import plain, total

#: Matters that a message lists, the largest first; it says how many there are in all, and where to look.
LISTED = 20
#: A line is cut to this: a phone shows it, and no service refuses the message for its length.
LONGEST = 240


@dataclass(frozen=True, slots=True)
class Message:
    """What one route is told at once. ``good`` is news of an end."""

    title: str
    body: str
    good: bool = False


def wanted(route: Route, matters: Iterable[Matter], owners: Owners) -> list[tuple[str, list[Matter]]]:
    """What ``route`` is told, by topic: its owner's matters, where those it does not know yet come to its amount.

    They are summed by currency: a thousand breaks of a cent each are ten dollars, and told at ten dollars.
    """
    own = [matter for matter in matters if route.is_for(matter.owners(owners))]
    by_topic = [(topic, list(group)) for topic, group in groupby(own, key=lambda matter: matter.topic)]
    return [(topic, group) for topic, group in by_topic if _reaches(route, group)]


def _reaches(route: Route, matters: Sequence[Matter]) -> bool:
    if route.at_least is None:
        return True
    return any(
        amount >= route.at_least for currency, amount in sums(matters) if route.currency in (None, currency)
    )  # fmt: skip


def sums(matters: Iterable[Matter]) -> list[tuple[str, Decimal]]:
    """Absolute amounts by currency: what is too much here never hides what is too little there."""
    by_currency: dict[str, list[Decimal]] = {}
    for matter in matters:
        if matter.amount is not None and matter.currency is not None:
            by_currency.setdefault(matter.currency, []).append(abs(matter.amount))
    return [(currency, total(amounts)) for currency, amounts in sorted(by_currency.items())]


def raised(topic: str, matters: Sequence[Matter], link: str | None) -> Message:
    """The news of ``matters``, which are all of ``topic``."""
    money = ", ".join(f"{plain(amount)} {currency}" for currency, amount in sums(matters) if amount)
    title = f"clawbill: {topic}: {len(matters)}" + (f", {money}" if money else "")
    return Message(title, _body([_line(matter) for matter in matters], link))


def over(topic: str, told: Sequence[Told], link: str | None) -> Message:
    """The news that what was told of ``topic`` is over."""
    return Message(f"clawbill: resolved: {topic}: {len(told)}", _body([_cut(t.summary) for t in told], link), good=True)


def failed_run(matter: Matter, link: str | None) -> Message:
    """The news of a failed run."""
    return Message(f"clawbill: {matter.topic}", _body([_line(matter)], link))


def _line(matter: Matter) -> str:
    money = f" {plain(matter.amount)} {matter.currency}" if matter.amount and matter.currency else ""
    return _cut(matter.summary) + money


def _cut(line: str) -> str:
    # Names and details come from usage logs and from Stripe: one line each, whatever is in them.
    flat = " ".join(line.split())
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 1]}…"


def _body(lines: Sequence[str], link: str | None) -> str:
    more = [f"… and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join([*(f"- {line}" for line in lines[:LISTED]), *more, *([link] if link else [])])
