"""Months of tenants, told in a few lines each, through every station: from a line in a log file to a paid invoice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest

from clawbill_pipeline.catalog import CatalogError, parse
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.correcting import correct
from clawbill_pipeline.definitions import build_definitions
from clawbill_pipeline.invoicing.adjustments import propose_adjustments
from clawbill_pipeline.invoicing.sweep import sweep_events
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import late_hours
from clawbill_pipeline_tests.rating.world import real_openclaw
from clawbill_pipeline_tests.sandbox.stripe.server import Sandbox
from clawbill_pipeline_tests.scenarios.company import CATALOGUE, Company

HOUR = timedelta(hours=1)
Founding = Callable[..., Company]


@pytest.fixture(scope="module")
def openclaw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_openclaw(tmp_path_factory.mktemp("openclaw"), CATALOGUE) as url:
        yield url


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One clock for all stories: each begins in a month to come."""
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running
    running.stop()


@pytest.fixture
def founded(sandbox: Sandbox, openclaw: str, ledger_url: str, tmp_path: Path) -> Iterator[Founding]:
    """Founds a company whose webhook is in place; what it could not do is a failure, unless the story expects it."""
    companies: list[Company] = []
    with ExitStack() as lasting:

        def found(*tenants: str, webhook: bool = True, clock: Sandbox | None = None, **settings: object) -> Company:
            folder = tmp_path / str(len(companies))
            folder.mkdir()
            ledger = Ledger(ledger_url)
            lasting.callback(ledger.dispose)
            company = Company(clock or sandbox, openclaw, ledger, folder, tenants or ("globex",))
            companies.append(company)
            if webhook:
                lasting.enter_context(company.webhook(ledger_url, **settings))
            return company

        yield found
    for company in companies:
        assert company.problems == []


@pytest.fixture
def globex(founded: Founding) -> Company:
    return founded("globex")


def period_of(company: Company) -> str:
    """Of the month that ended last."""
    return f"{company.now - timedelta(days=2):%Y-%m}"


def test_the_happy_month(globex: Company) -> None:
    globex.begin(month=3)
    globex.use(1_234_000)
    globex.use(50, "calls")
    globex.wait(days=3)
    globex.until_period_end()
    assert globex.bills() == [("draft", Decimal("12.84"))]
    globex.wait(hours=2)
    assert globex.bills() == [("paid", Decimal("12.84"))]
    assert globex.standings() == ["current"]
    assert globex.decisions() == [], "a draft that agrees goes out by itself"
    globex.books_agree(period_of(globex))


def test_the_last_hours_reach_the_draft_at_once_and_for_its_tenant_alone(founded: Founding) -> None:
    company = founded("globex", "boston")
    company.begin(month=3)
    company.use(100_000)
    company.wait(days=30, hours=22.5)
    company.use(200_000)
    company.use(900_000, tenant="boston")
    company.wait(hours=0.5)
    company.use(400_000, at=company.now + 0.5 * HOUR)
    company.use(400_000, at=company.now + 0.5 * HOUR, tenant="boston")
    company.until_period_end("globex")
    assert company.last_hours is not None
    assert company.last_hours.tenants == 1
    assert (company.last_hours.hours_ahead, company.last_hours.sent_ahead) == (1, 1)
    ahead = company.rows("SELECT DISTINCT tenant_id FROM metered_ahead")
    metered = company.rows("SELECT DISTINCT tenant_id FROM metered_usage WHERE run_id = 'events'")
    assert [row.tenant_id for row in ahead] == [row.tenant_id for row in metered] == ["globex"]
    assert company.rows("SELECT 1 FROM metered_hours WHERE hour >= :now - interval '1 hour'", now=company.now) == []
    # The draft was made before: its line is behind, and the meter says what the invoice will be.
    assert company.bills("globex") == [("draft", Decimal(3))]
    assert (company.closed and company.closed.released, company.draft_breaks()) == (1, [])
    company.wait(hours=2)
    assert company.bills("globex") == [("paid", Decimal(7))]
    revisions = company.rows("SELECT tenant_id, max(revision) AS n FROM metered_usage GROUP BY 1 ORDER BY 1")
    assert [(row.tenant_id, row.n) for row in revisions] == [("boston", 1), ("globex", 1)], "counted once, whoever came"


