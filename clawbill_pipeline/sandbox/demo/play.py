"""The demonstration's story: set up, bill hour by hour, close the period, reconcile, report; then prove idempotence.

Everything goes the way it goes in production: Dagster's own instance and definitions, HTTP to OpenClaw and Stripe (the
stand-ins), signed webhooks to the web app. Only the time is the data's own: one clock for pipeline and stand-ins.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import httpx
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, Period, load
from clawbill_pipeline.catalog.periods import HOUR, period_at, utc_hour
from clawbill_pipeline.clock import set_file_clock
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import metadata, tallies
from clawbill_pipeline.ledger.waterfall import Step, waterfall
from clawbill_pipeline.sandbox.demo import logs
from clawbill_pipeline.sandbox.demo.catalogue import catalogue_for, starter
from clawbill_pipeline.settings import STARTER
from clawbill_pipeline.stack import Stack, sandbox_call, write_catalog

if TYPE_CHECKING:
    from dagster import DagsterInstance, Definitions

    from clawbill_pipeline.sandbox.demo.lines import Line

Say = Callable[[str], None]
MakeLine = Callable[["Definitions", "DagsterInstance"], "Line"]
Prepare = Callable[[Stack], MakeLine | None]
_UTC = ZoneInfo("UTC")
_DAY = timedelta(days=1)
#: Settings of a real installation that a demonstration must never touch.
_FOREIGN = ("CLAWBILL_", "STRIPE_", "OPENCLAW_", "DAGSTER_")


class DemoError(RuntimeError):
    """The demonstration can't be played; the message says why and what to do."""


@dataclass(frozen=True)
class Played:
    """How it ended: the waterfall by period, the reports, and whether anything changed."""

    periods: dict[str, list[Step]]
    reports: list[Path]
    repeated: bool
    changes: list[str]
    runs: int
    quarantined: int = 0
    duplicates: int = 0
    late: int = 0
    unmapped: tuple[str, ...] = ()

    def as_json(self) -> list[dict[str, object]]:
        """The waterfall as one document, a period after the other."""
        return [{**step.as_json(), "period": period} for period, steps in self.periods.items() for step in steps]


@dataclass
class Story:
    """What is billed, and when: the usage's first and last moment, and where the logs come from."""

    catalog: str
    first: datetime
    last: datetime
    write_logs: Callable[[datetime], int] | None = None
    source: str = "the demonstration's own logs"
    busy_hours: list[datetime] = field(default_factory=list)


