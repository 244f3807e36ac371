"""One sandbox process a session, an account of its own a test. Its clock only moves forward, from test to test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("sandbox") / "state")
    yield running
    running.stop()


@pytest.fixture
def account(sandbox: Sandbox) -> Account:
    """In the middle of whatever time it is."""
    return sandbox.account()


@pytest.fixture
def month(sandbox: Sandbox) -> Sandbox:
    """The clock at the start of a month of 31 days."""
    sandbox.move_to_next_month()
    return sandbox


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox of the test's own."""
    running = Sandbox(tmp_path / "state")
    yield running
    if running.process.poll() is None:
        running.stop()
