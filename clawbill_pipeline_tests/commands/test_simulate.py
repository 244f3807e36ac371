"""`clawbill simulate` and the job ``price_simulation`` over a ledger with revisions: what they say, and what not do."""

from __future__ import annotations

import csv
import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import openpyxl
import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import load
from clawbill_pipeline.cli import cli
from clawbill_pipeline.definitions import build_definitions
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import SCHEMA
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating import history
from clawbill_pipeline.rating.history import compare
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline_tests.benchmarks.rating import TOKEN, serving

CATALOG = """
start: 2026-01-01T00:00:00Z
services:
  requests: {unit: request}
  storage: {unit: GB-hour, basis: period_to_date}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          requests: {model: per_unit, unit_amount: "0.5"}
          storage: {model: graduated, tiers: [{up_to: 10, unit_amount: 1}, {unit_amount: "0.5"}]}
tenants:
  acme: {rate_card: standard}
  globex: {rate_card: standard, time_zone: America/New_York}
  initech: {rate_card: standard, prices: {requests: {model: per_unit, unit_amount: 2}}}
"""
#: Requests 20 % dearer, storage 10 % cheaper in its first tier.
CANDIDATE = CATALOG.replace('unit_amount: "0.5"}\n          storage', 'unit_amount: "0.6"}\n          storage').replace(
    "{up_to: 10, unit_amount: 1}", '{up_to: 10, unit_amount: "0.9"}'
)
FEBRUARY, MARCH = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
#: tenant, service, moment, revision, quantity
USAGE = [
    ("acme", "requests", FEBRUARY, 1, "90"),
    ("acme", "requests", FEBRUARY, 2, "100"),
    ("acme", "storage", FEBRUARY - timedelta(hours=1), 1, "99"),
    ("acme", "storage", FEBRUARY, 1, "8"),
    ("acme", "storage", FEBRUARY + timedelta(days=20), 1, "8"),
    ("globex", "storage", FEBRUARY + timedelta(days=20), 1, "10"),
    # 03:00 UTC on 1 March is still February in New York.
    ("globex", "storage", MARCH + timedelta(hours=3), 1, "10"),
    ("initech", "requests", FEBRUARY, 1, "7"),
    ("nobody", "requests", FEBRUARY, 1, "3"),
]


@pytest.fixture
def ledger(ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A ledger with ``USAGE`` in it, and an environment that knows it and neither OpenClaw nor Stripe."""
    for name, content in (("catalog.yaml", CATALOG), ("new.yaml", CANDIDATE)):
        (tmp_path / name).write_text(content)
    for name in ("OPENCLAW_URL", "OPENCLAW_TOKEN", "STRIPE_API_KEY", "STRIPE_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLAWBILL_STATE", str(tmp_path))
    monkeypatch.setenv("CLAWBILL_CATALOG", str(tmp_path / "catalog.yaml"))
    monkeypatch.setenv("CLAWBILL_DATABASE_URL", ledger_url)
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(ledger_url)
    ledger.ensure_partitions([FEBRUARY - timedelta(days=1), FEBRUARY, MARCH])
    with ledger.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity,"
                " events, reason, metered_at, run_id) VALUES (:at, :tenant, :service, '', :at, :revision, :quantity, 1,"
                " CASE WHEN :revision = 1 THEN 'first' ELSE 'corrected' END, :at, 'r')"
            ),
            [dict(zip(("tenant", "service", "at", "revision", "quantity"), row, strict=True)) for row in USAGE],
        )
    yield ledger
    ledger.dispose()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python opens no connection; PostgreSQL's own library, which is not Python, still does."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def simulate(*arguments: str, start: str = "2026-02-01", end: str = "2026-03-01") -> Result:
    return CliRunner().invoke(
        cli, ["simulate", "--catalog", "new.yaml", "--from", start, "--to", end, *arguments], catch_exceptions=False
    )


def fingerprint(ledger: Ledger) -> dict[str, tuple[int, str]]:
    """Rows and a digest of every table in the ledger's database, and of its sequences."""
    with ledger.transaction() as connection:
        tables = connection.execute(
            text("SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'")
        ).all()
        found: dict[str, tuple[int, str]] = {
            table: tuple(  # type: ignore[misc]
                connection.execute(
                    text(
                        "SELECT count(*), md5(coalesce(string_agg(t::text, ',' ORDER BY t::text), ''))"
                        f' FROM "{schema}"."{table}" t'
                    )
                ).one()
            )
            for schema, table in tables
        }
        for name, value in connection.execute(text("SELECT sequencename, coalesce(last_value, 0) FROM pg_sequences")):
            found[name] = (value, "")
    assert found["metered_usage"][0] == len(USAGE)
    return found


@pytest.mark.usefixtures("offline")
def test_it_writes_nothing_and_calls_nobody(ledger: Ledger, tmp_path: Path) -> None:
    before = fingerprint(ledger)
    result = simulate("--csv", "out.csv", "--xlsx", "out.xlsx", "--html", "out.html", "--threshold", "5")
    assert result.exit_code == 1, result.output
    assert fingerprint(ledger) == before
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"catalog.yaml", "new.yaml", "out.csv", "out.xlsx", "out.html"}


