"""Usage in a table of any database: continued with an overlap, exact, and without the password in any message."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import BigInteger, Column, DateTime, MetaData, Numeric, Table, Text, create_engine, insert, text

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.usage.quarantine import entries
from clawbill_pipeline.usage.replay import replay
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue, quantities

SOURCE = {
    "name": "spend",
    "kind": "sql_table",
    "url_env": "SPEND_URL",
    "table": "spend_logs",
    "order_by": "id",
    "overlap": 2,
    "mapping": {
        "event_id": "id",
        "tenant_id": "team",
        "timestamp": "at",
        "usage": [{"service": {"constant": "api.calls"}, "quantity": "calls"}],
    },
}


@pytest.fixture(params=["sqlite", "postgresql"])
def spend(request, place, monkeypatch):
    url = f"sqlite:///{place.folder}/spend.db" if request.param == "sqlite" else request.getfixturevalue("database_url")
    monkeypatch.setenv("SPEND_URL", url)
    engine = create_engine(url)
    table = Table(
        "spend_logs",
        MetaData(),
        Column("id", BigInteger, primary_key=True),
        Column("team", Text),
        Column("at", DateTime(timezone=True)),
        # SQLite has no exact decimals of its own: text keeps them.
        Column("calls", Text if request.param == "sqlite" else Numeric(38, 12)),
    )
    table.create(engine)

    def add(*rows):
        with engine.begin() as connection:
            at = datetime.fromisoformat("2026-11-22T10:15:00+00:00")
            connection.execute(
                insert(table),
                [{"id": i, "team": "acme", "at": at + timedelta(minutes=i), "calls": calls} for i, calls in rows],
            )

    def mend(statement):
        with engine.begin() as connection:
            connection.execute(text(statement))

    add.mend = mend
    yield add
    engine.dispose()


@pytest.mark.parametrize("order_by", ["id", "at"])
def test_rows_land_once_and_late_commits_are_found(place, spend, order_by):
    place.sources = ({**SOURCE, "order_by": order_by, "overlap": 2 if order_by == "id" else 120},)
    long = "123456789012345678.123456789012"
    spend((1, "1.5"), (2, long), (4, "4"))
    assert place.land().events == 3
    assert place.land().landings <= 1
    assert place.land().landings == 0
    spend((3, "3"), (5, "0"), (6, "-6"))
    place.land()
    assert quantities(place.events()) == {"1": Decimal("1.5"), "2": Decimal(long), "3": 3, "4": 4}
    assert [row["reason"] for row in place.quarantine()] == ["negative"]


@pytest.mark.parametrize("order_by", ["id", "at"])
def test_a_row_in_quarantine_keeps_its_place_and_is_replayed_once_it_is_mended(place, spend, order_by):
    place.sources = ({**SOURCE, "order_by": order_by, "overlap": 3600},)
    spend((1, "1"), (2, "-2"), (3, "3"))
    place.land()
    spend((4, "4"))
    place.land()  # reads the rows of the overlap again
    (one,) = entries(place.ledger)
    at = 1795342500_000000 + 2 * 60_000_000
    assert one.place == f"line {2 if order_by == 'id' else at}, byte 0"
    catalog = catalogue(*place.sources, folder=place.folder)

    def replayed():
        (done,) = replay(catalog, place.lake, place.ledger, [one.id], now=NOW, run_id="replay")
        return done.landed, done.said

    assert replayed() == (
        False,
        "negative: -2 is negative, and the service takes no usage back; send zero or more, or set allow_negative in "
        "the catalogue",
    )
    spend.mend("UPDATE spend_logs SET calls = '2' WHERE id = 2")
    assert replayed() == (True, "landed")
    assert quantities(place.events())["2"] == 2
    spend.mend("DELETE FROM spend_logs WHERE id = 2")
    assert replayed()[0] is False


def test_a_database_that_is_away_is_said_without_its_password(place, monkeypatch):
    place.sources = (SOURCE,)
    for url in ("", "postgresql://me:hunter2@127.0.0.1:1/none", "nonsense", "nosuchdb://me:hunter2@x/y", "sqlite://"):
        monkeypatch.setenv("SPEND_URL", url)
        landed = place.land()
        assert len(landed.problems) == 1
        assert "SPEND_URL" in landed.problems[0] or "spend_logs" in landed.problems[0]
        assert "hunter2" not in str(landed)


def test_a_database_that_is_broken_is_said_whatever_it_says_itself(place, monkeypatch):
    file = place.folder / "spend.db"
    monkeypatch.setenv("SPEND_URL", f"sqlite:///{file}")
    place.sources = (SOURCE,)
    with create_engine(f"sqlite:///{file}").begin() as connection:
        connection.execute(text("CREATE TABLE spend_logs (id INTEGER PRIMARY KEY)"))
    # SQLite quotes the broken text in its complaint.
    file.write_bytes(file.read_bytes().replace(b"CREATE TABLE spend_logs (id", b"CREATE TABLE spend_logs \x80id"))
    (problem,) = place.land().problems
    assert "table spend_logs can't be read" in problem


def test_a_table_needs_an_event_id():
    mapping = {name: value for name, value in SOURCE["mapping"].items() if name != "event_id"}
    with pytest.raises(CatalogError, match="event_id must name a column"):
        catalogue({**SOURCE, "mapping": mapping})


def test_a_table_without_a_row_is_no_problem(place, spend):
    place.sources = (SOURCE,)
    assert place.land().problems == ()


def test_rows_that_have_no_place_in_the_order_are_told(place, spend):
    place.sources = ({**SOURCE, "order_by": "at"},)
    spend((1, "1"), (2, "2"))
    spend.mend("UPDATE spend_logs SET at = NULL WHERE id = 2")
    landed = place.land()
    assert (landed.events, len(landed.problems)) == (1, 1)
    assert "1 rows of table spend_logs have no 'at', and were not read" in landed.problems[0]
    assert [row["reason"] for row in place.quarantine()] == ["no_order"]
    assert len(place.land().problems) == 1, "and told again as long as it is so"
    assert len(place.quarantine()) == 1
    spend.mend("UPDATE spend_logs SET at = (SELECT at FROM spend_logs WHERE id = 1) WHERE id = 2")
    assert (place.land().problems, sorted(quantities(place.events()))) == ((), ["1", "2"])
