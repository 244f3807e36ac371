"""A simulated month: Dagster's own daemon with the real schedules and sensors, on a clock that moves from hour to hour.

PostgreSQL, the lake, both stand-ins and the web app are real processes; things go wrong as the story says. Run as a
program, since it takes the environment of its process over:
``python -m clawbill_pipeline_tests.scenarios.month --state DIR`` plays the whole month and prints what each day's hours
cost; ``DIR/month.json`` has every number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import stripe
from click.testing import CliRunner
from sqlalchemy import make_url, text

from clawbill_pipeline.cli import cli
from clawbill_pipeline.clock import set_file_clock
from clawbill_pipeline.ledger import Ledger, embedded
from clawbill_pipeline.stack import SANDBOX_KEY, Stack
from clawbill_pipeline_tests.alerts.receivers import Hook, hook
from clawbill_pipeline_tests.scenarios.command import environment
from clawbill_pipeline_tests.scenarios.daemon import MINUTE, daemon, run_here
from clawbill_pipeline_tests.scenarios.month_measures import Hour, Left, Meter
from clawbill_pipeline_tests.scenarios.month_usage import HOUR, TENANTS, Logger, Outage, Story, catalogue

#: A month of 30 days, whose end every story goes over.
END = datetime(2026, 7, 1, tzinfo=UTC)


def june() -> Story:
    """All of June 2026, and the morning after, when the last invoices are paid.

    Half-way prices change and a tenant's period ends: meanwhile webhooks fail, and so they do when the month ends.
    """
    start = END - 720 * HOUR
    change = start + 360 * HOUR
    return Story(
        start, 720, END + 7 * HOUR + 30 * MINUTE, change,
        taken_back=change + 29 * HOUR + 45 * MINUTE, approved=change + 33 * HOUR + 5 * MINUTE,
        webhooks=(_between(change - 3 * HOUR, 8), Outage(END - 2 * HOUR + 5 * MINUTE, END + HOUR + 35 * MINUTE)),
        openclaw=(_between(start + 27 * HOUR, 5), _between(END - 8 * HOUR, 2)),
    )  # fmt: skip


def last_hours() -> Story:
    """The same in the last four hours of June and the morning after, with the daemon looking less often."""
    return Story(
        END - 4 * HOUR, 4, END + 7 * HOUR + 30 * MINUTE, END - 2 * HOUR,
        taken_back=END + 5 * HOUR + 45 * MINUTE, approved=END + 7 * HOUR + 5 * MINUTE,
        webhooks=(Outage(END - HOUR + 5 * MINUTE, END + HOUR + 35 * MINUTE),), openclaw=(_between(END - 3 * HOUR, 1),),
        compared=END + 7 * HOUR + 20 * MINUTE, drafts=30,
    )  # fmt: skip


def _between(start: datetime, hours: int) -> Outage:
    """Between the hourly runs of two hours."""
    return Outage(start + 5 * MINUTE, start + hours * HOUR + 5 * MINUTE)


STORIES = {"june": june, "last-hours": last_hours}


@dataclass
class Played:
    """What was counted, by the hour and by the day; ``runs`` of jobs by job and end; what people were told."""

    hours: dict[str, Hour] = field(default_factory=dict)
    days: dict[str, Left] = field(default_factory=dict)
    runs: dict[str, dict[str, int]] = field(default_factory=dict)
    lines: int = 0
    bad: int = 0
    again: int = 0
    late: int = 0
    told: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    taken_back: list[str] = field(default_factory=list)


class Month:
    """``play`` goes through the story; what a moment is for is decided by the story alone."""

    def __init__(self, story: Story, state: Path, database: str) -> None:
        self.story, self.state, self.database = story, state.resolve(), database
        self.played = Played()
        self.logger = Logger(story, self.state / "usage")
        self._to_come = dict(sorted(self._incidents()))

    def play(self, say: Any = lambda text: None) -> Played:
        """The whole story. Leaves nothing running, and the database as it is."""
        with ExitStack() as closing:
            stack = closing.enter_context(Stack(self.state, environment(CLAWBILL_DATABASE_URL=self.database)))
            receiver = closing.enter_context(hook())
            self._http = closing.enter_context(httpx.Client(trust_env=False))
            self._start(stack, receiver)
            import dagster as dg

            instance = closing.enter_context(dg.DagsterInstance.get())
            self.ledger = Ledger(self.database)
            closing.callback(self.ledger.dispose)
            url = make_url(self.database)
            self.meter = Meter(url.set(drivername="postgresql").render_as_string(False), self.state / "lake")
            closing.callback(self.meter.close)
            with daemon(instance) as self.daemon:
                # After the definitions are loaded: for them no demonstration's clock decides which hours there are.
                os.environ["CLAWBILL_CLOCK"] = str(self.clock)
                self.daemon.launch(self.story.start, "stripe_provisioning")
                for now in self._moments():
                    self._moment(now)
                    if now.hour == 0 and now.minute == 10:
                        say(f"{now:%Y-%m-%d}")
            self._finish(instance, receiver)
        return self.played

    # --- the world -------------------------------------------------------------------------------------------------

    def _start(self, stack: Stack, receiver: Hook) -> None:
        self.stack, now = stack, self.story.start
        self.clock = self.state / "clock"
        self.catalogue = self.state / "catalog.yaml"
        self.catalogue.write_text(catalogue(self.story, now), encoding="utf-8")
        (self.state / "usage").mkdir()
        set_file_clock(self.clock, now)
        stack.env |= {"CLAWBILL_CATALOG": str(self.catalogue), "CLAWBILL_ALERTS": f"*={receiver.url()}"}
        stack.env["CLAWBILL_CLOCK"] = str(self.clock)
        stack.database()
        begin = int(now.timestamp())
        self.stripe_url = stack.stripe(now=begin)
        self._tell(self.stripe_url, "/_sandbox/settings", SANDBOX_KEY, invoice_grace_seconds=3600)
        self._start_openclaw()
        run_here(stack.dagster_home())
        self._start_web()
        os.environ.update({name: value for name, value in stack.env.items() if name != "CLAWBILL_CLOCK"})

    def _start_openclaw(self) -> None:
        now = int(datetime.fromisoformat(self.clock.read_text()).timestamp())
        self.openclaw_url = self.stack.openclaw(self.catalogue, now=now)
        self.openclaw = self.stack.children[-1]
        os.environ["OPENCLAW_URL"] = self.openclaw_url

    def _start_web(self) -> None:
        # On the port that Stripe knows, once it has one.
        address = self.stack.env.get("CLAWBILL_WEB_URL", ":0")
        self.stack.web(int(address.rpartition(":")[2]))
        self.web = self.stack.children[-1]

    def _is_up(self, child: Any) -> bool:
        return child.process.poll() is None

    def _move(self, now: datetime) -> None:
        set_file_clock(self.clock, now)
        seconds = int(now.timestamp())
        self._tell(self.stripe_url, "/_sandbox/clock", SANDBOX_KEY, now=seconds)
        if self._is_up(self.openclaw):
            self._tell(self.openclaw_url, "/_sandbox/clock", self.stack.env["OPENCLAW_TOKEN"], now=seconds)
        if self._is_up(self.web):
            self._tell(self.stripe_url, "/_sandbox/webhooks/flush", SANDBOX_KEY)

    def _tell(self, base: str, path: str, token: str, **body: object) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._http.post(base + path, json=body, headers=headers, timeout=120).raise_for_status()

    # --- time ------------------------------------------------------------------------------------------------------

    def _moments(self) -> Iterator[datetime]:
        """When the daemon looks: every hour, every ten minutes while invoices are drafts, and when something is due."""
        ends = {end for tenant in TENANTS for end in self.story.ends(tenant)}
        now = self.story.start
        while (now := now + 10 * MINUTE) <= self.story.over:
            is_close = now.minute % self.story.drafts == 0 and any(end < now <= end + 70 * MINUTE for end in ends)
            is_daily = (now.hour, now.minute) in ((6, 30), (7, 30))
            is_to_come = any(now - 10 * MINUTE < at <= now for at in self._to_come)
            if now.minute in self.story.minutes or is_close or is_daily or is_to_come:
                yield now

    def _moment(self, now: datetime) -> None:
        self.logger.write(now)
        self._move(now)
        for at in [at for at in self._to_come if at <= now]:
            self._to_come.pop(at)(now)
        with self.meter.hour() as hour:
            self.daemon.scheduler(now)
        if now.minute == 10:
            self.played.hours[f"{now:%Y-%m-%dT%H}"] = hour
        for number in range(1, 6):
            self._move(now + number * MINUTE)
            if not self.daemon.sensors(now + number * MINUTE):
                break
        if now.hour == 23 and now.minute == 10:
            self.played.days[f"{now:%Y-%m-%d}"] = self.meter.left(self.web.process.pid)

    # --- what happens ----------------------------------------------------------------------------------------------

    def _incidents(self) -> Iterator[tuple[datetime, Any]]:
        story = self.story
        for outage in story.webhooks:
            yield outage.start, lambda _: self.web.stop()
            yield outage.end, lambda _: self._start_web()
        for outage in story.openclaw:
            yield outage.start, lambda _: self.openclaw.stop()
            yield outage.end, lambda _: self._start_openclaw()
        for moment in (story.change - 6 * HOUR, story.change + 20 * MINUTE):
            yield moment, self._write_catalogue
        yield story.taken_back, self._take_back
        yield story.approved, self._approve
        # Somebody has the month compared before it is over: what Stripe held then is not what it holds at the close.
        yield story.end - HOUR - 5 * MINUTE, lambda now: self.daemon.launch(now, "reconciliation", f"{now:%Y-%m}")
        if story.compared:
            yield story.compared, lambda now: self.daemon.launch(now, "reconciliation", f"{now:%Y-%m}")
        yield story.end + 15 * MINUTE, lambda _: self._hold("hold", "wants to look at it")
        yield story.end + 35 * MINUTE, lambda _: self._hold("release", "it is right")

    def _write_catalogue(self, now: datetime) -> None:
        fresh = self.catalogue.with_suffix(".new")
        fresh.write_text(catalogue(self.story, now), encoding="utf-8")
        fresh.replace(self.catalogue)

    def _take_back(self, now: datetime) -> None:
        """Two usage records, one of little worth and one of much, are cancelled in Stripe's dashboard."""
        query = """
            SELECT identifier, meter FROM usage_records WHERE state = 'delivered' AND service IN ('tokens', 'storage')
              AND hour > :since AND tenant_id IN ('acme', 'hooli', 'globex') AND value {} 10000000 AND value > 100000
            ORDER BY value DESC, identifier LIMIT 1"""
        api = stripe.StripeClient(self.stack.env["STRIPE_SECRET_KEY"], base_addresses={"api": self.stripe_url})
        for size in ("<", ">"):
            with self.ledger.transaction() as connection:
                row = connection.execute(text(query.format(size)), {"since": now - 6 * HOUR}).one()
            api.v1.billing.meter_event_adjustments.create(
                {"event_name": row.meter, "type": "cancel", "cancel": {"identifier": row.identifier}}
            )
            self.played.taken_back.append(row.identifier)

    def _approve(self, now: datetime) -> None:
        """What waits for a person is approved as in the finance pages."""
        from clawbill_pipeline.catalog import load
        from clawbill_pipeline.correcting import allow, planned

        self._command("correct", "--plan")
        catalog = load(self.catalogue)
        for action in planned(self.ledger, catalog):
            if action.verdict == "waits" and action.worth > catalog.correcting.automatic_below:
                allow(self.ledger, catalog, action, why="Stripe confirmed that it is gone", by="ann", now=now)

    def _hold(self, what: str, why: str) -> None:
        """A person's word on the draft of the largest customer."""
        query = "SELECT invoice_id FROM invoices WHERE tenant_id = 'hooli' AND status = 'draft'"
        with self.ledger.transaction() as connection:
            invoice = connection.scalar(text(query))
        assert invoice is not None, "the draft is not in the ledger"
        self._command("close", what, invoice, "--why", why)

    def _command(self, *arguments: str) -> None:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        self.played.commands.append(done.output)

    def _finish(self, instance: Any, receiver: Hook) -> None:
        self._command("close", "status")
        self._command("waterfall", "--period", f"{self.story.start:%Y-%m}")
        for run in instance.get_runs():
            of_job = self.played.runs.setdefault(run.job_name, {})
            of_job[run.status.value] = of_job.get(run.status.value, 0) + 1
        self.played.told = [message["title"] for message in receiver.received]
        for name in ("lines", "bad", "again", "late"):
            setattr(self.played, name, getattr(self.logger, name))


