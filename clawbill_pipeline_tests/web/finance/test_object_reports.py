"""Reports in object storage: made by a worker, downloaded from a web app on another machine."""

from __future__ import annotations

import httpx

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.object_store import Bucket
from clawbill_pipeline_tests.reconciliation.month import NOW, PERIOD, Month
from clawbill_pipeline_tests.reporting.conftest import month  # noqa: F401 -- the fixture
from clawbill_pipeline_tests.web.serving import served


def test_reports_of_one_machine_are_downloaded_from_another(
    month: Month,  # noqa: F811
    settings: Settings,
    bucket: Bucket,
) -> None:
    settings = settings.model_copy(update={"reports": f"{bucket.address}/reports"})
    made = {"period": PERIOD, "folder": settings.reports_root, "now": NOW, "run_id": "test"}
    first = render(month.ledger, month.catalog, **made)
    assert first.checks[0].passed
    assert [file.address for file in first.files] == [
        f"{bucket.address}/reports/{PERIOD}/{f.name}" for f in first.files
    ]
    puts = sum(asked.startswith("PUT") for asked in bucket.store.asked)
    assert render(month.ledger, month.catalog, **made).registered == 0
    assert sum(asked.startswith("PUT") for asked in bucket.store.asked) == puts  # what is as it should be is left alone
    with served(create_app(settings, Ledger(settings.need_database()), live=False)) as address:
        for file in first.files:
            answer = httpx.get(f"{address}/reports/{PERIOD}/{file.name}", trust_env=False)
            assert (answer.status_code, len(answer.content)) == (200, file.bytes)
        bucket.put(f"reports/{PERIOD}/waterfall.csv", b"changed")
        for name in ("waterfall.csv", "nothing.csv"):
            assert httpx.get(f"{address}/reports/{PERIOD}/{name}", trust_env=False).status_code == 404
    assert not (settings.state / "reports").exists()