def test_the_database_itself_refuses_it_a_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "clawbill_pipeline.rating.history._HISTORY",
        f"DELETE FROM {SCHEMA}.metered_usage RETURNING tenant_id",
    )
    catalog = load("catalog.yaml")
    with pytest.raises(Exception, match="read-only transaction"):
        compare(ledger, catalog, catalog, start=FEBRUARY, end=MARCH)


@pytest.mark.usefixtures("ledger", "offline")
def test_who_pays_more_and_who_less() -> None:
    result = simulate("--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["revenue"] == [
        {
            "currency": "USD", "current": "87", "candidate": "95", "change": "8", "percent": "9.2",
            "up": "9", "down": "-1", "tenants": 3, "tenants_up": 1, "tenants_down": 1,
        }
    ]  # fmt: skip
    assert [(t["tenant_id"], t["current"], t["candidate"], t["change"], t["percent"]) for t in said["tenants"]] == [
        ("acme", "63", "72", "9", "14.29"),
        ("globex", "10", "9", "-1", "-10"),
        ("initech", "14", "14", "0", "0"),
    ]
    assert {(m["tenant_id"], m["service"]): (m["quantity"], m["change"]) for m in said["movements"]} == {
        ("acme", "requests"): ("100", "10"),
        ("acme", "storage"): ("16", "-1"),
        ("globex", "storage"): ("10", "-1"),
        ("initech", "requests"): ("7", "0"),
        ("nobody", "requests"): ("3", None),
    }
    assert said["in_neither_catalogue"] == ["nobody"]


@pytest.mark.usefixtures("ledger", "offline")
def test_periods_are_each_tenant_s_own() -> None:
    said = json.loads(simulate("--json", start="2026-03-01", end="2026-03-02").stdout)
    # The first ten units of New York's February are used up; without them, these would be the dearer ones.
    assert [(m["tenant_id"], m["current"], m["candidate"]) for m in said["movements"]] == [("globex", "5", "5")]


@pytest.mark.usefixtures("ledger", "offline")
@pytest.mark.parametrize(("threshold", "code", "says"), [
    ("14.3", 0, "Every bill stays within 14.3 %."),
    ("14.28", 1, "Beyond the threshold of 14.28 %: acme (14.29 %)"),
    ("9.99", 1, "Beyond the threshold of 9.99 %: acme (14.29 %), globex (-10 %)"),
])  # fmt: skip
def test_a_threshold_gates_a_change(threshold: str, code: int, says: str) -> None:
    result = simulate("--threshold", threshold)
    assert (result.exit_code, says in result.stdout) == (code, True), result.output


@pytest.mark.usefixtures("ledger", "offline")
def test_what_can_not_be_compared_never_passes_a_threshold() -> None:
    Path("new.yaml").write_text(CATALOG.replace("  globex: {", "  umbrella: {"))
    result = simulate("--threshold", "100")
    assert result.exit_code == 1
    assert "Not comparable in full: globex storage: candidate: no such tenant" in result.stdout
    assert simulate().exit_code == 0


@pytest.mark.usefixtures("ledger", "offline")
def test_the_table_shows_the_largest_movers_first() -> None:
    lines = simulate().stdout.splitlines()
    assert [line.split()[:4] for line in lines if line.startswith(("acme", "globex", "initech"))] == [
        ["acme", "all", "USD", "63"],
        ["acme", "requests", "USD", "50"],
        ["acme", "storage", "USD", "13"],
        ["globex", "all", "USD", "10"],
        ["globex", "storage", "USD", "10"],
    ]
    assert "In neither catalogue: nobody" in lines