# --- the table --------------------------------------------------------------------------------------------------------


def table(played: Played) -> str:
    """What the hours of each day took (medians, without the day's own reports) and left."""
    head = f"{'day':<12}{'CPU s/h':>9}{'statements':>12}{'rows read':>11}{'KB read':>9}{'MB':>6}{'web MB':>8}" \
           f"{'ledger KB':>11}{'lake KB':>9}"  # fmt: skip
    rows = [head]
    for day, left in played.days.items():
        hours = hours_of(played, day)
        if hours:
            rows.append(
                f"{day:<12}{median(h.cpu for h in hours):>9.2f}{median(h.statements for h in hours):>12.0f}"
                f"{median(sum(h.rows_read.values()) for h in hours):>11.0f}"
                f"{median(h.bytes_read for h in hours) / 1e3:>9.0f}"
                f"{left.memory / 1e6:>6.0f}{left.web_memory / 1e6:>8.0f}"
                f"{sum(size for _, size in left.tables.values()) / 1e3:>11.0f}{left.lake_bytes / 1e3:>9.0f}"
            )
    return "\n".join(rows)


def hours_of(played: Played, day: str) -> list[Hour]:
    """The hours of a day in its second half."""
    return [hour for name, hour in played.hours.items() if name[:10] == day and int(name[11:]) >= 12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="a new folder")
    parser.add_argument("--story", choices=STORIES, default="june", help="the whole month, or only its end")
    parser.add_argument("--database", help="an empty PostgreSQL database; by default a server is started in the folder")
    given = parser.parse_args()
    given.state.mkdir(parents=True)
    sys.stderr.flush()
    with ExitStack() as closing:
        url = given.database
        if url is None:
            server = embedded.start(given.state / "postgres", durable=False)
            closing.callback(embedded.stop, given.state / "postgres")
            url = server.url()
        month = Month(STORIES[given.story](), given.state, url)
        played = month.play(lambda said: print(said, flush=True))  # noqa: T201
        (given.state / "month.json").write_text(json.dumps(asdict(played)))
    print(table(played))  # noqa: T201


if __name__ == "__main__":
    main()
