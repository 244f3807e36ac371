"""The capacity model against runs of the line at two sizes: rows and bytes, never time; and what it says binds."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clawbill_pipeline import capacity
from clawbill_pipeline.capacity import Load, constants, predict, seen
from clawbill_pipeline.cli import cli
from clawbill_pipeline.delivery.backends import V1_CALLS_PER_SECOND, MeterStream
from clawbill_pipeline.delivery.provisioning import MOST_ITEMS
from clawbill_pipeline.ledger.tables import metadata
from clawbill_pipeline_tests.benchmarks.constants import PAGE, with_outputs
from clawbill_pipeline_tests.benchmarks.line import HOUR, LAG, START, line

#: Tables of a handful of rows here: what is true of their bytes is true of whole pages only.
FEW = ("landings", "landed_hours", "metered_hours", "reconciliations")
#: How full pages are is chance, and PostgreSQL makes several at once: much of a small table, little of all of them.
OF_A_TABLE, PAGES, OF_ALL = 0.25, 16 * 8192, 0.15


@pytest.mark.parametrize(("tenants", "events", "hours", "closes"), [(25, 10_000, 2, 1), (100, 40_000, 2, 0)])
def test_a_run_leaves_behind_what_was_predicted(
    tenants: int, events: int, hours: int, closes: int, ledger_url: str, tmp_path: Path
) -> None:
    load = Load(events, tenants, services=6, hours=hours, closes=closes)
    predicted = predict(load)
    with line(tmp_path / "line", ledger_url, tenants, 6) as run:
        empty = run.bytes()
        run.provision()
        for hour in range(hours):
            run.bill(START + hour * HOUR, events)
            run.vacuum()
        run.compare(START + hours * HOUR + LAG)
        if closes:
            run.close()
            run.vacuum()
        rows, full = run.rows(), run.bytes()
        lake = {kind: run.lake_bytes(kind) for kind in predicted.lake}
    rows["reconciliations"] *= load.accounts  # the model counts what is in them
    rows["audit_trail"] -= 1 + 2 * load.services  # the product, meters and prices
    found = {name: size for name, size in predicted.tables.items() if size.rows and name in rows}
    assert {name: rows[name] for name in found} == {name: size.rows for name, size in found.items()}
    grown = {name: full[name] - empty[name] for name in found if name not in FEW}
    assert len(grown) >= 8
    for name, size in grown.items():
        assert size == pytest.approx(found[name].bytes, rel=OF_A_TABLE, abs=PAGES), name
    assert sum(grown.values()) == pytest.approx(sum(found[name].bytes for name in grown), rel=OF_ALL)
    for kind, size in lake.items():
        assert size == pytest.approx(predicted.lake[kind].bytes, rel=0.1), kind


def test_how_many_places_usage_falls_on() -> None:
    places, events = 1200, 1000
    chance = random.Random(8)
    found = [len({chance.randrange(places) for _ in range(events)}) for _ in range(200)]
    assert seen(places, events) == pytest.approx(sum(found) / len(found), rel=0.01)
    assert (seen(1, 5), seen(10, 1), seen(6_000_000, 10**9)) == (1, 1, 6_000_000)


def test_twice_the_tenants_leave_twice_the_rows_and_dimensions_make_no_more_records() -> None:
    one, two = (predict(Load(10**8, tenants, 6)) for tenants in (1_000, 2_000))
    for name in ("metered_usage", "rated_usage", "usage_records", "invoices", "usage_summaries"):
        assert two.tables[name].rows == 2 * one.tables[name].rows
    priced = predict(Load(10**8, 1_000, 6, dimensions=5))
    assert (priced.windows, priced.records) == (5 * one.windows, one.records)


def test_revisions_are_rows_that_are_rated_and_sent_again() -> None:
    plain, late = predict(Load(10**6, 100, 6)), predict(Load(10**6, 100, 6, revised=0.25))
    for name in ("metered_usage", "rated_usage", "usage_records"):
        assert late.tables[name].rows == 1.25 * plain.tables[name].rows
    assert late.seconds > plain.seconds
    assert late.lake == plain.lake


def test_a_million_tenants_are_more_than_single_calls_take_and_less_than_the_stream() -> None:
    load = Load(10**9, 10**6, 6)
    limits = {limit.name: limit for limit in predict(load).limits}
    # 6 million records an hour, of 3.6 million that 1,000 calls a second are; a hundred a call on the stream.
    assert limits["Stripe: v1 meter events"].share == pytest.approx(6_000_000 / 3_600_000, rel=1e-6)
    assert limits["Stripe: v1 meter events"].binds
    assert limits["Stripe: v2 stream"].share == pytest.approx(6_000_000 / 3_600 / 1_000_000, rel=1e-6)
    assert not limits["Stripe: v2 stream"].binds


def test_less_time_takes_more_workers() -> None:
    hour, quarter = (predict(Load(10**8, 10**6, 6, within=timedelta(minutes=m))) for m in (60, 15))
    assert hour.workers
    assert quarter.workers
    assert quarter.workers > hour.workers
    assert quarter.database_cores == pytest.approx(4 * hour.database_cores)


@pytest.mark.parametrize("minutes", [10, 20, 30, 60])
def test_workers_share_out_what_one_run_has_landed(minutes: int) -> None:
    predicted = predict(Load(10**9, 10**6, 6, within=timedelta(minutes=minutes)))
    landing, *shared = (stage.seconds for stage in predicted.hour)
    if predicted.workers is None:
        assert landing >= minutes * 60
        assert {limit.name for limit in predicted.binding} >= {"One worker: landing a source"}
        assert "no number of workers" in said(*LOAD, "--within", minutes)
        return
    assert landing + sum(shared) / predicted.workers <= minutes * 60
    assert predicted.workers == 1 or landing + sum(shared) / (predicted.workers - 1) > minutes * 60


def test_limits_and_tables_are_those_of_the_code() -> None:
    assert capacity.STRIPE_CALLS == V1_CALLS_PER_SECOND
    assert MeterStream("", absolute=True).most == capacity.STRIPE_STREAM_EVENTS
    assert capacity.STRIPE_ITEMS == MOST_ITEMS
    tables = predict(Load(1, 1, 1)).tables
    assert tables.keys() - {table.name for table in metadata.sorted_tables} == {"Dagster's own"}
    assert constants().row_bytes.keys() == tables.keys() - {"Dagster's own"}


@pytest.mark.parametrize("wrong", [{"tenants": 0}, {"revised": 2}, {"within": 2 * HOUR}])
def test_a_load_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Load(**{"events_per_hour": 1, "tenants": 1, "services": 1, **wrong})


@pytest.mark.parametrize("wrong", [("--revised", "nan"), ("--tenants", 0), ("--events-per-hour", 10**400)])
def test_a_number_that_cannot_be_is_told(wrong: tuple[object, ...]) -> None:
    result = CliRunner().invoke(cli, ["capacity", *map(str, LOAD), *map(str, wrong)])
    assert result.exit_code == 2
    assert str(wrong[0]).removeprefix("--") in result.stderr


def said(*options: object) -> str:
    result = CliRunner().invoke(cli, ["capacity", *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


LOAD = ("--events-per-hour", 10**9, "--tenants", 10**6, "--services", 6)


def test_the_command_says_what_the_model_does() -> None:
    document = json.loads(said(*LOAD, "--json"))
    predicted = predict(Load(10**9, 10**6, 6))
    assert document["workers"] == predicted.workers
    assert document["tables"]["rated_usage"] == {
        "rows": predicted.tables["rated_usage"].rows,
        "bytes": predicted.tables["rated_usage"].bytes,
    }
    assert [limit["name"] for limit in document["limits"] if limit["binds"]] == [
        limit.name for limit in predicted.limits if limit.binds
    ]
    shown = said(*LOAD)
    assert "6,000,000 usage records" in shown
    assert "Stripe: v1 meter events" in shown.partition("What binds:")[2]
    assert "Stripe: v1 meter events" not in said(*LOAD, "--stream").partition("What binds:")[2]


def test_the_page_on_scale_shows_what_is_predicted_now() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("```bash\nclawbill capacity ") == 2
    assert with_outputs(page) == page
