"""What usage lies in a folder that no catalogue describes yet: its kind, tenants, services and time span."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from clawbill_pipeline.catalog.sources import OPENCLAW_SERVICES, CloudEvents, JsonLines, OpenClawFleet, Source
from clawbill_pipeline.usage.events import SERVICE, TENANT, Claims, Fault, instant, quantity
from clawbill_pipeline.usage.inputs import Format, Input, InputFault, Line
from clawbill_pipeline.usage.json_formats import CLOUDEVENT_FIELDS
from clawbill_pipeline.usage.sources import inputs
from clawbill_pipeline.usage.stored import files

#: Members of a record that say when, who, what or how much, and are no dimension.
_OWN = frozenset({"event_id", "tenant_id", "service", "quantity", "timestamp", "dimensions"})
_CLOUDEVENT = frozenset(
    {"id", "source", "specversion", "type", "subject", "time", "data", "datacontenttype", "dataschema"}
)
#: A member with more values than this, or nearly one for each event, tells events apart: nobody prices by it.
_MOST_VALUES = 20
_PATTERNS = ("**/*.jsonl", "**/*.ndjson", "**/*.json", "**/*.log")
#: A time so far from the median is a broken clock's: landing will set it aside.
_SPAN = timedelta(days=400)


class SurveyError(ValueError):
    """No usage that can be read is in the folder. The message says what was looked for, and where."""


@dataclass(frozen=True)
class SurveyedService:
    """A service that events name. ``dimensions`` are the members that all its events have, with few values each."""

    dimensions: tuple[str, ...]
    negative: bool
    events: int


@dataclass(frozen=True)
class Survey:
    """What is in a folder. ``first`` and ``last`` are event times (UTC); ``events`` counts duplicates too."""

    source: Source
    tenants: tuple[str, ...]
    services: dict[str, SurveyedService]
    first: datetime
    last: datetime
    events: int
    unreadable: int


def survey(folder: Path, name: str = "usage") -> Survey:
    """Reads all of ``folder``: a fleet of OpenClaw cells, JSON-lines usage logs or CloudEvents.

    A fleet is ``<tenant>/agents/<agent>/…`` in the folder, in its ``cells`` or its ``fleet/cells``. Raises SurveyError.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise SurveyError(f"{folder} is no folder; give the folder that the usage logs are in")
    for source in _candidates(folder, name):
        found = _Found()
        for input in inputs(source, Path()):
            found.read(input)
        if found.events:
            return found.survey(source)
    raise SurveyError(
        f"no usage in {folder}. Looked for OpenClaw cells (<tenant>/agents/<agent>/… in it, in its cells/ or its "
        "fleet/cells/), for files *.jsonl, *.ndjson, *.json or *.log, also .gz and .zst, of JSON lines with event_id, "
        "tenant_id, service, quantity and timestamp, and for CloudEvents 1.0 in them"
    )


def _candidates(folder: Path, name: str) -> Iterator[Source]:
    for cells in (folder, folder / "cells", folder / "fleet" / "cells"):
        if cells.is_dir() and any(cells.glob("*/agents/*")):
            yield OpenClawFleet(kind="openclaw_fleet", name=name, path=str(cells))
    if any(folder.glob("agents/*/agent")) or any(folder.glob("agents/*/sessions")):
        tenant = folder.name if TENANT.fullmatch(folder.name) else "tenant"
        yield OpenClawFleet(kind="openclaw_fleet", name=name, path=str(folder), tenant=tenant)
    patterns = tuple(pattern for pattern in _PATTERNS if files(folder, pattern))
    if patterns:
        yield JsonLines(kind="json_lines", name=name, path=str(folder), pattern=patterns)


