"""The probe against the stand-in: it answers Stripe's open questions, and leaves nothing that bills."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from clawbill_pipeline.delivery.probing import probe
from clawbill_pipeline.settings import SettingsError
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.delivery.world import World


def test_it_answers_and_puts_away(world: World) -> None:
    waited: list[float] = []
    answers = probe(world.api, now=world.now(), settle_seconds=7, sleep=waited.append)
    assert waited == [7]
    assert [(answer.answer.split(":")[0], answer.expected) for answer in answers] == [
        ("yes", True),
        ("the latest by time", True),
        ("no", True),
        ("yes", True),
        (answers[-1].answer.split(":")[0], True),
    ]
    assert answers[3].answer == "yes: the total is -2"
    assert "already exists with identifier" in answers[-1].answer
    meters = list(world.account.v1.billing.meters.list({"limit": 100}))
    assert {meter.status for meter in meters} == {"inactive"}
    assert not list(world.account.v1.customers.list())


def test_a_live_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="test-mode"):
        probe(StripeApi(SecretStr("sk_live_1234567890abcdef"), base="http://127.0.0.1:1"), now=None)  # type: ignore[arg-type]
