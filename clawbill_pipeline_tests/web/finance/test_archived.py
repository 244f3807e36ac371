"""The pages over a month that is archived: they say so, show what is still true, and never less as if it were all."""

from __future__ import annotations

import re
from datetime import date, timedelta

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from clawbill_pipeline.ledger.archive import archive_month, archived, archived_of, restore_month
from clawbill_pipeline_tests.reconciliation.month import END, NOW, PERIOD, START
from clawbill_pipeline_tests.web.finance.conftest import Office
from clawbill_pipeline_tests.web.finance.test_pages import words

OCTOBER, LATER = date(2026, 10, 1), END + timedelta(days=36)
RESTORE = f"clawbill archive restore {PERIOD}"
CHANGES = f"/periods/{PERIOD}/changes?since=2026-10-01"
#: Pages that read nothing that leaves the database.
UNTOUCHED = [f"/periods/{PERIOD}/breaks?standing=gone", f"/periods/{PERIOD}/reports", "/approvals", "/activity"]


@pytest.fixture
def settled(office: Office) -> Office:
    """A month whose breaks are settled, as those of a month are that may be archived."""
    office.month.run("UPDATE breaks SET closed_at = :at", at=NOW)
    return office


def store(office: Office) -> None:
    assert archive_month(office.month.ledger, office.month.lake, OCTOBER, now=LATER, by="me")
    assert office.month.run("SELECT count(*) AS n FROM rated_usage")[0].n == 0


def restore(office: Office) -> None:
    restore_month(office.month.ledger, office.month.lake, OCTOBER, now=LATER, by="me")


def shown(answer: httpx.Response) -> str:
    """The page without its form tokens, which are the session's."""
    assert answer.status_code == 200, answer.text
    return re.sub(r'name="token" value="[0-9a-f]+"', "", answer.text)


def cards(answer: httpx.Response) -> list[str]:
    return re.findall(r'<div class="card"><b>([^<]+)</b>', answer.text)


def table(answer: httpx.Response, label: str) -> str | None:
    found = re.search(rf'aria-label="{label}">(.*?)</table>', answer.text, re.DOTALL)
    return found and found[1]


def test_a_period_keeps_what_was_reconciled(settled: Office) -> None:
    client = settled.client("rita")
    path = f"/periods/{PERIOD}"
    before = client.get(path)
    assert "Rated a day in USD" in before.text
    assert "archive" not in before.text
    store(settled)
    after = client.get(path)
    assert f"{PERIOD} is archived: what was rated a day is not shown." in words(after)
    assert RESTORE in after.text
    assert "Rated a day" not in after.text.replace("what was rated a day", "")
    assert "Rated by the end of each day in USD" in after.text
    assert cards(after) == cards(before) != []
    assert table(after, "Tenants") == table(before, "Tenants") is not None
    assert table(after, "Periods") == table(before, "Periods") is not None
    restore(settled)
    assert shown(client.get(path)) == shown(before)


def test_days_of_a_month_that_was_archived_when_first_looked_at_are_back_with_it(settled: Office) -> None:
    store(settled)
    client = settled.client("gus")
    assert RESTORE in client.get(f"/periods/{PERIOD}").text
    restore(settled)
    page = client.get(f"/periods/{PERIOD}").text
    assert "Rated a day in USD" in page
    assert "archive" not in page


def test_a_tenants_month_keeps_its_waterfall_and_invoices(settled: Office) -> None:
    client = settled.client("rita")
    path = f"/periods/{PERIOD}/tenant?id=globex"
    before = client.get(path)
    assert "Late and adjusted" in before.text
    store(settled)
    after = client.get(path)
    assert f"{PERIOD} is archived" in words(after)
    assert RESTORE in after.text
    assert "Rated a day in" not in after.text
    assert "Late and adjusted" not in after.text
    for label in ("Waterfall", "Invoices"):
        assert table(after, label) == table(before, label) is not None


