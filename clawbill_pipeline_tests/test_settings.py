"""What the environment says, the clock, and the lake's names. Secrets never show."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clawbill_pipeline.clock import clock_of, file_clock, set_file_clock, wall_clock
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.settings import STARTER, Settings, SettingsError

ENV = {
    "CLAWBILL_STATE": "/var/lib/clawbill",
    "CLAWBILL_DATABASE_URL": "postgresql://u:hunter2@db/clawbill",
    "OPENCLAW_URL": "http://openclaw/",
    "OPENCLAW_TOKEN": "oc-hunter2",
    "STRIPE_SECRET_KEY": "sk_live_hunter2",
    "STRIPE_WEBHOOK_SECRET": "whsec_hunter2, whsec_hunter2_old,",
}


def test_settings_come_from_the_environment_and_secrets_never_show() -> None:
    settings = Settings.from_env(ENV)
    assert settings.need_database() == ENV["CLAWBILL_DATABASE_URL"]
    assert settings.need_openclaw()[0] == "http://openclaw"
    assert [secret.get_secret_value() for secret in settings.stripe_webhook_secrets] == [
        "whsec_hunter2", "whsec_hunter2_old",
    ]  # fmt: skip
    assert settings.lake_root == Path("/var/lib/clawbill/lake")
    assert "hunter2" not in repr(settings) + str(settings.model_dump())


def test_lake_and_reports_are_in_the_state_folder_elsewhere_or_in_an_object_store() -> None:
    def places(**env: str) -> tuple[Path | str, Path | str]:
        settings = Settings.from_env({"CLAWBILL_STATE": "/state", **env})
        return settings.lake_root, settings.reports_root

    assert places() == (Path("/state/lake"), Path("/state/reports"))
    assert places(CLAWBILL_LAKE="/lake") == (Path("/lake"), Path("/state/reports"))
    # Whoever has the lake in a store has more machines than one: reports are made on one and read on another.
    assert places(CLAWBILL_LAKE="s3://bucket/a/") == ("s3://bucket/a/", "s3://bucket/a/reports")
    assert places(CLAWBILL_LAKE="s3://bucket", CLAWBILL_REPORTS="/reports") == ("s3://bucket", Path("/reports"))
    assert places(CLAWBILL_REPORTS="gs://bucket/r") == (Path("/state/lake"), "gs://bucket/r")


def test_memory_of_duckdb_is_limited_by_a_setting() -> None:
    assert Settings.from_env({"CLAWBILL_MEMORY_LIMIT": "1.5GB"}).memory_limit == "1.5GB"
    with pytest.raises(SettingsError, match="CLAWBILL_MEMORY_LIMIT: 'a lot' is no amount of memory; write 1GB"):
        Settings.from_env({"CLAWBILL_MEMORY_LIMIT": "a lot"})


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = Settings.from_env(dict.fromkeys(ENV, ""))
    assert settings == Settings.from_env({})
    for need, name in (
        (settings.need_database, "CLAWBILL_DATABASE_URL"),
        (settings.need_openclaw, "OPENCLAW_URL"),
        (lambda: settings.need_stripe(live_allowed=True), "STRIPE_SECRET_KEY"),
    ):
        with pytest.raises(SettingsError, match=name):
            need()


@pytest.mark.parametrize("key", ["sk_live_hunter2", "rk_live_hunter2"])
def test_a_live_key_needs_the_catalogues_word(key: str) -> None:
    settings = Settings.from_env({"STRIPE_SECRET_KEY": key})
    with pytest.raises(SettingsError, match="live: true") as refused:
        settings.need_stripe(live_allowed=False)
    assert "hunter2" not in str(refused.value)
    assert settings.need_stripe(live_allowed=True).get_secret_value() == key
    assert Settings.from_env({"STRIPE_SECRET_KEY": "sk_test_1"}).need_stripe(live_allowed=False)


def test_the_catalogue_is_the_named_one_else_the_states_else_the_starter(tmp_path: Path) -> None:
    assert Settings.from_env({"CLAWBILL_STATE": str(tmp_path)}).catalog_file == STARTER
    (tmp_path / "catalog.yaml").touch()
    assert Settings.from_env({"CLAWBILL_STATE": str(tmp_path)}).catalog_file == tmp_path / "catalog.yaml"
    named = {"CLAWBILL_STATE": str(tmp_path), "CLAWBILL_CATALOG": "/etc/missing.yaml"}
    assert Settings.from_env(named).catalog_file == Path("/etc/missing.yaml")


def test_a_file_clock_shows_what_it_was_set_to(tmp_path: Path) -> None:
    now = file_clock(tmp_path / "clock")
    assert abs((now() - wall_clock()).total_seconds()) < 60
    moment = datetime(2026, 11, 1, 12, 30, 15, 250, tzinfo=UTC)
    set_file_clock(tmp_path / "clock", moment)
    assert now() == clock_of(tmp_path / "clock")() == moment
    assert clock_of(None) is wall_clock


def test_names_in_the_lake_tell_hour_and_landing(tmp_path: Path) -> None:
    lake, hour = Lake(tmp_path / "lake"), datetime(2026, 11, 1, 7, tzinfo=UTC)
    names = {lake.events_file(hour, number) for number in (1, 2)} | {
        lake.ids_file(hour, landings, newest) for landings in (1, 2) for newest in (2, 3)
    }
    assert len(names) == 6
    assert all("hour=2026-11-01T07/" in name for name in names)
    assert lake.path(lake.events_file(hour, 1)).parent.is_dir()
