"""The PostgreSQL and the object store of the tests: a server a session, a fresh database or bucket a test. No fixture
of a single station.

``CLAWBILL_TEST_DATABASE_URL`` names a server to use instead; its user must be allowed to create databases.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, make_url

from clawbill_pipeline.ledger import embedded
from clawbill_pipeline_tests import object_store

#: The server's folder, made by the first pytest process and inherited by the workers of pytest-xdist.
_FOLDER = "CLAWBILL_TEST_SERVER_FOLDER"
_PREFIX = "clawbill-tests-"


def pytest_configure(config: pytest.Config) -> None:
    if _FOLDER in os.environ:
        return
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}"))
    lock = os.open(folder, os.O_RDONLY)  # held as long as this session lives: see _sweep
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = folder.rename(folder.with_name(folder.name.removeprefix("new-")))
    os.environ[_FOLDER] = str(folder)

    def clean_up() -> None:
        del os.environ[_FOLDER]
        remove_server(folder)
        os.close(lock)

    config.add_cleanup(clean_up)


def _sweep() -> None:
    """Clear away what sessions that were killed left running."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):
            if folder.stat().st_uid == os.geteuid():
                lock = os.open(folder, os.O_RDONLY)
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_server(folder)
                os.close(lock)


def remove_server(folder: Path) -> None:
    """Stop the embedded server of ``folder`` and delete all it kept, also in a private home."""
    embedded.stop(folder)
    if (note := folder / "home").exists():
        shutil.rmtree(note.read_text())
    shutil.rmtree(folder)


@dataclass(frozen=True)
class GivenServer:
    """The server of ``CLAWBILL_TEST_DATABASE_URL``, with the methods of ``embedded.Server``."""

    given: URL = field(repr=False)

    def url(self, database: str | None = None, driver: str = "postgresql+psycopg") -> str:
        url = self.given.set(drivername=driver, database=database or self.given.database)
        return url.render_as_string(hide_password=False)

    def dsn(self, database: str | None = None) -> str:
        given = make_url(self.url(database))
        parts = given.translate_connect_args(username="user", database="dbname")
        query = {name: str(value) for name, value in given.query.items()}
        return make_conninfo(**parts, **query)  # SQLAlchemy writes a space as "+", which libpq does not read


AnyServer = embedded.Server | GivenServer


@pytest.fixture(scope="session")
def postgres_server() -> AnyServer:
    """One server for the session and all its workers; stopped by the session's first process."""
    if given := os.environ.get("CLAWBILL_TEST_DATABASE_URL"):
        return GivenServer(make_url(given))
    return embedded.start(Path(os.environ[_FOLDER]), durable=False)


@pytest.fixture
def database_url(postgres_server: AnyServer) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database."""
    with fresh_database(postgres_server) as name:
        yield postgres_server.url(name)


@pytest.fixture(scope="session")
def ledger_template(postgres_server: AnyServer) -> Iterator[str]:
    """The name of a database in which the ledger's migrations have run. Connect to a copy of it, never to itself."""
    from clawbill_pipeline.ledger import migrate

    with fresh_database(postgres_server) as name:
        migrate(postgres_server.url(name))
        yield name


@pytest.fixture
def ledger_url(postgres_server: AnyServer, ledger_template: str) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh database with an empty ledger."""
    with fresh_database(postgres_server, template=ledger_template) as name:
        yield postgres_server.url(name)


@contextmanager
def fresh_database(server: AnyServer, template: str = "template0") -> Iterator[str]:
    """The name of a new database, dropped on the way out even if something is still connected to it."""
    name = f"clawbill_test_{uuid.uuid4().hex}"
    database = sql.Identifier(name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, sql.Identifier(template)))
    try:
        yield name
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


@pytest.fixture(scope="session")
def s3() -> Iterator[object_store.Store]:
    """moto's S3 server, in this process."""
    with object_store.serving() as store:
        yield store


@pytest.fixture
def bucket(s3: object_store.Store, monkeypatch: pytest.MonkeyPatch) -> object_store.Bucket:
    """A fresh bucket, which the environment has the endpoint and the credentials of."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**object_store.CREDENTIALS, "AWS_ENDPOINT_URL": s3.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "refuse", lambda _: None)
    s3.asked.clear()
    return s3.make_bucket(f"test-{uuid.uuid4().hex}")