def test_a_wrong_draft_is_held_with_its_cause_corrected_compared_again_and_released(globex: Company) -> None:
    """Stripe loses a record that it has acknowledged: nothing goes out before it is there again."""
    globex.begin(month=3)
    month = f"{globex.now:%Y-%m}"
    globex.wait(days=30, hours=12)
    globex.use(300_000)
    globex.wait(hours=2)
    (record,) = globex.rows("SELECT * FROM usage_records")
    lost = {"event_name": record.meter, "type": "cancel", "cancel": {"identifier": record.identifier}}
    globex.account.v1.billing.meter_event_adjustments.create(lost)
    globex.until_period_end()
    assert globex.decisions() == ["hold"]
    assert globex.draft_breaks() == [("tokens", "lost_after_acknowledgement", True)]
    globex.wait(hours=3)
    assert globex.bills() == [("draft", Decimal(0))], "held beyond Stripe's grace"
    globex.reconcile(month)
    assert globex.draft_breaks()[0][2], "reconciliation leaves it alone"
    works = (lambda: globex.openclaw, lambda: globex.api)
    done = correct(
        globex.ledger, globex.catalog, globex.lake, *works, now=globex.clock, run_id="corrective", by="story"
    )  # fmt: skip
    assert [action.remedy for action in done.done] == ["resend"]
    globex.wait(hours=1)
    assert globex.decisions() == ["hold", "release"]
    assert globex.draft_breaks() == [("tokens", "lost_after_acknowledgement", False)]
    globex.wait(hours=1)
    assert globex.bills() == [("paid", Decimal(3))]
    globex.books_agree(month)


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_one_run_of_the_job_does_the_last_hours_and_looks_at_the_draft(globex: Company) -> None:
    """As the sensor starts it: what an event brought about is done by one run, whatever it takes."""
    globex.begin(month=3)
    globex.wait(days=30, hours=23)
    globex.use(300_000)
    globex.move_to(globex.now + HOUR)
    globex.account.flush()
    works = {"catalog": globex.catalog, "lake": globex.lake, "ledger": globex.ledger, "openclaw": globex.openclaw}
    works |= {"stripe": globex.api, "clock": globex.clock}
    given = {name: dg.ResourceDefinition.hardcoded_resource(work) for name, work in works.items()}
    job = build_definitions(given).resolve_job_def("stripe_events")
    with dg.instance_for_test() as instance:
        run = job.execute_in_process(instance=instance)
        shown = run.asset_materializations_for_node("invoice_drafts")[0].metadata
    assert run.success
    said = {name: shown[name].value for name in ("tenants", "hours_ahead", "sent_ahead", "released", "held")}
    over, running = [record.data for record in shown["open_periods"].value.records]
    assert (over["compared"], over["delivered"], over["confirmed"], running["invoice_id"]) == ("agrees", True, True, "")
    assert said == {"tenants": 1, "hours_ahead": 2, "sent_ahead": 1, "released": 1, "held": 0}
    globex.wait(hours=2)
    assert globex.bills() == [("paid", Decimal(3))]


def test_the_late_night_file(globex: Company) -> None:
    globex.begin(month=3)
    globex.use(100_000)
    globex.until_period_end()
    assert globex.bills() == [("draft", Decimal(1))]
    globex.wait(hours=0.4)
    globex.use(200_000, at=globex.now - 2 * HOUR)
    globex.wait(hours=1)
    assert globex.bills() == [("paid", Decimal(3))]
    globex.books_agree(period_of(globex))


@pytest.mark.parametrize(("arrives", "looked_at"), [(30, 30), (45, 50)])
def test_within_the_late_window_usage_is_landed_for_a_draft_that_agreed_before(
    globex: Company, arrives: int, looked_at: int
) -> None:
    """The hourly run lands at ten past, and the invoice is final at one: what comes at half past is not to wait, and
    what comes when the window ends is found ten minutes before that."""
    globex.begin(month=3)
    globex.use(100_000)
    globex.until_period_end()
    assert globex.decisions() == [], "it agrees, and is left alone"
    end = globex.now
    globex.move_to(end + arrives * HOUR / 60)
    globex.use(200_000, at=globex.now - 2 * HOUR)
    globex.move_to(end + looked_at * HOUR / 60)
    globex.look_at_drafts()
    (late,) = late_hours(globex.ledger, before=globex.now)
    assert late[0] == utc_hour(end - 2 * HOUR + arrives * HOUR / 60)
    # The sensor late_usage asks for that hour's run.
    globex.run_hours()
    globex.skip(days=0.1)
    assert globex.bills()[0] == ("paid", Decimal(3))


