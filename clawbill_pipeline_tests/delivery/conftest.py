"""One Stripe stand-in a test module; an account and a ledger of its own a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.delivery.world import T0, World
from clawbill_pipeline_tests.sandbox.stripe.server import Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """At midnight of the second day; a test that moves the clock takes a ``fresh_world``."""
    running = Sandbox(tmp_path_factory.mktemp("sandbox") / "state", now=int(T0.timestamp()) + 86_400)
    yield running
    running.stop()


@pytest.fixture
def fresh_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("sandbox") / "state", now=int(T0.timestamp()) + 86_400)
    yield running
    running.stop()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


@pytest.fixture
def world(ledger: Ledger, sandbox: Sandbox) -> World:
    return World(ledger, sandbox, sandbox.account())


@pytest.fixture
def fresh_world(ledger: Ledger, fresh_sandbox: Sandbox) -> World:
    return World(ledger, fresh_sandbox, fresh_sandbox.account())