@pytest.mark.usefixtures("ledger", "offline")
def test_a_version_that_comes_later_needs_as_of() -> None:
    version = CANDIDATE[CANDIDATE.index("      - effective_from") : CANDIDATE.index("tenants:")]
    later = CATALOG.replace("tenants:\n", version.replace("2026-01-01", "2027-01-01") + "tenants:\n")
    Path("new.yaml").write_text(later)
    said = simulate("--threshold", "1")
    assert said.exit_code == 0
    assert "Rate card standard changes on 2027-01-01T00:00:00Z, after this usage" in said.stdout
    assert "No bill changes." in said.stdout
    assert json.loads(simulate("--as-of", "2027-01-01", "--json").stdout)["revenue"][0]["change"] == "8"


@pytest.mark.usefixtures("ledger", "offline")
def test_the_files_say_the_same() -> None:
    simulate("--csv", "out.csv", "--xlsx", "out.xlsx", "--html", "out.html")
    rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text())))
    assert [(row["tenant_id"], row["service"], row["change"]) for row in rows] == [
        ("acme", "requests", "10"),
        ("acme", "storage", "-1"),
        ("globex", "storage", "-1"),
        ("initech", "requests", "0"),
        ("nobody", "requests", ""),
    ]
    book = openpyxl.load_workbook("out.xlsx")
    assert [[cell.value for cell in row] for row in book["Tenants"].iter_rows(max_row=2)] == [
        ["Tenant", "Currency", "Current", "Candidate", "Change", "Change in %"],
        ["acme", "USD", 63, 72, 9, 14.29],
    ]
    assert book["Tenants and services"].max_row == 6
    assert book["Revenue"]["B2"].value.startswith("=SUMIFS(")
    assert [cell.value for cell in openpyxl.load_workbook("out.xlsx", data_only=True)["Revenue"][2]] == [
        "USD", 87, 95, 8, 9.2, 9, -1, 3, 1, 1,
    ]  # fmt: skip
    page = Path("out.html").read_text()
    assert "<svg" in page
    assert "Revenue changes from 87 USD to 95 USD, by 8 USD (9.2 %): up 9 USD, down -1 USD." in page
    places = [page.index(f">{name}<") for name in ("acme", "globex", "Change of revenue")]
    assert places == sorted(places)
    assert "<script" not in page
    first = [Path(name).read_bytes() for name in ("out.csv", "out.xlsx", "out.html")]
    simulate("--csv", "out.csv", "--xlsx", "out.xlsx", "--html", "out.html")
    assert [Path(name).read_bytes() for name in ("out.csv", "out.xlsx", "out.html")] == first


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "2026-02-01", "--to", "2026-02-01"], "--to must be later than --from"),
        (["--from", "soon", "--to", "2026-02-01"], "'soon' is no time; write 2026-01-01"),
        (["--from", "2026-02-01T05:00", "--to", "2026-02-02"], "has no time zone; write for example 2026-02-01T05:00Z"),
        (["--from", "2026-02-01", "--to", "2026-02-02", "--threshold", "-1"], "is negative"),
        (["--from", "2026-02-01", "--to", "2026-02-02", "--threshold", "few"], "'few' is not a number"),
        (
            ["--from", "2026-02-01", "--to", "2026-02-02", "--csv", "no/out.csv"],
            "no/out.csv: can't be written: No such",
        ),
    ],
)
def test_bad_options_are_said(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, ["simulate", "--catalog", "new.yaml", *arguments])
    assert result.exit_code != 0
    assert says in result.stderr