@pytest.mark.slow
def test_the_failed_card_that_recovers(globex: Company) -> None:
    globex.begin(month=3)
    globex.use(500_000)
    globex.card("fail")
    globex.until_period_end()
    globex.wait(hours=2)
    assert (globex.bills(), globex.standings()) == ([("open", Decimal(5))], ["current", "past_due"])
    globex.card("succeed")
    globex.wait(days=3.1)
    assert (globex.bills()[0], globex.standings()) == (("paid", Decimal(5)), ["current", "past_due", "current"])
    told = globex.rows(
        "SELECT detail->>'status' AS status FROM audit_trail WHERE kind = 'standing.reported' ORDER BY id"
    )
    assert [row.status for row in told] == ["paid", "past_due", "paid"], "OpenClaw was told each time"


@pytest.fixture
def june(tmp_path: Path) -> Iterator[Sandbox]:
    """A clock of its own: it is the first of June in the year in which the rates change."""
    running = Sandbox(tmp_path / "june", int(datetime.fromisoformat("2026-06-01T00:00:00+00:00").timestamp()))
    yield running
    running.stop()


def test_peers_13_the_upgrade(june: Sandbox, founded: Founding) -> None:
    """In the middle of June the plan and the rates change; the fee is prorated by June's 30 days."""
    grower = founded("grower", clock=june)
    grower.provision()
    v1 = grower.account.v1
    plans = []
    for fee in (1000, 4000):
        product = v1.products.create({"name": f"Plan of {fee}"}).id
        terms = {"currency": "usd", "product": product, "recurring": {"interval": "month"}, "unit_amount": fee}
        plans.append(v1.prices.create(terms).id)
    items = {"items": [{"price": plans[0]}], "proration_behavior": "always_invoice"}
    v1.subscriptions.update(grower.subscription().id, items)
    plan = next(item for item in grower.subscription()["items"].data if item.price.id == plans[0])
    grower.use(1_000_000)
    grower.wait(hours=2)
    grower.wait(days=14, hours=22)
    v1.subscriptions.update(grower.subscription().id, {"items": [{"id": plan.id, "price": plans[1]}]})
    grower.use(1_000_000)
    grower.wait(hours=3)
    grower.until_period_end()
    grower.wait(hours=2)
    # 10 of usage at the old rate, 5 at the new one; July's fee of 40; half of June's 40 less half of its 10.
    assert grower.bills() == [("paid", Decimal(10)), ("paid", Decimal(10 + 5 + 40 + 20 - 5))]
    assert grower.draft_breaks() == []
    grower.books_agree("2026-06")


def test_peers_08_the_cancellation(globex: Company) -> None:
    """Cancelled at 24 minutes past, and all that was used until then is on the last invoice."""
    globex.begin(month=3)
    globex.use(100_000)
    globex.wait(days=10, hours=0.3)
    globex.use(200_000)
    globex.wait(hours=0.1)
    globex.account.v1.subscriptions.cancel(globex.subscription().id, {"invoice_now": True})
    globex.handle()
    assert globex.last_hours is not None
    assert globex.last_hours.hours_ahead >= 1, "the hour that was cut"
    assert globex.draft_breaks() == []
    globex.wait(hours=2)
    assert globex.bills() == [("paid", Decimal(3))]
    assert globex.standings() == ["current", "cancelled"]
    (line,) = globex.rows("SELECT * FROM invoice_lines WHERE service = 'tokens'")
    assert line.period_end.minute == 24


def test_peers_07_the_february_anchor(founded: Founding) -> None:
    """Periods from the 31st tile through February: no hour is on two invoices, none on no invoice."""
    leap = founded("leap")
    leap.begin(month=1, day=31)
    for _ in range(3):
        leap.use(100_000)
        leap.until_period_end()
        leap.use(1_000)
        leap.wait(hours=1.5)
    assert [status for status, _ in leap.bills()] == ["paid"] * 3
    assert [total for _, total in leap.bills()] == [Decimal("1.00"), Decimal("1.01"), Decimal("1.01")]
    spans = leap.rows("SELECT period_start, period_end FROM invoice_lines WHERE service = 'tokens' ORDER BY 1")
    assert [span.period_start.day for span in spans][::2] == [31, 31]
    assert spans[1].period_start.month == 2
    assert [span.period_end for span in spans[:-1]] == [span.period_start for span in spans[1:]]
    assert leap.draft_breaks() == []


