"""Dagster's own storage, in the ledger's database: dagster-postgres, pointed there by the environment. Nothing else.

Where no database is set, the commands of dg and dagster end with one line that says what to do.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Self

import click
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log import EventLogStorage
from dagster._core.storage.runs import RunStorage
from dagster._core.storage.schedules import ScheduleStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError


def storage_url() -> str:
    """DAGSTER_POSTGRES_URL, else the ledger's database; with psycopg2, for with psycopg 3 every run fails on NOTIFY
    although the instance looks healthy. Raises click.ClickException where neither is set."""
    url = os.environ.get("DAGSTER_POSTGRES_URL") or os.environ.get("CLAWBILL_DATABASE_URL")
    if not url:
        # The commands of dg and dagster print a click error as one line instead of a traceback.
        raise click.ClickException(
            "Dagster has no database: set CLAWBILL_DATABASE_URL to a PostgreSQL URL; `clawbill env --write` starts the "
            "embedded one and writes .env, which dg and dagster read; `clawbill up` does all of it"
        )
    return make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


#: Databases in which this process has seen Dagster's tables. Every tick of a sensor makes an instance of its own, and
#: looking for the tables costs it three connections and more time than most sensors take.
_prepared: set[str] = set()


class LedgerDatabaseStorage(DagsterStorage, ConfigurableClass):
    """What dagster.yaml names as its storage."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        super().__init__()  # type: ignore[no-untyped-call]

    @cached_property
    def _postgres(self) -> DagsterPostgresStorage:
        url = storage_url()
        try:
            made = DagsterPostgresStorage(url, should_autocreate_tables=url not in _prepared)
            _prepared.add(url)
            return made
        except (OperationalError, DagsterPostgresException) as error:
            cause = error.__cause__ or error
            said = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
            raise click.ClickException(f"Dagster's database does not answer: {said}. Start it (clawbill env)") from None

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        return cls(inst_data)

    @property
    def run_storage(self) -> RunStorage:
        return self._postgres.run_storage

    @property
    def event_log_storage(self) -> EventLogStorage:
        return self._postgres.event_log_storage

    @property
    def schedule_storage(self) -> ScheduleStorage:
        return self._postgres.schedule_storage

    # Only the storages that dagster.yaml could name one by one have data of their own.
    @property
    def run_storage_data(self) -> ConfigurableClassData | None:
        return None

    @property
    def event_storage_data(self) -> ConfigurableClassData | None:
        return None

    @property
    def schedule_storage_data(self) -> ConfigurableClassData | None:
        return None