def test_what_changed_keeps_totals_breaks_and_decisions(settled: Office) -> None:
    client = settled.client("rita")
    before = client.get(CHANGES)
    assert table(before, "Late and corrected usage")
    store(settled)
    after = client.get(CHANGES)
    assert f"{PERIOD} is archived: late and corrected usage is not shown." in words(after)
    assert RESTORE in after.text
    assert "Late and corrected usage Archived." in words(after)
    for label in ("Totals then and now", "Decisions"):
        assert table(after, label) == table(before, label) is not None
    assert re.findall(r"\d+ gone", words(after)) == re.findall(r"\d+ gone", words(before)) != []


def test_an_invoice_is_not_called_wrong_for_rows_that_are_archived(settled: Office) -> None:
    client = settled.client("anna")
    before = client.get("/invoices/in_globex")
    store(settled)
    after = client.get("/invoices/in_globex")
    page = words(after)
    assert f"{PERIOD} is archived: what the invoice bills of it is not recomputed here." in page
    assert RESTORE in page
    assert "differ" not in page.replace("Difference", "")
    assert "bills what the ledger has" not in page
    assert cards(after) == cards(before) != []
    assert table(after, "History") == table(before, "History") is not None
    lines = re.findall(r"/lines/(\w+)", after.text)
    assert lines == re.findall(r"/lines/(\w+)", before.text) != []
    # What it bills of a month that is there is compared all the same.
    settled.month.run(
        "INSERT INTO invoice_lines (invoice_id, line_id, tenant_id, service, quantity, amount, currency, period_start,"
        " period_end, description, object) SELECT invoice_id, 'il_november', tenant_id, service, 7, 7, currency,"
        " period_end, period_end + interval '1 month', '', object FROM invoice_lines"
        " WHERE line_id = 'il_globex_tokens'"
    )
    page = words(client.get("/invoices/in_globex"))
    assert f"1 of {len(set(lines)) + 1} services differs" in page
    assert RESTORE in page


def test_a_line_is_explained_from_the_archive_unless_that_is_damaged(settled: Office) -> None:
    client = settled.client("rita")
    path = "/lines/il_globex_tokens"
    before = client.get(path)
    store(settled)
    after = client.get(path)
    note = f"{PERIOD} is archived: the hours and usage records here were read from the archive."
    assert note in words(after)
    told = re.sub(rf'<p class="said" role="status">{re.escape(note)}</p>', "", shown(after))
    assert told == shown(before)
    assert settled.month.run("SELECT count(*) AS n FROM rated_usage")[0].n == 0
    with settled.month.ledger.transaction() as connection:
        file = settled.month.lake.path(archived(connection)[0].file)
    file.write_bytes(file.read_bytes()[:-10])
    answer = client.get(path)
    assert answer.status_code == 409
    assert f"metered_usage/{PERIOD}.parquet of {PERIOD} can&#39;t be read" in answer.text
    assert "take it from a backup" in answer.text
    assert "does not answer" not in answer.text


def test_other_pages_are_as_before(settled: Office) -> None:
    client = settled.client("anna")
    before = [shown(client.get(path)) for path in UNTOUCHED]
    store(settled)
    assert [shown(client.get(path)) for path in UNTOUCHED] == before
    assert client.get(f"/reports/{PERIOD}/waterfall.csv").status_code == 200


def test_no_month_leaves_while_a_page_reads(settled: Office) -> None:
    with settled.month.ledger.transaction() as connection:
        assert archived_of(connection, START, END) == ()
        for name in ("metered_usage", "rated_usage", "usage_records"):  # what archiving asks for, without waiting
            with pytest.raises(OperationalError, match="could not obtain lock"):
                settled.month.run(f"LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE NOWAIT")
    store(settled)
    with settled.month.ledger.transaction() as connection:
        assert archived_of(connection, START, END) == (PERIOD,)
        assert archived_of(connection, END, LATER) == ()
        assert archived_of(connection, START - timedelta(days=1), START) == ()
