"""The pages over a month with a bit of everything: the right figures, escaped, filtered, paged."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal
from html import unescape

import httpx
from sqlalchemy import text

from clawbill_pipeline.reporting.report import read_report
from clawbill_pipeline.web.finance import figures
from clawbill_pipeline_tests.reconciliation.month import NOW, PERIOD
from clawbill_pipeline_tests.web.finance.conftest import Office

PAGES = [
    f"/periods/{PERIOD}", f"/periods/{PERIOD}/breaks", f"/periods/{PERIOD}/tenant?id=globex",
    f"/periods/{PERIOD}/changes", f"/periods/{PERIOD}/reports", "/invoices/in_globex", "/lines/il_globex_tokens",
    "/approvals", "/activity",
]  # fmt: skip


def words(answer: httpx.Response) -> str:
    """The text of a page, blanks as one."""
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def test_every_page_is_there_and_safe(office: Office) -> None:
    client = office.client("anna")
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "<script" not in answer.text
        assert not re.search(r"\sstyle=|\son[a-z]+=|javascript:", answer.text), path
        assert answer.text.count("<h1>") == 1
        assert answer.text.count("<main") == 1
        inputs = set(re.findall(r'<(?:input|select) id="([^"]+)"', answer.text))
        assert inputs <= set(re.findall(r'<label for="([^"]+)"', answer.text)), path
        assert not re.search(r'<input(?![^>]*type="hidden")(?![^>]* id=)', answer.text), path


def test_the_first_page_leads_to_the_newest_period(office: Office) -> None:
    answer = office.client("rita").get("/")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/periods/{PERIOD}")
    chosen = office.client("rita").get("/periods", params={"period": PERIOD})
    assert chosen.headers["Location"] == f"/periods/{PERIOD}"


def test_the_overview_draws_the_waterfall_of_the_report(office: Office) -> None:
    with office.month.ledger.transaction() as connection:
        report = read_report(connection, office.month.catalog, PERIOD)
        reconciled = figures.newest(connection, PERIOD)
        assert reconciled is not None
        drawn = figures.waterfalls(connection, reconciled, None)
    assert drawn == {currency: report.bars(currency) for currency in report.currencies}
    page = words(office.client("rita").get(f"/periods/{PERIOD}"))
    assert f"{len(report.faults)} open breaks" in page
    for currency in report.currencies:
        assert f"From rated to paid in {currency}" in office.client("rita").get(f"/periods/{PERIOD}").text


def test_a_tenant_whose_name_is_markup_stays_text(office: Office) -> None:
    name = "<img src=x onerror=alert(1)>\"'&"
    office.month.run(
        "INSERT INTO breaks (period, tenant_id, service, step, cause, quantity, amount, detail, first_seen, last_seen)"
        " VALUES (:p, :name, :name, 'metered_rated', 'unmapped_tenant', 1, 1, :name, :at, :at)",
        p=PERIOD, name=name, at=NOW,
    )  # fmt: skip
    client = office.client("rita")
    for path in (
        f"/periods/{PERIOD}/breaks",
        f"/periods/{PERIOD}/breaks?words={'%3Cimg'}",
        f"/periods/{PERIOD}/changes",
    ):
        answer = client.get(path)
        assert "<img" not in answer.text
        assert "&lt;img" in answer.text
    (link,) = set(re.findall(rf'href="(/periods/{PERIOD}/tenant\?id=%3Cimg[^"]*)"', client.get(
        f"/periods/{PERIOD}/breaks?words=onerror").text))  # fmt: skip
    answer = client.get(unescape(link))
    assert (answer.status_code, "<img" in answer.text) == (200, False)
    assert name in unescape(answer.text)


def test_a_tenant_whose_name_is_sql_is_a_name(office: Office) -> None:
    client = office.client("rita")
    before = office.month.fingerprint()
    for injected in ("' OR '1'='1", "'; DROP TABLE ledger.breaks; --", "%", "_", "\\", "acme' --"):
        for name in ("tenant", "service", "words"):
            answer = client.get(f"/periods/{PERIOD}/breaks", params={name: injected})
            assert "None found" in words(answer) or name == "words", injected
        assert client.get(f"/periods/{PERIOD}/tenant", params={"id": injected}).status_code == 404
        assert client.get(f"/periods/{PERIOD}", params={"tenant": injected}).status_code == 200
    assert office.month.fingerprint() == before


def test_filters_and_search(office: Office) -> None:
    client = office.client("rita")

    def count(**query: str) -> int:
        page = words(client.get(f"/periods/{PERIOD}/breaks", params=query))
        found = re.search(r"([\d,]+) found", page)
        return int(found[1].replace(",", "")) if found else 0

    def counted(where: str) -> int:
        return int(office.month.run(f"SELECT count(*) AS n FROM breaks WHERE period = '{PERIOD}' AND {where}")[0].n)

    everything = counted("closed_at IS NULL")
    assert count(standing="open") == everything > 3
    assert count(standing="open", tenant="osaka") == counted("tenant_id = 'osaka'") > 0
    assert count(standing="open", cause="lost_after_acknowledgement") == counted("cause = 'lost_after_acknowledgement'")
    assert count(standing="open", step="held_invoiced") == counted("step = 'held_invoiced'")
    assert count(words="cmd|") == counted("tenant_id LIKE '=cmd%' AND cause <> 'rounding'") > 0
    assert count(words="nothing has this") == 0
    assert count(standing="gone") == 0
    assert count(standing="no such word", page="x", order="drop table") == count()


def test_a_long_list_is_paged_by_the_database(office: Office) -> None:
    office.month.run(
        "INSERT INTO breaks (period, tenant_id, service, hour, step, cause, quantity, amount, detail, first_seen,"
        " last_seen) SELECT :p, 't' || n % 50, 's', CAST(:at AS timestamptz) + n * interval '1 hour', 'sent_held',"
        " 'counted_twice', 1, n, 'd' || n, :at, :at FROM generate_series(1, 5000) n",
        p=PERIOD, at=NOW,
    )  # fmt: skip
    client = office.client("rita")

    def amounts(page: int) -> list[Decimal]:
        text_of = client.get(f"/periods/{PERIOD}/breaks", params={"cause": "counted_twice", "page": page}).text
        cells = re.findall(r'<td class="n">([\d,]+) </td>', text_of)
        return [Decimal(cell.replace(",", "")) for cell in cells]

    assert amounts(1) == [Decimal(5000 - n) for n in range(50)]
    assert amounts(2) == [Decimal(4950 - n) for n in range(50)]
    assert amounts(100) == [Decimal(50 - n) for n in range(50)]
    beyond = words(client.get(f"/periods/{PERIOD}/breaks", params={"cause": "counted_twice", "page": "101"}))
    assert "beyond the last one" in beyond


def test_a_tenants_month(office: Office) -> None:
    page = words(office.client("rita").get(f"/periods/{PERIOD}/tenant?id=globex"))
    assert "A-globex" in page
    assert "late" in page
    assert "100,500" in page  # the late revision's new quantity
    assert "acme" not in page
    assert "usage.jsonl" in words(office.client("rita").get(f"/periods/{PERIOD}/tenant?id=acme"))


def test_an_invoice_beside_its_recomputation(office: Office) -> None:
    client = office.client("rita")
    assert "bills what the ledger has" not in words(client.get("/invoices/in_osaka"))
    page = words(client.get("/invoices/in_osaka"))
    assert "1 of 1 services differs" in page
    assert "333" in page
    assert "400" in page  # six hours of 333 tokens at 0.2
    assert "/lines/il_osaka_tokens" in client.get("/invoices/in_osaka").text
    assert client.get("/invoices/in_nobody").status_code == 404


def test_a_draft_shows_what_was_compared_and_decided(office: Office) -> None:
    office.month.run("UPDATE invoices SET status = 'draft', finalized_at = NULL WHERE tenant_id = 'osaka'")
    difference = {"service": "tokens", "cause": "lost_after_acknowledgement", "quantity": "-1", "amount": "-66.6",
                  "detail": "Stripe holds <less>"}  # fmt: skip
    for kind, said in (
        ("close.compared", {"agrees": False, "differences": [difference], "apart": {}, "run_id": "r"}),
        ("close.hold", {"why": "it differs", "by": "clawbill", "params": {}, "run_id": "r"}),
        ("close.done", {"decision": 1}),
    ):
        office.month.run(
            "INSERT INTO audit_trail (at, kind, tenant_id, subject, detail)"
            " VALUES (:at, :kind, 'osaka', 'in_osaka', CAST(:said AS jsonb))",
            at=NOW, kind=kind, said=json.dumps(said),
        )  # fmt: skip
    client = office.client("anna")
    waiting = words(client.get("/approvals"))
    assert "A-osaka osaka 400 JPY differs held clawbill it differs" in waiting
    page = words(client.get("/invoices/in_osaka"))
    assert "differs: tokens lost_after_acknowledgement -66.6; Stripe holds <less>" in page
    assert "done at Stripe" in page
    assert "held clawbill it differs" in page
    assert "Release" in page


def test_a_line_leads_to_its_events_with_file_and_offset(office: Office) -> None:
    page = words(office.client("rita").get("/lines/il_osaka_tokens"))
    assert "usage-1.jsonl" in page
    assert "Byte offset" in page
    (event,) = re.findall(r"osaka-tokens-0103 333 – logs usage-1.jsonl (\d+) (\d+) yes", page)
    assert int(event[0]) * 100 == int(event[1])
    assert "does not come out the same" in page  # 333 were invoiced, 400 were used
    assert office.client("rita").get("/lines/il_nobody").status_code == 404


def test_what_changed_since_a_day(office: Office) -> None:
    office.month.run(
        "UPDATE breaks SET closed_at = :at WHERE tenant_id = 'osaka' AND cause = 'lost_after_acknowledgement'", at=NOW
    )
    client = office.client("rita")
    page = words(client.get(f"/periods/{PERIOD}/changes"))
    assert "1 gone" in page
    assert "not reconciled before then" in page
    later = (NOW + timedelta(days=1)).date().isoformat()
    quiet = words(client.get(f"/periods/{PERIOD}/changes?since={later}"))
    assert "gone; the largest" not in quiet
    assert "new; the largest" not in quiet


def test_a_period_that_was_never_reconciled(office: Office) -> None:
    client = office.client("rita")
    for period in ("2026-09", "2026-13", "x", "2026-10'--"):
        for rest in ("", "/breaks", "/tenant?id=globex", "/changes", "/reports"):
            assert client.get(f"/periods/{period}{rest}").status_code == 404


def test_before_anything_was_reconciled(office: Office) -> None:
    with office.month.ledger.transaction() as connection:
        for table in ("reconciliations", "reports"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        connection.execute(text("TRUNCATE reconciliations, reports, breaks"))
    assert "Nothing was reconciled yet" in words(office.client("rita").get("/"))