def test_the_dagster_job_shows_the_tables_and_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    before = fingerprint(ledger)
    job = build_definitions().resolve_job_def("price_simulation")
    config = {"catalog": str(tmp_path / "new.yaml"), "start": "2026-02-01", "end": "2026-03-01"}
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(run_config={"ops": {"simulate_prices": {"config": config}}}, instance=instance)
    assert done.success
    (metadata,) = [event.step_output_data.metadata for event in done.all_events if event.is_successful_output]
    shown: dict[str, Any] = {name: value.value for name, value in metadata.items()}
    assert [dict(record.data) for record in metadata["revenue"].records] == [  # type: ignore[attr-defined]
        {
            "currency": "USD", "current": "87", "candidate": "95", "change": "8", "percent": "9.2",
            "up": "9", "down": "-1", "tenants": 3, "tenants_up": 1, "tenants_down": 1,
        }
    ]  # fmt: skip
    assert len(metadata["tenants_and_services"].records) == 5  # type: ignore[attr-defined]
    assert shown["in_neither_catalogue"] == "nobody"
    assert fingerprint(ledger) == before


@pytest.mark.usefixtures("ledger")
def test_the_memory_limit_of_the_settings_is_that_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[str] = []
    opened = history.duck

    @contextmanager
    def noted(**given: Any) -> Iterator[Any]:
        with opened(**given) as db:
            limits.append(db.sql("SELECT current_setting('memory_limit')").fetchall()[0][0])
            yield db

    monkeypatch.setattr(history, "duck", noted)
    monkeypatch.setenv("CLAWBILL_MEMORY_LIMIT", "100MB")
    assert json.loads(simulate("--json").stdout)["revenue"][0]["change"] == "8"
    job = build_definitions().resolve_job_def("price_simulation")
    config = {"catalog": str(tmp_path / "new.yaml"), "start": "2026-02-01", "end": "2026-03-01"}
    with dg.DagsterInstance.ephemeral() as instance:
        job.execute_in_process(run_config={"ops": {"simulate_prices": {"config": config}}}, instance=instance)
    assert limits == ["95.3 MiB", "95.3 MiB"]


def test_the_current_amounts_are_those_that_were_booked(ledger: Ledger, tmp_path: Path) -> None:
    odd = CATALOG.replace('unit_amount: "0.5"}\n', "unit_amount: 1, per: 7}\n", 1).replace(
        "unit_amount: 1}", "unit_amount: 1, flat_amount: 3}"
    )
    Path("catalog.yaml").write_text(odd)
    catalog = load("catalog.yaml")
    last = max(at for _, _, at, _, _ in USAGE) + timedelta(hours=1)
    with serving(tmp_path, workers=1) as server:
        openclaw = OpenClaw(server.url, SecretStr(TOKEN))
        rate(ledger, catalog, openclaw, start=FEBRUARY - timedelta(hours=1), end=last, now=last, run_id="r")
    with ledger.transaction() as connection:
        booked = connection.execute(
            text("SELECT tenant_id, service, sum(amount) FROM rated_usage WHERE hour >= :start GROUP BY 1, 2"),
            {"start": FEBRUARY},
        ).all()
    found = compare(ledger, catalog, catalog, start=FEBRUARY, end=last)
    amounts = {(tenant, service): amount for tenant, service, amount in booked}
    assert amounts["acme", "requests"] == Decimal("14.285714285714")
    assert {(m.tenant_id, m.service): m.current_amount for m in found.movements if m.current} == amounts


def test_a_period_without_usage_costs_what_is_due_all_the_same(ledger: Ledger) -> None:
    """Metering writes a zero for it when the period has ended."""
    with ledger.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity,"
                " events, reason, metered_at, run_id) VALUES (:at, 'initech', 'storage', '', :at, 1, 0, 0, 'first',"
                " :at, 'r')"
            ),
            {"at": MARCH - timedelta(hours=1)},
        )
    Path("new.yaml").write_text(
        CATALOG.replace("storage: {model: graduated,", "storage: {model: graduated, minimum: 5,")
    )
    found = compare(ledger, load("catalog.yaml"), load("new.yaml"), start=FEBRUARY, end=MARCH)
    changes = {(m.tenant_id, m.service): m.change for m in found.movements}
    assert changes["initech", "storage"] == 5
    assert changes["acme", "storage"] == 0


def test_amounts_are_exact_where_floats_are_not(ledger: Ledger) -> None:
    Path("new.yaml").write_text(CATALOG.replace('unit_amount: "0.5"}\n', 'unit_amount: "0.500000000001"}\n', 1))
    catalogs = load("catalog.yaml"), load("new.yaml")
    found = compare(ledger, *catalogs, start=FEBRUARY, end=MARCH)
    assert found.revenue[0].change == Decimal("0.0000000001")
