"""The process: what a kill leaves, one process a folder, the clock set and following the wall, the same ids."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import HOUR, START, Account, Sandbox, receiving

Launch: TypeAlias = Callable[..., Sandbox]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts sandboxes by the name of their folder; those that still run are stopped, however the test ends."""
    started: list[Sandbox] = []

    def start(name: str, now: int | None = START) -> Sandbox:
        started.append(Sandbox(tmp_path / name, now))
        return started[-1]

    yield start
    for sandbox in started:
        if sandbox.process.poll() is None:
            sandbox.stop()


def test_a_kill_loses_nothing_that_was_answered(launch: Launch) -> None:
    sandbox = launch("state")
    account = sandbox.account()
    meter, customer = account.meter().id, account.customer()
    answered: list[list[str]] = [[] for _ in range(4)]

    def send(lane: int) -> None:
        client = account.client
        for index in range(10_000):
            identifier = f"{lane}-{index}"
            payload = {"stripe_customer_id": customer, "value": "1"}
            params = {"event_name": "tokens", "identifier": identifier, "payload": payload}
            try:
                client.v1.billing.meter_events.create(params)
            except stripe.RateLimitError:
                continue
            except stripe.APIConnectionError:
                return
            answered[lane].append(identifier)

    senders = [threading.Thread(target=send, args=(lane,)) for lane in range(4)]
    for sender in senders:
        sender.start()
    while sum(map(len, answered)) < 100:
        time.sleep(0.01)
    sandbox.kill()
    for sender in senders:
        sender.join()
    sandbox.start()
    sent = sum(map(len, answered))
    (held,) = account.held(meter, customer, START, START + 60)
    assert held[1] >= sent
    assert held[1] <= sent + len(senders)  # at most the one under way of each sender
    for identifier in (lane[-1] for lane in answered if lane):
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            account.use(customer, 1, identifier=identifier)


def test_deliveries_that_waited_go_out_after_a_kill(launch: Launch) -> None:
    sandbox = launch("state")
    with receiving("whsec_x") as receiver:
        receiver.answer = lambda: 500
        # Without a key: the events of all accounts.
        sandbox.control.post("/_sandbox/webhooks", json={"url": receiver.url, "secret": "whsec_x"})
        account = sandbox.account()
        account.customer()
        account.flush()
        sandbox.kill()
        receiver.answer = lambda: 200
        sandbox.start()
        assert account.flush() == {"delivered": 1, "failed": 0, "pending": 0}
        assert receiver.types == ["customer.created"]


def test_the_set_clock_and_what_is_due_survive(launch: Launch) -> None:
    sandbox = launch("state")
    account = sandbox.account()
    price = account.price(account.meter().id)
    account.v1.subscriptions.create({"customer": account.customer(), "items": [{"price": price.id}]})
    sandbox.move_to(START + HOUR)
    sandbox.kill()
    sandbox.start()  # its --now is behind its clock: time never goes back
    assert sandbox.now() == START + HOUR
    assert sandbox.control.post("/_sandbox/clock", json={"now": START}).status_code == 400
    assert sandbox.move_to(START + 32 * 24 * HOUR) == 2
    assert [invoice.status for invoice in account.v1.invoices.list().data] == ["paid"]


def test_without_a_set_clock_things_happen_with_the_wall(launch: Launch) -> None:
    sandbox = launch("state", None)
    account = sandbox.account()
    account.set(invoice_grace_seconds=0)
    assert abs(sandbox.now() - time.time()) < 600
    params = {"customer": account.customer(), "currency": "usd", "auto_advance": True}
    account.v1.invoices.create(params)
    while not account.v1.invoices.list({"status": "paid"}).data:  # pytest's timeout ends a wait in vain
        time.sleep(0.05)


def test_a_folder_has_one_process(fresh: Sandbox) -> None:
    command = [sys.executable, "-m", "clawbill_pipeline.sandbox.stripe", "--port", "0", "--state", str(fresh.state)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0
    assert "Another sandbox holds it" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_that_is_taken_is_said(fresh: Sandbox, tmp_path: Path) -> None:
    port = fresh.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "clawbill_pipeline.sandbox.stripe", "--port", port, "--state", str(tmp_path / "b")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0
    assert f"127.0.0.1:{port}" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_same_calls_make_the_same_ids(launch: Launch) -> None:
    seen = []
    for run in "ab":
        sandbox = launch(run)
        account = Account(sandbox, "sk_test_same")
        price = account.price(account.meter().id)
        customer = account.customer()
        account.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
        account.use(customer, 7, START)
        sandbox.move_to(START + 32 * 24 * HOUR)
        events = [event.to_dict() for event in account.v1.events.list({"limit": 100}).data]
        for event in events:
            event.pop("request")
        seen.append(events)
    assert seen[0] == seen[1]


def test_the_command_serves_it_with_a_clock_and_tells_its_port(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clawbill_pipeline.cli", "sandbox", "stripe", "--port", "0", "--now", str(START)]
    command += ["--state", str(tmp_path / "state"), "--port-file", str(tmp_path / "port")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "port").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        address = f"http://127.0.0.1:{(tmp_path / 'port').read_text()}"
        health = httpx.get(f"{address}/_sandbox/health", trust_env=False)
        assert health.json() == {"status": "ok", "now": START}
    finally:
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        process.stderr.close()
