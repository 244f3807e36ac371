"""A storm of webhooks: duplicates, any order, forgeries, and a database that restarts in the middle.

Nothing lost, nothing double, no forgery in. The large one: ``pytest -m slow clawbill_pipeline_tests/web``.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.invoicing.inbox import apply_events
from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline_tests.invoicing.conftest import CATALOG
from clawbill_pipeline_tests.invoicing.objects import END, event, invoice
from clawbill_pipeline_tests.web.conftest import SECRET, signed

STATES = ("draft", "open", "paid")
TYPES = {"draft": "invoice.created", "open": "invoice.finalized", "paid": "invoice.paid"}


@dataclass(frozen=True)
class Webhook:
    body: str
    forged: bool


def storm(count: int, chance: random.Random) -> list[Webhook]:
    """``count`` webhooks: three events an invoice, a tenth sent again, a twentieth forged, in no order."""
    forgeries, again = count // 20, count // 10
    bodies = [
        event(f"evt_{number}_{state}", TYPES[state], invoice(state, id=f"in_{number}"), END + STATES.index(state))
        for number in range((count - forgeries - again + 2) // 3)
        for state in STATES
    ][: count - forgeries - again]
    webhooks = [Webhook(body, forged=False) for body in bodies + chance.choices(bodies, k=again)]
    for number in range(forgeries):
        body = event(f"evt_forged_{number}", "invoice.paid", invoice("paid", id=f"in_{number}"), END + 9)
        webhooks.append(Webhook(body, forged=True))
    chance.shuffle(webhooks)
    return webhooks


class Server:
    """The web app as a process, over a PostgreSQL of the test's own that can be restarted."""

    def __init__(self, folder: Path) -> None:
        self._database = folder / "postgres"
        self.url = embedded.start(self._database).url()
        migrate(self.url)
        port_file = folder / "port"
        env = {"PATH": os.environ["PATH"], "CLAWBILL_STATE": str(folder), "CLAWBILL_DATABASE_URL": self.url}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clawbill_pipeline.web", "--port-file", str(port_file)],
            env=env | {"STRIPE_WEBHOOK_SECRET": SECRET},
            stderr=subprocess.DEVNULL,  # one warning for each event that could not be stored
        )
        while not port_file.exists():
            assert self._process.poll() is None
            time.sleep(0.02)
        self.address = f"http://127.0.0.1:{port_file.read_text().strip()}"

    def restart_database(self) -> None:
        embedded.stop(self._database)
        assert embedded.start(self._database).url() == self.url

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        embedded.stop(self._database)
        if (home := self._database / "home").exists():
            shutil.rmtree(home.read_text())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


class Sender:
    """Stripe's side: sends again what was not answered 2xx, and counts the answers."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.answers: Counter[tuple[bool, int]] = Counter()
        self._turn = threading.Lock()
        self.sent = 0

    def __call__(self, webhook: Webhook) -> None:
        while True:
            headers = signed(webhook.body, "whsec_forged" if webhook.forged else SECRET)
            status = self._http.post("/stripe/webhook", content=webhook.body, headers=headers).status_code
            with self._turn:
                self.answers[webhook.forged, status] += 1
            if webhook.forged or status == 200:
                break
            assert status == 503
            time.sleep(0.05)
        with self._turn:
            self.sent += 1


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_nothing_lost_nothing_double_no_forgery_in(server: Server, count: int) -> None:
    webhooks = storm(count, random.Random(6))
    genuine = {webhook.body for webhook in webhooks if not webhook.forged}
    with httpx.Client(base_url=server.address, trust_env=False, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        sender = Sender(http)
        sending = [pool.submit(sender, webhook) for webhook in webhooks]
        while sender.sent < count // 2:
            time.sleep(0.005)
        server.restart_database()
        for future in sending:
            future.result()
    forgeries = count // 20
    assert sender.answers[True, 400] == forgeries
    assert sender.answers[False, 200] == count - forgeries
    assert {status for forged, status in sender.answers if forged} == {400}

    ledger = Ledger(server.url)
    with ledger.transaction() as connection:
        stored = list(connection.scalars(text("SELECT body FROM stripe_events")))
    assert len(stored) == len(genuine)
    assert set(stored) == genuine
    health = httpx.get(f"{server.address}/healthz", trust_env=False).json()
    assert health["webhook"]["bad_signature"] == forgeries
    assert health["webhook"]["landed"] <= len(genuine)

    now = datetime.fromtimestamp(END + 3600, UTC)
    result = apply_events(ledger, parse(CATALOG), None, through=None, now=now, run_id="storm")
    assert (result.failed, result.waiting, result.unhandled) == (0, 0, 0)
    furthest: dict[str, int] = {}
    for body in genuine:
        number, state = body.split('"evt_')[1].split('"')[0].split("_")
        furthest[f"in_{number}"] = max(furthest.get(f"in_{number}", 0), STATES.index(state))
    with ledger.transaction() as connection:
        found = {
            row.invoice_id: row.status for row in connection.execute(text("SELECT invoice_id, status FROM invoices"))
        }
    ledger.dispose()
    assert found == {invoice_id: STATES[state] for invoice_id, state in furthest.items()}