@pytest.mark.slow
def test_peers_06_the_clock_change(founded: Founding) -> None:
    """Two accounts in New York, opened before and after the clocks change: the same events, the same bill."""
    company = founded("boston")
    company.begin(month=2)
    company.wait(days=45)
    both = founded("boston", "salem")
    both.account, both.api, both.metered_to = company.account, company.api, company.metered_to
    both.provision()
    for hours in (0, 30, 200):
        for tenant in ("boston", "salem"):
            both.use(100_000 + hours, tenant=tenant, at=both.now + hours * HOUR)
    both.until_period_end("salem")
    both.wait(hours=3)
    assert both.bills("boston")[-1] == both.bills("salem")[-1] == ("paid", Decimal("3.00"))
    both.until_period_end("salem")
    both.wait(hours=3)
    assert both.bills("boston")[-1] == both.bills("salem")[-1] == ("paid", Decimal(0)), "nothing is billed twice"
    assert both.draft_breaks() == []


def test_peers_10_the_webhook_outage_of_two_days(founded: Founding, ledger_url: str) -> None:
    globex = founded("globex", webhook=False)
    with globex.webhook(ledger_url):
        globex.begin(month=3)
        globex.use(500_000)
        globex.card("fail")
        globex.wait(days=20)
        globex.until_period_end()
    globex.skip(days=2)
    assert globex.bills() == [("draft", Decimal(5))], "nobody told us"
    globex.card("succeed")
    globex.skip(days=2)
    swept = sweep_events(globex.ledger, globex.api, since=globex.now - timedelta(days=5), now=globex.now)
    assert 0 < swept.landed < swept.listed
    globex.handle()
    assert (globex.bills()[0], globex.standings()[-1]) == (("paid", Decimal(5)), "current")
    globex.books_agree(f"{globex.now - timedelta(days=10):%Y-%m}")


def test_peers_10_the_duplicate_storm(founded: Founding) -> None:
    """Every webhook twice and in no order, every log line twice: the month is the happy one."""
    globex = founded("globex", webhook_duplicates=1, webhook_shuffle_seconds=0.2)
    globex.begin(month=3)
    globex.use(500_000, again=1)
    globex.card("fail")
    globex.until_period_end()
    globex.wait(hours=2)
    globex.card("succeed")
    globex.wait(days=4)
    assert (globex.bills()[0], globex.standings()[-1]) == (("paid", Decimal(5)), "current")
    events = globex.rows("SELECT event_id FROM stripe_events")
    assert len({row.event_id for row in events}) == len(events)
    globex.books_agree(f"{globex.now - timedelta(days=10):%Y-%m}")


def test_peers_11_currencies_without_cents(founded: Founding) -> None:
    """JPY 80 charges 80; ISK 5 is charged as 500 although it has no cents."""
    company = founded("osaka", "reykjavik")
    company.begin(month=3)
    company.use(100, tenant="osaka")
    company.use(100, tenant="reykjavik")
    company.until_period_end()
    company.wait(hours=2)
    assert (company.bills("osaka"), company.bills("reykjavik")) == ([("paid", Decimal(80))], [("paid", Decimal(5))])
    sent = {}
    for tenant in company.tenants:
        (invoice,) = company.account.v1.invoices.list({"customer": company.customer(tenant)}).data
        sent[invoice.currency] = invoice.amount_paid
    assert sent == {"jpy": 80, "isk": 500}
    company.books_agree(period_of(company))


@pytest.mark.slow
def test_peers_09_usage_after_the_invoice_becomes_an_adjustment_of_its_own_period(globex: Company) -> None:
    globex.begin(month=3)
    march = globex.now
    globex.use(100_000)
    globex.until_period_end()
    globex.wait(hours=2)
    globex.use(200_000, at=march + 200 * HOUR)
    globex.wait(days=2)
    assert globex.bills()[0] == ("paid", Decimal(1)), "a final invoice stays as it is"
    late = propose_adjustments(globex.ledger, globex.catalog, now=globex.now, run_id="daily")
    (found,) = late.adjustments
    assert (found.amount, found.currency, found.period_start) == (Decimal(2), "USD", march)


@pytest.mark.parametrize(
    ("grace", "window", "fits"), [("48h", "72h", False), ("72h", "72h", True), ("73h", "2h", False)]
)
def test_peers_14_a_grace_shorter_than_what_may_be_late_cannot_be_configured(
    grace: str, window: str, fits: bool
) -> None:
    """pug#123: three days of grace in the meter and two in the invoicer."""
    calendar = f"calendar: {{stripe_grace: {grace}, late_window: {window}}}\n"
    if fits:
        assert parse(CATALOGUE + calendar).calendar.stripe_grace == timedelta(hours=72)
        return
    with pytest.raises(CatalogError, match="stripe_grace"):
        parse(CATALOGUE + calendar)
