"""LiteLLM's spend logs in the table where its proxy keeps them, as its own schema (schema.prisma) makes it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text

from clawbill_pipeline_tests.usage.conftest import Place

_TABLE = """
CREATE TABLE "LiteLLM_SpendLogs" (
    request_id text PRIMARY KEY, call_type text NOT NULL, api_key text NOT NULL DEFAULT '',
    spend double precision NOT NULL DEFAULT 0, total_tokens integer NOT NULL DEFAULT 0,
    prompt_tokens integer NOT NULL DEFAULT 0, completion_tokens integer NOT NULL DEFAULT 0,
    "startTime" timestamp(3) NOT NULL, "endTime" timestamp(3) NOT NULL, "completionStartTime" timestamp(3),
    model text NOT NULL DEFAULT '', custom_llm_provider text DEFAULT '', "user" text DEFAULT '',
    metadata jsonb DEFAULT '{}', team_id text, organization_id text, end_user text, session_id text, status text
)
"""
_ROW = """
INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
    "startTime", "endTime", model, custom_llm_provider, metadata, team_id, organization_id, status)
VALUES (:id, 'acompletion', 'hash', 0.1, :input + :output, :input, :output, CAST(:at AS timestamp),
    CAST(:at AS timestamp) + interval '1 minute', 'gpt', 'openai', '{"a": {"b": 1}}', :team, 'org-1', :status)
"""


@pytest.fixture
def proxy(place: Place, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("LITELLM_URL", database_url)
    place.sources = ({"name": "spend", "kind": "litellm_table", "url_env": "LITELLM_URL"},)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(_TABLE))
    yield engine
    engine.dispose()


def add(proxy: Engine, id: str, at: str, input: int = 3, output: int = 4, team: str | None = "acme") -> None:
    status = "success" if input else "failure"
    row = {"id": id, "at": f"2026-11-22 {at}", "input": input, "output": output, "team": team, "status": status}
    with proxy.begin() as connection:
        connection.execute(text(_ROW), row)


def test_rows_are_tokens_by_provider_and_model_in_utc(place: Place, proxy: Engine) -> None:
    add(proxy, "a", "10:00:00.5")
    add(proxy, "b", "10:10:00", input=0, output=0)  # failed: nothing was used
    add(proxy, "c", "10:20:00", team=None)
    landed = place.land()
    assert (landed.problems, landed.events, landed.quarantined) == ((), 2, 1)
    told = [(e["event_id"], e["service"], e["quantity"], e["dimensions"], str(e["event_time"])) for e in place.events()]
    assert told == [
        ("a#tokens.input", "tokens.input", 3, "openai/gpt", "2026-11-22 10:00:00.500000+00:00"),
        ("a#tokens.output", "tokens.output", 4, "openai/gpt", "2026-11-22 10:00:00.500000+00:00"),
    ]
    assert [entry["reason"] for entry in place.quarantine()] == ["missing_field"]


def test_a_long_request_that_is_logged_at_its_end_is_found(place: Place, proxy: Engine) -> None:
    add(proxy, "short", "11:00:00")
    place.land()
    add(proxy, "long", "10:30:00")
    add(proxy, "next", "11:05:00")
    place.land()
    assert {e["event_id"].partition("#")[0] for e in place.events()} == {"short", "long", "next"}


def test_another_tenant_field(place: Place, proxy: Engine) -> None:
    place.sources = ({**place.sources[0], "tenant": "organization_id", "table": "public.LiteLLM_SpendLogs"},)
    add(proxy, "a", "10:00:00", team=None)
    assert place.land().quarantined == 0
    assert {e["tenant_id"] for e in place.events()} == {"org-1"}
