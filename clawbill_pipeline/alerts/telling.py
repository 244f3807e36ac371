"""Tells every route what it does not know yet, and writes down what got through. Start reading here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from clawbill_pipeline.alerts.composing import failed_run, over, raised, wanted
from clawbill_pipeline.alerts.matters import Matter, Owners, read_matters, read_over
from clawbill_pipeline.alerts.routes import Route
from clawbill_pipeline.alerts.sending import send
from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import copy_rows, lock


@dataclass(frozen=True)
class Telling:
    """How many messages got through, and why others did not; those are tried again next time."""

    messages: int
    problems: tuple[str, ...]


def tell(
    ledger: Ledger, catalog: Catalog, routes: Sequence[Route], owners: Owners, *, now: datetime, link: str | None = None
) -> Telling:
    """One message a route and topic for what is new, and one for what is over. Called again, it says nothing.

    A message that got through is written down after it; a crash in between repeats it once. ``link`` is where to look.
    Raises LedgerError.
    """
    sent, problems = 0, list[str]()
    with ledger.transaction() as guard:
        lock(guard, "alerts")  # two at once would both tell
        for route in routes:
            with ledger.transaction() as connection:
                fresh = wanted(route, read_matters(connection, catalog, route.name, now), owners)
                ended = read_over(connection, catalog, route.name, now)
                waiting = connection.execute(_WAITING, {"route": route.name}).all()
            for topic, matters in fresh:
                problem = send(route, raised(topic, matters, link))
                if problem is None:
                    with ledger.transaction() as connection:
                        _remember(connection, route, matters, now, told=True)
                sent, problems = _counted(sent, problems, problem)
            for topic in dict.fromkeys(told.topic for told in ended):
                group = [told for told in ended if told.topic == topic]
                problem = send(route, over(topic, group, link))
                if problem is None:
                    with ledger.transaction() as connection:
                        connection.execute(_RESOLVE, {"ids": [told.id for told in group], "now": now})
                sent, problems = _counted(sent, problems, problem)
            for row in waiting:
                matter = Matter("run", row.key, row.topic, (), row.summary)
                problem = send(route, failed_run(matter, link))
                if problem is None:
                    with ledger.transaction() as connection:
                        connection.execute(_TOLD, {"id": row.id, "now": now})
                sent, problems = _counted(sent, problems, problem)
    return Telling(sent, tuple(problems))


def tell_of_run(
    ledger: Ledger, routes: Sequence[Route], owners: Owners, matter: Matter, *, now: datetime, link: str | None = None
) -> Telling:
    """Tells of a failed run at once, also where the ledger is away; what does not get through is left to ``tell``.

    Raises LedgerError if something is left and the ledger can't take it.
    """
    sent, problems, left = 0, list[str](), list[Route]()
    for route in routes:
        if route.at_least is None and route.is_for(matter.owners(owners)):
            problem = send(route, failed_run(matter, link))
            left += [route] if problem else []
            sent, problems = _counted(sent, problems, problem)
    if left:
        with ledger.transaction() as connection:
            for route in left:
                _remember(connection, route, [matter], now, told=False)
    return Telling(sent, tuple(problems))


def _counted(sent: int, problems: list[str], problem: str | None) -> tuple[int, list[str]]:
    return (sent + 1, problems) if problem is None else (sent, [*problems, problem])


def _remember(connection: Connection, route: Route, matters: Sequence[Matter], now: datetime, *, told: bool) -> None:
    columns = ("route", "kind", "key", "topic", "summary", "raised_at", "told_at")
    rows = ((route.name, m.kind, m.key, m.topic, m.summary, now, now if told else None) for m in matters)
    copy_rows(connection, "alerts", columns, rows)


_WAITING = text("SELECT id, key, topic, summary FROM alerts WHERE route = :route AND told_at IS NULL ORDER BY id")
_TOLD = text("UPDATE alerts SET told_at = :now, resolved_at = :now WHERE id = :id")
_RESOLVE = text("UPDATE alerts SET resolved_at = :now WHERE id = ANY(CAST(:ids AS bigint[]))")