@dataclass
class _Service:
    events: int = 0
    negative: bool = False
    values: dict[str, set[str]] = field(default_factory=dict)

    def add(self, claims: Claims, amount: Decimal) -> None:
        told = {name: value for name, value in claims.dimensions.items() if isinstance(value, str) and value}
        if not self.events:
            self.values = {name: set() for name in told if name not in _OWN | _CLOUDEVENT and not name.endswith("id")}
        for name in list(self.values):
            if name not in told or len(self.values[name]) > _MOST_VALUES:
                del self.values[name]
            else:
                self.values[name].add(told[name])
        self.events += 1
        self.negative |= amount < 0

    def surveyed(self) -> SurveyedService:
        priced = (name for name, values in self.values.items() if len(values) <= min(_MOST_VALUES, self.events / 2))
        return SurveyedService(tuple(sorted(priced)), self.negative, self.events)


@dataclass
class _Found:
    tenants: set[str] = field(default_factory=set)
    services: dict[str, _Service] = field(default_factory=dict)
    #: By day: how many events, the first and the last time.
    days: dict[date, tuple[int, datetime, datetime]] = field(default_factory=dict)
    events: int = 0
    cloud_events: int = 0
    unreadable: int = 0

    def read(self, input: Input) -> None:
        try:
            for block in input.blocks((), finished=True):
                for line in block.lines():
                    self._line(input.format, line)
        except (OSError, sqlite3.Error, InputFault):
            self.unreadable += 1

    def _line(self, format: Format, line: Line) -> None:
        try:
            records = [line.fault] if line.fault else format.records(line)
        except Fault:
            self.unreadable += 1
            return
        for record in records:
            try:
                if isinstance(record, Fault):
                    raise record
                checked = [_checked(claims) for claims in format.claims(record) or ()]
            except Fault:
                self.unreadable += 1
                continue
            for claims, amount, time in checked:
                self._add(claims, amount, time)

    def _add(self, claims: Claims, amount: Decimal, time: datetime) -> None:
        self.tenants.add(claims.tenant_id)
        self.services.setdefault(claims.service, _Service()).add(claims, amount)
        count, first, last = self.days.get(time.date(), (0, time, time))
        self.days[time.date()] = count + 1, min(first, time), max(last, time)
        self.events += 1
        self.cloud_events += claims.fields == CLOUDEVENT_FIELDS

    def survey(self, source: Source) -> Survey:
        services: dict[str, SurveyedService]
        if isinstance(source, OpenClawFleet):
            services = {
                str(name): SurveyedService(
                    ("provider", "model") if name.startswith("tokens.") else (),
                    negative=False,
                    events=self.services[name].events if name in self.services else 0,
                )
                for name in OPENCLAW_SERVICES
            }
        else:
            services = {name: seen.surveyed() for name, seen in sorted(self.services.items())}
        if isinstance(source, JsonLines) and self.cloud_events == self.events:
            source = CloudEvents(kind="cloudevents", name=source.name, path=source.path, pattern=source.pattern)
        first, last = self._span()
        return Survey(source, tuple(sorted(self.tenants)), services, first, last, self.events, self.unreadable)

    def _span(self) -> tuple[datetime, datetime]:
        half = 0
        for median, (count, _, _) in sorted(self.days.items()):  # noqa: B007 - the median is what is looked for
            half += count
            if half * 2 >= self.events:
                break
        near = [times for day, times in self.days.items() if abs(day - median) <= _SPAN]
        return min(first for _, first, _ in near), max(last for _, _, last in near)


def _checked(claims: Claims) -> tuple[Claims, Decimal, datetime]:
    _, tenant_field, service_field, quantity_field, time_field = claims.fields
    if not isinstance(claims.tenant_id, str) or not TENANT.fullmatch(claims.tenant_id):
        raise Fault("tenant_syntax", tenant_field, "no tenant id")
    if not isinstance(claims.service, str) or not SERVICE.fullmatch(claims.service):
        raise Fault("unknown_service", service_field, "no service name")
    return claims, quantity(claims.quantity, quantity_field, negative=True), instant(claims.time, time_field)
