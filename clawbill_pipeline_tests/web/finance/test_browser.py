"""The finance pages in a real Chromium: sign in, filter, follow a line to its events, approve, download the workbook.

Scripts are switched off: the pages work without. Where ``CLAWBILL_SCREENSHOTS`` names a folder, each page is kept
there as a picture at 390 and 1440 pixels, light and dark.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import openpyxl
import pytest

from clawbill_pipeline_tests.reconciliation.month import PERIOD
from clawbill_pipeline_tests.web.finance.conftest import PASSWORD, Office
from clawbill_pipeline_tests.web.finance.test_pages import PAGES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(chromium: playwright.Browser, office: Office, width: int = 1440, **options: object) -> playwright.Page:
    context = chromium.new_context(
        base_url=office.address, viewport={"width": width, "height": 900}, java_script_enabled=False, **options
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto("/")
    page.get_by_label("Name").fill("anna")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    return page


def test_a_person_of_finance_at_work(chromium: playwright.Browser, closing: Office, tmp_path: Path) -> None:
    assert closing.account is not None
    page = opened(chromium, closing)
    assert page.url.endswith(f"/periods/{PERIOD}")
    assert page.get_by_role("heading", level=1).inner_text() == f"Billing period {PERIOD}"

    page.get_by_role("link", name="Breaks", exact=True).click()
    page.get_by_label("Tenant").fill("osaka")
    page.get_by_label("Cause").select_option("lost_after_acknowledgement")
    page.get_by_role("button", name="Filter").click()
    assert "cause=lost_after_acknowledgement" in page.url
    rows = page.locator("tbody tr")
    assert rows.count() == 1
    assert "-66.6 JPY" in rows.inner_text()

    rows.get_by_role("link", name="osaka").click()
    page.get_by_role("link", name="A-osaka").click()
    page.get_by_role("link", name="il_osaka_tokens").click()
    events = page.get_by_role("region", name="Usage events")
    assert "usage-1.jsonl" in events.inner_text()
    assert events.locator("tbody tr").count() == 6

    page.get_by_role("link", name="Approvals").click()
    page.get_by_role("link", name=str(closing.draft)).click()
    page.get_by_label("Why").fill("waits for the correction")
    page.get_by_role("button", name="Hold").click()
    assert page.get_by_role("status").inner_text() == "Done."
    assert closing.account.v1.invoices.retrieve(closing.draft).auto_advance is False

    page.get_by_role("link", name="Approvals").click()
    asked = page.locator("article", has_text="in_globex")
    asked.get_by_label("Why").fill("checked with the tenant")
    asked.get_by_role("button", name="Accept").click()
    assert page.get_by_role("status").inner_text() == "Adjustment accepted; Stripe has it."
    assert [amount for amount, _ in closing.items] == [75]
    assert [said["by"] for _, _, said in closing.trail("adjustment.accepted")] == ["anna (web)"]

    page.goto(f"/periods/{PERIOD}/reports")
    with page.expect_download() as download:
        page.get_by_role("link", name="diff_report.xlsx").click()
    download.value.save_as(tmp_path / "diff_report.xlsx")
    book = openpyxl.load_workbook(tmp_path / "diff_report.xlsx")
    assert {"Summary", "Breaks"} <= set(book.sheetnames)
    book.close()
    assert [said["by"] for _, _, said in closing.trail("report.downloaded")] == ["anna"]

    page.get_by_role("button", name="Sign out").click()
    page.goto(f"/periods/{PERIOD}")
    assert "/sign-in" in page.url
    page.context.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_every_page_fits_the_screen(chromium: playwright.Browser, closing: Office, width: int) -> None:
    """Nothing but a table's own box scrolls sideways, and nothing is refused by the page's policy."""
    shots = os.environ.get("CLAWBILL_SCREENSHOTS")
    for scheme in ("light", "dark") if shots else ("light",):
        page = opened(chromium, closing, width, color_scheme=scheme)
        refused: list[str] = []
        page.on("console", lambda message, refused=refused: refused.append(message.text))
        for path in ["/sign-in", *PAGES, f"/invoices/{closing.draft}", f"/periods/{PERIOD}/tenant?id=nobody"]:
            page.goto(path)
            picture = page.screenshot(full_page=True)
            # As wide as all that there is to scroll to: the width stands in the PNG's header.
            assert int.from_bytes(picture[16:20], "big") == width, path
            if shots:
                name = path.strip("/").replace("/", "_").replace("?id=", "_").replace(str(closing.draft), "draft")
                Path(shots, f"{width}-{scheme}-{name}.png").write_bytes(picture)
        assert [text for text in refused if "404" not in text] == []
        page.context.close()
