"""OpenClaw cells: the real ones against their truth, and the traps that were seen in others."""

import csv
import json
import shutil
import sqlite3
from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
import zstandard

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.usage.openclaw import Transcript
from clawbill_pipeline.usage.quarantine import entries
from clawbill_pipeline.usage.replay import replay
from clawbill_pipeline_tests.usage.conftest import NOW, Place, catalogue

FLEET = Path(__file__).parents[3] / "shared" / "data" / "openclaw_fleet"
real = pytest.mark.skipif(not FLEET.is_dir(), reason=f"the real cells are not at {FLEET}")

SCHEMA = """
CREATE TABLE session_windows (session_id TEXT NOT NULL PRIMARY KEY, session_key TEXT NOT NULL);
CREATE TABLE transcript_events (session_id TEXT NOT NULL, seq INTEGER NOT NULL, event_json TEXT{packed},
    created_at INTEGER NOT NULL, PRIMARY KEY (session_id, seq));
CREATE TABLE session_transcript_archives (session_id TEXT NOT NULL, encoding TEXT NOT NULL, archive_blob BLOB NOT NULL,
    archive_name TEXT NOT NULL UNIQUE);
"""


@pytest.fixture
def fleet(place: Place) -> Place:
    place.sources = ({"name": "fleet", "kind": "openclaw_fleet", "path": "cells"},)
    (place.folder / "cells").mkdir()
    return place


def agent(place: Place, tenant: str = "globex", name: str = "main") -> Path:
    folder = place.folder / "cells" / tenant / "agents" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def database(folder: Path, *, packed: bool = True, wal: bool = False) -> sqlite3.Connection:
    (folder / "agent").mkdir()
    db = sqlite3.connect(folder / "agent" / "openclaw-agent.sqlite", isolation_level=None)
    if wal:
        db.execute("PRAGMA journal_mode = WAL")
    db.executescript(SCHEMA.format(packed=", event_zstd BLOB" if packed else ""))
    return db


def message(number: int, **changes) -> dict:
    usage = {"input": 10 + number, "output": 5, "cacheRead": 0, "cacheWrite": 0, "totalTokens": 15 + number}
    return {
        "type": "message",
        "id": f"{number:08x}-0000-4000-8000-000000000000",
        "timestamp": f"2026-11-22T06:{number % 60:02}:00.140Z",
        "message": {
            "role": "assistant",
            "content": [{"type": "text", "text": "private words"}],
            "provider": "mockai",
            "model": "mock-small",
            "usage": {**usage, "cost": {"total": 0.0001483}},
            **changes,
        },
    }


def put(db: sqlite3.Connection, session: str, seq: int, event: dict, *, packed: bool = False) -> None:
    said = json.dumps(event)
    columns, value = ("event_json", said) if not packed else ("event_zstd", zstandard.compress(said.encode()))
    db.execute(
        f"INSERT INTO transcript_events (session_id, seq, created_at, {columns}) VALUES (?, ?, ?, ?)",
        (session, seq, 1_795_330_000_000 + seq, value),
    )


def tokens(place: Place) -> dict[str, Decimal]:
    """Tokens a tenant, each event counted once, as metering does."""
    first: dict[tuple[str, str], dict] = {}
    for event in place.events():
        seen = first.setdefault((event["tenant_id"], event["event_id"]), event)
        assert (seen["quantity"], seen["event_time"]) == (event["quantity"], event["event_time"])
    total: Counter[str] = Counter()
    for event in first.values():
        if event["service"] != "messages":
            total[event["tenant_id"]] += event["quantity"]
    return dict(total)


# --- the real cells ------------------------------------------------------------------------------------------------


