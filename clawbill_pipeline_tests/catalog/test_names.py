"""Names of services as OpenClaw sees them: made and taken apart again, never shared by two dimension sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.catalog import openclaw_service, split_openclaw_service
from clawbill_pipeline.catalog.names import dimension_set

values = st.lists(st.text(alphabet="ab/:%2FA25", min_size=1, max_size=6), min_size=1, max_size=3)


@given(values, values)
def test_two_sets_of_values_never_share_a_name(one: list[str], other: list[str]) -> None:
    assert (dimension_set(one) == dimension_set(other)) == (one == other)


@given(values)
def test_a_name_comes_apart_as_it_was_made(parts: list[str]) -> None:
    name = openclaw_service("tokens.output", dimension_set(parts))
    assert split_openclaw_service(name) == ("tokens.output", dimension_set(parts))


def test_plain_names() -> None:
    assert (
        openclaw_service("tokens.output", dimension_set(("mockai", "mock-large"))) == "tokens.output:mockai/mock-large"
    )
    assert openclaw_service("requests") == "requests"
    assert split_openclaw_service("requests") == ("requests", "")
