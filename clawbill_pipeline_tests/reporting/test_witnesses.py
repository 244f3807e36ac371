"""The sixth column: what a gateway says itself, beside what was metered, with the reason; it moves nothing else."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import openpyxl

from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline.reporting.day import render_day
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline_tests.reconciliation.month import END, NOW, PERIOD, Month, hour

WHY = "the gateway counts 3 usage lines that forks copied (250) again"


def witness(month: Month, starts, length: timedelta, quantity: int, counted: int, forked: int = 0) -> None:
    month.run(
        "INSERT INTO usage_witnesses (source, uri, tenant_id, service, starts, ends, quantity, cost, said_at, read_at)"
        " VALUES ('fleet', 'usage.cost_globex.json', 'globex', 'tokens', :starts, :ends, :quantity, 1.25, :end, :end)",
        starts=starts, ends=starts + length, quantity=quantity, end=END,
    )  # fmt: skip
    if counted:
        month.run(
            "INSERT INTO witnessed_usage VALUES (:starts, 'fleet', 'globex', 'tokens', 1, :counted, 1, :copies,"
            " :forked, 0, 0, :end, 'run')",
            starts=starts, counted=counted, copies=3 if forked else 0, forked=forked, end=END,
        )  # fmt: skip


def made(month: Month, folder: Path) -> dict[str, bytes]:
    render(month.ledger, month.catalog, period=PERIOD, folder=folder, now=NOW, run_id="test")
    render_day(month.ledger, day=hour(13).date(), folder=folder, now=NOW)
    return {path.name: path.read_bytes() for path in (folder / PERIOD).iterdir()}


def rows(files: dict[str, bytes], name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[name].decode())))


def test_reports_show_witnesses_and_why_they_differ(month: Month, tmp_path: Path) -> None:
    without = made(month, tmp_path / "without")
    assert "witnesses.csv" not in without
    assert {row["witness_quantity"] for row in rows(without, "waterfall.csv")} == {""}
    day = hour(13).replace(hour=0)
    witness(month, day, timedelta(days=1), 100_750, 0)
    witness(month, hour(13), timedelta(hours=1), 100_750, 100_500, 250)
    witness(month, day + timedelta(days=1), timedelta(days=1), 7, 7)
    witness(month, END, timedelta(days=1), 1_000_000, 0)  # of the next period
    files = made(month, tmp_path / "with")
    (step,) = [row for row in rows(files, "waterfall.csv") if row["witness_quantity"]]
    assert (step["tenant_id"], step["service"], step["witness_quantity"]) == ("globex", "tokens", "100757")
    told = rows(files, "witnesses.csv")
    assert [(row["said_quantity"], row["counted_quantity"], row["difference"], row["why"]) for row in told] == [
        ("100750", "100500", "250", WHY),
        ("7", "7", "0", "agrees"),
    ]
    assert WHY in files["diff_report.html"].decode()
    book = openpyxl.load_workbook(io.BytesIO(files["diff_report.xlsx"]))
    sheet = list(book["Witnesses"].values)
    assert [row[8] for row in sheet[1:]] == [WHY, "agrees"]
    # By the hour in the day's report, and the day as a whole on a sheet of its own.
    (told_hour,) = [row for row in rows(files, f"hours_{day.date()}.csv") if row["witness_quantity"]]
    assert (told_hour["hour"], Decimal(told_hour["witness_quantity"])) == (f"{hour(13):%Y-%m-%dT%H:%M:%SZ}", 100_750)
    book = openpyxl.load_workbook(io.BytesIO(files[f"diff_report_{day.date()}.xlsx"]))
    assert [row[8] for row in list(book["Witnesses"].values)[1:]] == [WHY]
    assert made(month, tmp_path / "with") == files


def test_no_break_comes_of_a_witness(month: Month) -> None:
    before = month.run("SELECT * FROM breaks ORDER BY id")
    witness(month, hour(13).replace(hour=0), timedelta(days=1), 999_999, 0)
    result = reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="again")
    assert (result.changes.opened, result.changes.closed) == (0, 0)
    assert month.run("SELECT * FROM breaks ORDER BY id") == before