@real
def test_the_real_cells_give_exactly_the_expected_usage(fleet):
    fleet.sources = ({"name": "fleet", "kind": "openclaw_fleet", "path": str(FLEET / "cells")},)
    landed = fleet.land()
    assert (landed.quarantined, landed.problems) == (0, ())
    assert tokens(fleet) == {"globex": 26936, "initech": 6424, "legacyco": 9263}
    found = {}
    for event in fleet.events():
        found[event["tenant_id"], event["event_id"]] = (
            event["quantity"],
            event["dimensions"],
            event["event_time"].isoformat(timespec="milliseconds"),
        )
    expected = {}
    with (FLEET / "expected_usage_events.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            time = row["timestamp"].replace("Z", "+00:00")
            event_id = row["event_id"]
            if len(event_id) < 32:
                event_id += f"@{row['timestamp'][:-1]}000Z"
            quantities = {f"tokens.{kind}": row[kind] for kind in ("input", "output", "cache_read", "cache_write")}
            for service, quantity in {**quantities, "messages": "1"}.items():
                if int(quantity):
                    dimensions = "" if service == "messages" else f"{row['provider']}/{row['model']}"
                    key = row["tenant"], f"{row['agent']}/{event_id}#{service}"
                    expected[key] = (Decimal(quantity), dimensions, time)
    assert found == expected
    assert fleet.land().landings == 0


@real
@pytest.mark.parametrize("tenant", ["globex", "initech"])
def test_the_real_cells_agree_with_what_the_model_provider_served(fleet, tenant):
    fleet.sources = ({"name": "fleet", "kind": "openclaw_fleet", "path": str(FLEET / "cells")},)
    fleet.land()
    served = map(json.loads, (FLEET / "truth" / f"mock_llm_calls_{tenant}.jsonl").read_text().splitlines())
    assert tokens(fleet)[tenant] == sum(call["total_tokens"] for call in served)


@real
def test_reading_leaves_the_cells_as_they_are(fleet):
    cells = fleet.folder / "cells"
    shutil.copytree(FLEET / "cells", cells, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in cells.rglob("*") if path.is_file()}
    fleet.land()
    assert {path: path.read_bytes() for path in cells.rglob("*") if path.is_file()} == before


# --- traps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_databases_of_every_schema(fleet, packed):
    with database(agent(fleet), packed=packed) as db:
        for seq in range(4):
            put(db, "s1", seq, message(seq), packed=packed and seq % 2 == 0)
    fleet.land()
    assert tokens(fleet) == {"globex": 4 * 15 + 6}


def test_forks_and_archives_are_the_same_events(fleet):
    folder = agent(fleet)
    lines = "".join(json.dumps(message(seq)) + "\n" for seq in range(3))
    with database(folder) as db:
        for session in ("original", "fork"):
            for seq in range(3):
                put(db, session, seq, message(seq))
        put(db, "fork", 3, message(3))
        blob = zstandard.compress(lines.encode())
        db.execute(
            "INSERT INTO session_transcript_archives VALUES ('old', 'zstd', ?, 'old.jsonl.deleted.1.g.zst')", (blob,)
        )
        more = json.dumps(message(4)) + "\n"
        db.execute(
            "INSERT INTO session_transcript_archives VALUES ('own', 'identity', ?, 'own.jsonl.reset.1')",
            (more.encode(),),
        )
    (folder / "sessions").mkdir()
    (folder / "sessions" / "old.jsonl.deleted.1.g.zst").write_bytes(blob)
    (folder / "sessions" / "old.trajectory.jsonl").write_text(lines)
    (folder / "session-sqlite-import-archive").mkdir()
    (folder / "session-sqlite-import-archive" / "k.s.jsonl.imported-1").write_text(lines)
    landed = fleet.land()
    assert landed.quarantined == 0
    assert tokens(fleet) == {"globex": 5 * 15 + 10}
    assert sorted(row["uri"].removeprefix("globex/agents/main/") for row in fleet.rows("SELECT uri FROM landings")) == [
        "agent/openclaw-agent.sqlite",
        "session-sqlite-import-archive/k.s.jsonl.imported-1",
        "sessions/old.jsonl.deleted.1.g.zst",
        "sessions/own.jsonl.reset.1",
    ]
    # Once the archive is published, the file has the same uri and the same bytes: nothing is new.
    (folder / "sessions" / "own.jsonl.reset.1").write_text(more)
    assert fleet.land().landings == 0


def test_lines_of_before_sqlite_keep_their_identity_when_they_are_imported(fleet):
    folder = agent(fleet)
    short = {**message(1), "id": "595d2b32"}
    twin = {**message(2), "id": "595d2b32"}  # eight digits, unique in their session only
    (folder / "sessions").mkdir()
    (folder / "sessions" / "a.jsonl").write_text(json.dumps(short) + "\n")
    (folder / "sessions" / "b.jsonl").write_text(json.dumps(twin) + "\n")
    with database(folder) as db:
        put(db, "a", 0, short)
    fleet.land()
    assert len({event["event_id"] for event in fleet.events() if event["service"] == "messages"}) == 2
    assert tokens(fleet) == {"globex": 16 + 17}


def test_an_agent_is_its_own_space_of_ids(fleet):
    for name in ("main", "support"):
        with database(agent(fleet, name=name)) as db:
            put(db, "s", 0, message(0))
    fleet.land()
    assert tokens(fleet) == {"globex": 30}


def test_only_what_a_model_was_paid_for_is_usage():
    format = Transcript("globex", "main", ("messages",))

    def bears(**changes):
        return format.claims(json.loads(json.dumps(message(0, **changes)), parse_int=Decimal, parse_float=Decimal))

    assert bears()
    assert not bears(role="user")
    assert not bears(usage=None)
    assert not bears(api="openclaw-transcript")
    assert not bears(provider="openclaw", model="delivery-mirror")
    assert not bears(provider="openclaw", model="gateway-injected")
    assert bears(provider="other", model="delivery-mirror")
    assert not format.claims({"type": "session", "id": "x"})


def test_new_rows_are_continued_and_row_numbers_that_sqlite_gives_again_are_seen(fleet):
    with database(agent(fleet)) as db:
        for seq in range(10):
            put(db, "s1", seq, message(seq))
        fleet.land()
        put(db, "s1", 10, message(10))
        assert fleet.land().lines == 1
        # A pruned session was the last in the table: its row numbers go to other rows.
        db.execute("DELETE FROM transcript_events WHERE seq >= 9")
        put(db, "s2", 0, message(20))
        put(db, "s2", 1, message(21))
        again = fleet.land()
        assert again.lines <= 3
        db.execute("DELETE FROM transcript_events WHERE seq < 4")
        db.execute("VACUUM")
        put(db, "s3", 0, message(30))
        fleet.land()
        assert fleet.land().landings == 0
    assert tokens(fleet) == {"globex": sum(15 + number for number in (*range(11), 20, 21, 30))}


def test_a_live_database_is_read_with_its_log_and_nothing_is_left_beside_a_resting_one(fleet):
    folder = agent(fleet)
    db = database(folder, wal=True)
    put(db, "s1", 0, message(0))
    assert (folder / "agent" / "openclaw-agent.sqlite-wal").stat().st_size
    fleet.land()
    put(db, "s1", 1, message(1))
    fleet.land()
    assert tokens(fleet) == {"globex": 31}
    put(db, "s1", 2, message(2))
    db.close()
    assert [path.name for path in (folder / "agent").iterdir()] == ["openclaw-agent.sqlite"]
    fleet.land()
    assert [path.name for path in (folder / "agent").iterdir()] == ["openclaw-agent.sqlite"]
    assert tokens(fleet) == {"globex": 48}


def test_a_log_whose_index_is_gone_is_read_from_a_copy(fleet):
    live = database(agent(fleet, tenant="other"), wal=True)
    put(live, "s1", 0, message(0))
    folder = agent(fleet) / "agent"
    folder.mkdir()
    source = fleet.folder / "cells" / "other" / "agents" / "main" / "agent"
    for suffix in ("", "-wal"):
        shutil.copy(source / f"openclaw-agent.sqlite{suffix}", folder)
    before = sorted(path.name for path in folder.iterdir())
    fleet.land()
    assert tokens(fleet) == {"globex": 15, "other": 15}
    assert sorted(path.name for path in folder.iterdir()) == before
    live.close()


def test_one_broken_cell_stops_no_other_and_no_words_reach_quarantine(fleet):
    (agent(fleet, tenant="broken") / "agent").mkdir()
    (agent(fleet, tenant="broken") / "agent" / "openclaw-agent.sqlite").write_bytes(b"no database at all" * 100)
    with database(agent(fleet)) as db:
        put(db, "s1", 0, message(0))
        put(db, "s1", 1, message(1, usage={"input": -4, "output": "many"}))
        put(db, "s1", 2, message(2, provider=None))
        db.execute("INSERT INTO transcript_events VALUES ('s1', 3, NULL, x'00ff00ff00ff', 1)")
        db.execute("INSERT INTO transcript_events VALUES ('s1', 4, '{\"content\": \"private words', NULL, 1)")
    landed = fleet.land()
    assert tokens(fleet) == {"globex": 15}
    assert [(row["reason"], row["field"], row["tenant_id"]) for row in fleet.quarantine()] == [
        ("negative", "usage.input", "globex"),
        ("missing_dimension", "provider", "globex"),
        ("corrupt_row", "event_zstd", None),
        ("not_json", "line", "globex"),
    ]
    assert "private words" not in str(fleet.quarantine())
    assert len(landed.problems) == 1
    assert "broken" in landed.problems[0]


def test_a_source_of_one_cell_and_of_chosen_services(fleet):
    with database(agent(fleet, tenant="anything")) as db:
        put(db, "s1", 0, message(0))
    fleet.sources = (
        {
            "name": "cell",
            "kind": "openclaw_fleet",
            "path": "cells/anything",
            "tenant": "acme",
            "services": ["tokens.output"],
        },
    )
    fleet.land()
    assert [(event["tenant_id"], event["service"]) for event in fleet.events()] == [("acme", "tokens.output")]


# --- tenants that share a cell -------------------------------------------------------------------------------------

NODES = """
CREATE TABLE session_nodes (session_key TEXT NOT NULL PRIMARY KEY, fork_source_session_id TEXT);
ALTER TABLE session_windows ADD COLUMN created_at INTEGER;
"""


def session(db: sqlite3.Connection, name: str, key: str, began: str, forked_from: str | None = None) -> None:
    at = round(datetime.fromisoformat(f"2026-11-22T{began}:00Z").timestamp() * 1000)
    db.execute("INSERT INTO session_windows VALUES (?, ?, ?)", (name, key, at))
    db.execute("INSERT INTO session_nodes VALUES (?, ?)", (key, forked_from))


def shared(*rules: dict, **more) -> tuple[dict]:
    return ({"name": "fleet", "kind": "openclaw_fleet", "path": "cells", "tenants": rules, **more},)


def test_tenants_by_agent_the_first_rule_that_fits_decides(fleet):
    fleet.sources = shared(
        {"by": "agent", "pattern": "^support$", "tenant": "acme"},
        {"by": "agent", "pattern": "^(?:team|support)-?(.*)$"},
        {"by": "cell", "pattern": "^(initech)$"},
    )
    for cell, name in [("shared", "support"), ("shared", "team-globex"), ("shared", "main"), ("initech", "main")]:
        with database(agent(fleet, cell, name)) as db:
            put(db, "s", 0, message(0))
    landed = fleet.land()
    assert tokens(fleet) == {"acme": 15, "globex": 15, "initech": 15}
    (aside,) = fleet.quarantine()
    assert (aside["reason"], aside["field"], aside["tenant_id"]) == ("no_tenant", "tenants", None)
    assert "cell 'shared', agent 'main'" in aside["detail"]
    assert "private words" not in str(aside)
    assert not next(check for check in landed.checks if check.name == "everybody_known").passed
    # Once a rule fits, the line is replayed.
    (one,) = entries(fleet.ledger)
    fleet.sources = shared(*fleet.sources[0]["tenants"], {"by": "agent", "pattern": "^main$", "tenant": "hooli"})
    catalog = catalogue(*fleet.sources, folder=fleet.folder)
    (done,) = replay(catalog, fleet.lake, fleet.ledger, [one.id], now=NOW, run_id="replay")
    assert done.landed
    assert tokens(fleet)["hooli"] == 15


def test_tenants_by_session_key_wherever_the_transcript_lies(fleet):
    fleet.sources = shared({"by": "session_key", "pattern": r"^agent:main:discord:channel:([a-z]+)$"})
    folder = agent(fleet, "shared")
    with database(folder) as db:
        db.executescript(NODES)
        db.execute("ALTER TABLE session_transcript_archives ADD COLUMN session_key TEXT")
        session(db, "s1", "agent:main:discord:channel:acme", "06:00")
        put(db, "s1", 0, message(0))
        put(db, "unknown", 0, message(9))
        blob = zstandard.compress((json.dumps(message(1)) + "\n").encode())
        db.execute(
            "INSERT INTO session_transcript_archives VALUES ('s2', 'zstd', ?, 's2.jsonl.deleted.1.g.zst',"
            " 'agent:main:discord:channel:globex')",
            (blob,),
        )
    (folder / "sessions").mkdir()
    (folder / "sessions" / "s3.jsonl").write_text(json.dumps(message(2)) + "\n")
    (folder / "sessions" / "sessions.json").write_text(
        json.dumps({"agent:main:discord:channel:initech": {"sessionId": "s3"}, "agent:main:main": {}})
    )
    fleet.land()
    assert tokens(fleet) == {"acme": 15, "globex": 16, "initech": 17}
    (aside,) = fleet.quarantine()
    assert (aside["reason"], "session 'unknown' without a key" in aside["detail"]) == ("no_tenant", True)
    with sqlite3.connect(folder / "agent" / "openclaw-agent.sqlite") as db:
        session(db, "s4", "agent:main:discord:channel:hooli", "07:00")
        put(db, "s4", 0, message(3))
    fleet.land()
    assert tokens(fleet)["hooli"] == 18


def test_what_a_fork_copies_stays_with_the_tenant_of_the_session_it_comes_from(fleet):
    """Or two tenants would pay for the same call."""
    fleet.sources = shared({"by": "session_key", "pattern": ":([a-z]+)$"})
    with database(agent(fleet, "shared")) as db:
        db.executescript(NODES)
        session(db, "s1", "agent:main:discord:channel:acme", "06:00")
        session(db, "s2", "agent:main:slack:channel:globex", "06:10", forked_from="s1")
        session(db, "s3", "agent:main:slack:channel:initech", "06:20", forked_from="s2")
        for seq in range(5):
            put(db, "s1", seq, message(seq))
            put(db, "s2", seq, message(seq))
            put(db, "s3", seq, message(seq))
        put(db, "s2", 11, message(11))
        put(db, "s3", 11, message(11))
        put(db, "s3", 21, message(21))
    fleet.land()
    assert tokens(fleet) == {"acme": 5 * 15 + 10, "globex": 26, "initech": 36}


@real
def test_the_real_cells_by_session_key(fleet):
    """Each real session to the tenant that its key names: their sums are the cells'."""
    rules = ({"by": "session_key", "pattern": "^agent:[a-z]+:([a-z]+)"},)
    fleet.sources = ({"name": "fleet", "kind": "openclaw_fleet", "path": str(FLEET / "cells"), "tenants": rules},)
    assert fleet.land().quarantined == 0
    assert tokens(fleet) == {"main": 9346 + 6424 + 9263, "slack": 10266, "discord": 7324}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tenants": [{"by": "agent", "pattern": "("}]}, "is no regular expression"),
        ({"tenants": [{"by": "agent", "pattern": "x"}]}, "give a tenant, or a pattern with one group"),
        ({"tenants": [{"by": "agent", "pattern": "(x)"}], "tenant": "acme"}, "give either tenant or tenants"),
    ],
)
def test_rules_that_say_nothing_are_refused(more, said):
    with pytest.raises(CatalogError, match=said):
        catalogue({"name": "fleet", "kind": "openclaw_fleet", "path": "cells", **more})