def play(state: Path, source: Path | None, say: Say, prepare: Prepare = lambda stack: None) -> Played:
    """Plays the demonstration under ``state``, on its own logs or those in ``source``. Leaves nothing running.

    ``prepare`` is called once all parts run: it may add to their environment, and may give a line of its own, which
    runs the jobs elsewhere than in this process.

    Raises DemoError for a state folder that holds another source's demonstration, SurveyError for a source in which
    no usage can be read, and what the parts raise when they can't be started.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    story = _story(state, source)
    finished = _finished(state, story)
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    with Stack(state, env) as stack:
        clock = state.resolve() / "clock"
        catalog_file = state.resolve() / "catalog.yaml"
        write_catalog(catalog_file, story.catalog)
        stack.env |= {"CLAWBILL_CLOCK": str(clock), "CLAWBILL_CATALOG": str(catalog_file)}
        say("starting PostgreSQL")
        stack.database()
        opening = period_at(story.first, 1, _UTC).start
        begin = int(_clock_at(clock, opening).timestamp())
        say("starting the stand-ins for OpenClaw and Stripe, and the web app")
        openclaw = stack.openclaw(catalog_file, now=begin)
        stripe = stack.stripe(now=begin)
        stack.web()
        stack.dagster_home()
        line = prepare(stack)
        return _Play(stack, story, clock, openclaw, stripe, say, line).run(repeated=finished)


class _Play:
    def __init__(
        self, stack: Stack, story: Story, clock: Path, openclaw: str, stripe: str, say: Say, line: MakeLine | None
    ) -> None:
        self.stack, self.story, self.clock, self.say = stack, story, clock, say
        self.openclaw, self.stripe = openclaw, stripe
        os.environ.update(stack.env)
        # Imported now, because Dagster's partitions follow the catalogue that the environment names.
        from dagster import DagsterInstance

        from clawbill_pipeline.definitions import defs
        from clawbill_pipeline.sandbox.demo.lines import Line

        self.instance = DagsterInstance.get()
        self.line = (line or Line)(defs, self.instance)
        self.catalog: Catalog = load(Path(stack.env["CLAWBILL_CATALOG"]))
        self.ledger = Ledger(stack.settings.need_database())

    def run(self, *, repeated: bool) -> Played:
        try:
            before = self._fingerprint() if repeated else {}
            periods = list(_periods(self.story.first, self.story.last))
            self._move(periods[0].start)
            self.say("provisioning Stripe: product, meters, prices, customers, subscriptions")
            self.line.run("stripe_provisioning")
            if repeated:
                self._again(periods)
            else:
                if self.story.write_logs is None:
                    self._land_everything(periods)
                for period in periods:
                    self._bill(period)
                    self._close(period)
            for period in periods:
                self.say(f"reconciling {period.key}, rendering reports")
                self.line.run("reconciliation", partition=period.key)
            _mark_finished(self.stack.state, self.story)
            return self._played(periods, repeated, _changes(before, self._fingerprint()) if repeated else [])
        finally:
            self.ledger.dispose()
            self.instance.dispose()

    def _bill(self, period: Period) -> None:
        """Bills a period's hours as time passes: a whole day in one run, or hour by hour."""
        start = max(period.start, utc_hour(self.story.first))
        end = min(period.end, utc_hour(self.story.last) + HOUR)
        for first, after in self._chunks(start, end):
            self._move(after + self.catalog.calendar.metering_lag)
            new = self.story.write_logs(self._now()) if self.story.write_logs else 0
            self.line.hours("hourly_billing", first, after)
            late = self.line.tick("late_usage")
            self.say(
                f"billed {first:%Y-%m-%d %H:%M}"
                + (f" to {after:%Y-%m-%d %H:%M}" if after - first > HOUR else "")
                + (f", {new} new log files" if new else "")
                + (f", {late} earlier hours touched by late usage and billed again" if late else "")
            )

    def _chunks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        if self.story.write_logs is not None:
            # The first day as one backfill, the second one hour by hour.
            yield start, start + _DAY
            yield from ((hour, hour + HOUR) for hour in _hours(start + _DAY, end))
            return
        days: dict[datetime, list[datetime]] = {}
        for hour in self.story.busy_hours:
            if start <= hour < end:
                days.setdefault(hour.replace(hour=0), []).append(hour)
        for hours in days.values():
            yield hours[0], hours[-1] + HOUR

    def _land_everything(self, periods: list[Period]) -> None:
        """Somebody's own logs are all there from the start: they are landed at the end of their time, then billed."""
        self._move(periods[-1].end + HOUR, stripe=False)
        self.say(f"landing {self.story.source}")
        hour = utc_hour(self.story.last)
        self.line.hours("landing", hour, hour + HOUR, config={"ops": {"usage_events": {"config": {"finished": True}}}})
        with self.ledger.transaction() as connection:
            found = connection.execute(text("SELECT DISTINCT hour FROM landed_hours ORDER BY hour"))
            self.story.busy_hours = [row.hour for row in found]

    def _close(self, period: Period) -> None:
        """Lets the period end at Stripe: draft, grace, final invoice, payment; then handles the webhooks."""
        grace = self.catalog.calendar.stripe_grace
        self.say(f"closing {period.key}: Stripe drafts, finalises and charges the invoices")
        sandbox_call(self.stripe, "/_sandbox/settings", {"invoice_grace_seconds": int(grace.total_seconds())})
        # Drafted, and compared with the ledger before the grace is over.
        self._move(period.end + self.catalog.calendar.metering_lag)
        self._webhooks()
        self._move(period.end + grace + HOUR)
        self._webhooks()

    def _webhooks(self) -> None:
        counts = sandbox_call(self.stripe, "/_sandbox/webhooks/flush", {})
        if counts.get("failed") or counts.get("pending"):
            raise DemoError(f"webhooks did not arrive: {json.dumps(counts)}; see {self.stack.state / 'logs'}")
        self.line.tick("stripe_inbox")

    def _again(self, periods: list[Period]) -> None:
        """The second time: everything once more, in one run, to show that nothing changes."""
        self._move(periods[-1].end + self.catalog.calendar.stripe_grace + HOUR)
        self.say("billing every hour again")
        self.line.hours("hourly_billing", utc_hour(self.story.first), utc_hour(self.story.last) + HOUR)
        self.line.tick("late_usage")
        self._webhooks()

    def _now(self) -> datetime:
        return datetime.fromisoformat(self.clock.read_text(encoding="ascii"))

    def _move(self, instant: datetime, *, stripe: bool = True) -> None:
        """Moves the clock that pipeline and stand-ins live on; theirs never goes back."""
        set_file_clock(self.clock, instant)
        seconds = int(instant.timestamp())
        if stripe and seconds > self._sandbox_now():
            sandbox_call(self.stripe, "/_sandbox/clock", {"now": seconds})
            sandbox_call(self.openclaw, "/_sandbox/clock", {"now": seconds}, self.stack.env["OPENCLAW_TOKEN"])
        elif stripe:
            set_file_clock(self.clock, datetime.fromtimestamp(self._sandbox_now(), UTC))

    def _sandbox_now(self) -> int:
        return int(httpx.get(f"{self.stripe}/_sandbox/clock", trust_env=False, timeout=30).json()["now"])

    def _fingerprint(self) -> dict[str, str]:
        """A digest of every ledger table, of the reports, and of what the Stripe stand-in was asked to keep."""
        digests: dict[str, str] = {}
        with self.ledger.transaction() as connection:
            # All but how often things were tried, which is no part of the books.
            for table in (table for table in metadata.sorted_tables if table is not tallies):
                digest = "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)"
                row = connection.execute(text(f"{digest} FROM {table} t")).one()
                digests[f"ledger table {table.name}"] = f"{row[0]} rows, digest {row[1]}"
        root = Path(self.stack.settings.reports_root)
        for path in sorted(root.rglob("*")):
            if path.is_file():
                digests[f"report {path.relative_to(root)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        stats: Mapping[str, object] = httpx.get(f"{self.stripe}/_sandbox/stats", trust_env=False, timeout=30).json()
        for name in ("objects", "meter_events", "events"):
            digests[f"Stripe's {name}"] = json.dumps(stats[name], sort_keys=True)
        return digests

    def _played(self, periods: list[Period], repeated: bool, changes: list[str]) -> Played:
        with self.ledger.transaction() as connection:
            steps = {period.key: waterfall(connection, self.catalog, period.key) for period in periods}
            quarantined = connection.scalar(text("SELECT count(*) FROM quarantine"))
            duplicates = connection.scalar(
                text("SELECT sum(duplicates) FROM (SELECT DISTINCT ON (hour) duplicates FROM metered_hours"
                     " ORDER BY hour, landings DESC) h")
            )  # fmt: skip
            late = connection.scalar(text("SELECT count(*) FROM metered_usage WHERE reason = 'late'"))
        known = self.catalog.tenants
        unmapped = sorted({step.tenant_id for rows in steps.values() for step in rows if step.tenant_id not in known})
        root = Path(self.stack.settings.reports_root)
        reports = [path for period in periods for path in sorted((root / period.key).glob("*")) if path.is_file()]
        return Played(
            steps, reports, repeated, changes, self.line.runs,
            int(quarantined or 0), int(duplicates or 0), int(late or 0), tuple(unmapped),
        )  # fmt: skip


def _story(state: Path, source: Path | None) -> Story:
    if source is None:
        folder = state / "usage"
        return Story(
            catalog=starter(STARTER),
            first=logs.START,
            last=logs.START + timedelta(hours=logs.HOURS) - HOUR,
            write_logs=lambda now: logs.write_logs(folder, now),
        )
    from clawbill_pipeline.usage.survey import survey

    found = survey(source.resolve())
    return Story(
        catalog=catalogue_for(found, found.first), first=found.first, last=found.last, source=str(source.resolve())
    )


def _finished(state: Path, story: Story) -> bool:
    """Whether this story was played to its end here before. Refuses a folder that holds another story."""
    mark = state / "demo.json"
    if not mark.exists():
        mark.write_text(json.dumps({"source": story.source, "finished": False}), encoding="utf-8")
        return False
    kept = json.loads(mark.read_text(encoding="utf-8"))
    if kept["source"] != story.source:
        raise DemoError(
            f"{state} holds a demonstration on {kept['source']}; choose another folder with --state, or remove it"
        )
    return bool(kept["finished"])


def _mark_finished(state: Path, story: Story) -> None:
    (state / "demo.json").write_text(json.dumps({"source": story.source, "finished": True}), encoding="utf-8")


def _clock_at(clock: Path, opening: datetime) -> datetime:
    return datetime.fromisoformat(clock.read_text(encoding="ascii")) if clock.exists() else opening


def _periods(first: datetime, last: datetime) -> Iterator[Period]:
    period = period_at(first, 1, _UTC)
    while period.start <= last:
        yield period
        period = period_at(period.end, 1, _UTC)


def _hours(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += HOUR


def _changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [
        f"{name}: {before.get(name, 'nothing')} → {after.get(name, 'nothing')}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    ]
