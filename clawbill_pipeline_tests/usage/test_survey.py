"""What is in a folder that nobody has described."""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clawbill_pipeline.usage.survey import SurveyError, survey
from clawbill_pipeline_tests.usage.conftest import line, record
from clawbill_pipeline_tests.usage.test_landing import cloud_event
from clawbill_pipeline_tests.usage.test_openclaw import FLEET, message, real


def test_json_lines_with_what_their_services_may_be_priced_by(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    lines = [record(f"e{n}", region="eu" if n % 2 else "us", request_id=f"r{n}", user=f"u{n}") for n in range(60)]
    lines += [record("c1", service="credits", quantity="-1.5", tenant_id="globex", timestamp="2026-11-20T01:00:00Z")]
    lines += [record("f1", timestamp="2099-01-01T00:00:00Z"), record("p1", timestamp=0)]
    text = "".join(json.dumps(entry) + "\n" for entry in lines) + "broken\n"
    (tmp_path / "deep" / "a.jsonl").write_text(text)
    found = survey(tmp_path, "logs")
    assert (found.source.kind, found.source.name, found.source.path) == ("json_lines", "logs", str(tmp_path))
    assert found.tenants == ("acme", "globex")
    assert {name: (s.dimensions, s.negative, s.events) for name, s in found.services.items()} == {
        "api.calls": ((), False, 62),
        "credits": ((), True, 1),
    }
    assert (found.first, found.last) == (
        datetime(2026, 11, 20, 1, tzinfo=UTC),
        datetime(2026, 11, 22, 10, 15, tzinfo=UTC),
    )
    assert (found.events, found.unreadable) == (63, 1)


def test_dimensions_are_what_all_events_of_a_service_have_with_few_values(tmp_path: Path):
    lines = [record(f"e{n}", region="eu" if n % 2 else "us", request_id=f"r{n}", user=f"u{n}") for n in range(60)]
    (tmp_path / "a.ndjson").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert survey(tmp_path).services["api.calls"].dimensions == ("region",)


def test_cloudevents(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([cloud_event("a"), cloud_event("b")], indent=1))
    found = survey(tmp_path)
    assert (found.source.kind, found.tenants, list(found.services)) == ("cloudevents", ("acme",), ["api.calls"])


def test_files_of_both_kinds_are_read_together(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(cloud_event("a")))
    (tmp_path / "b.jsonl").write_bytes(line("e1"))
    found = survey(tmp_path)
    assert (found.source.kind, found.events) == ("json_lines", 2)


@real
@pytest.mark.parametrize("folder", [FLEET, FLEET / "cells"])
def test_the_real_fleet(folder: Path):
    found = survey(folder)
    assert (found.source.kind, found.source.path) == ("openclaw_fleet", str((FLEET / "cells").resolve()))
    assert found.tenants == ("globex", "initech", "legacyco")
    assert {name: service.dimensions for name, service in found.services.items()} == {
        **{f"tokens.{kind}": ("provider", "model") for kind in ("input", "output", "cache_read", "cache_write")},
        "messages": (),
    }
    assert (found.events, found.unreadable) == (94, 0)


def test_a_state_folder_and_a_single_cell(tmp_path: Path):
    sessions = tmp_path / "fleet" / "cells" / "acme" / "agents" / "main" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "a.jsonl").write_text(json.dumps(message(1)) + "\n")
    assert survey(tmp_path).source.path == str(tmp_path.resolve() / "fleet" / "cells")
    cell = survey(tmp_path / "fleet" / "cells" / "acme")
    assert (cell.source.tenant, cell.tenants, cell.events) == ("acme", ("acme",), 3)


@pytest.mark.parametrize("content", [None, b"nothing\n", b"\x1f\x8bbroken", line(tenant_id="no tenant")])
def test_a_folder_without_usage_says_what_was_looked_for(tmp_path: Path, content):
    if content:
        (tmp_path / "a.jsonl").write_bytes(content)
    sqlite3.connect(tmp_path / "a.sqlite").close()
    with pytest.raises(SurveyError, match=r"OpenClaw cells.*event_id.*CloudEvents"):
        survey(tmp_path)
    with pytest.raises(SurveyError, match="is no folder"):
        survey(tmp_path / "nowhere")
