"""Whatever adds up the rows of an archived month says so instead, and names the command that puts them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from clawbill_pipeline.cli import cli
from clawbill_pipeline.ledger.archive import ArchiveError, archive_month
from clawbill_pipeline.ledger.waterfall import waterfall
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.history import compare
from clawbill_pipeline.rating.rerating import rerate
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reconciliation.summaries import read_summaries
from clawbill_pipeline.reporting.day import render_day
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.reconciliation.month import CATALOG, END, PERIOD, Month, small

LATER = END + timedelta(days=36)
#: Nobody listens there: what is archived is found out before anybody is asked.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    month = small(Month.at(ledger_url, tmp_path))
    month.clean()
    reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=LATER, run_id="test")
    archive_month(month.ledger, month.lake, date(2026, 10, 1), now=LATER, by="me")
    yield month
    month.ledger.dispose()


def shown(month: Month, folder: Path) -> Any:
    with month.ledger.transaction() as connection:
        return waterfall(connection, month.catalog, PERIOD)


def reconciled(month: Month, folder: Path) -> Any:
    return reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=LATER, run_id="r")


def read_back(month: Month, folder: Path) -> Any:
    api = StripeApi(SecretStr("sk_test_x"), base=NOWHERE)
    return read_summaries(month.ledger, month.catalog, api, period=PERIOD, now=LATER, run_id="r")


def reported(month: Month, folder: Path) -> Any:
    return render(month.ledger, month.catalog, period=PERIOD, folder=folder, now=LATER, run_id="r")


def reported_day(month: Month, folder: Path) -> Any:
    return render_day(month.ledger, day=date(2026, 10, 1), folder=folder, now=LATER)


def simulated(month: Month, folder: Path) -> Any:
    day = datetime.fromisoformat("2026-10-30T00:00:00Z")
    return compare(month.ledger, month.catalog, month.catalog, start=day, end=LATER)


def rerated(month: Month, folder: Path) -> Any:
    given: Any = {"period": PERIOD, "why": "mispriced", "by": "ann", "now": LATER, "run_id": "r"}
    return rerate(month.ledger, month.catalog, OpenClaw(NOWHERE, SecretStr("x"), timeout=1), **given)


@pytest.mark.parametrize(
    "does", [shown, reconciled, read_back, reported, reported_day, simulated, rerated], ids=lambda does: does.__name__
)
def test_sums_are_refused(does: Callable[[Month, Path], Any], month: Month, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="clawbill archive restore 2026-10"):
        does(month, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_periods_that_begin_in_it_are_named_and_all_others_shown(month: Month, ledger_url: str, tmp_path: Path) -> None:
    later = {"2026-11": ("osaka", timedelta(days=5)), "2027-01": ("acme", timedelta(days=65))}
    month.usage = {(tenant, "tokens", END + after): Decimal(7) for tenant, after in later.values()}
    month.ledger.ensure_partitions([END + after for _, after in later.values()])
    month.meter()
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    env = {"CLAWBILL_DATABASE_URL": ledger_url, "CLAWBILL_CATALOG": str(tmp_path / "catalog.yaml")}
    said = CliRunner().invoke(cli, ["waterfall"], env=env, catch_exceptions=False)
    assert said.exit_code == 0
    assert [line for line in said.stdout.splitlines() if line.startswith("Billing")] == ["Billing period 2027-01"]
    # November in Tokyo begins on 31 October.
    assert "Billing period 2026-11: 2026-10 is archived, and this needs its rows" in said.stderr
    assert CliRunner().invoke(cli, ["waterfall", "--period", "2026-11"], env=env).exit_code != 0
