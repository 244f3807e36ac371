"""The sandbox as a process, for tests: start, kill, start again; clients of the real SDK; a webhook receiver."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from calendar import monthrange
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import stripe

HOUR = 3_600
DAY = 86_400
#: Midnight, the first of a month.
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())


class Sandbox:
    """One sandbox process on a free port over ``state``."""

    def __init__(self, state: Path, now: int | None = START) -> None:
        self.state = state
        self._now = now
        self.start()

    def start(self) -> None:
        port_file = self.state.with_name(self.state.name + ".port")
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "clawbill_pipeline.sandbox.stripe", "--port", "0", "--state", str(self.state)]
        command += ["--port-file", str(port_file)]
        if self._now is not None:
            command += ["--now", str(self._now)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not port_file.exists():
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                raise RuntimeError(self.process.stderr.read())
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{port_file.read_text()}"
        self.control = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    def kill(self) -> None:
        """SIGKILL: what is on disk is all that stays."""
        self._stop(signal.SIGKILL)

    def stop(self) -> None:
        self._stop(signal.SIGTERM)

    def _stop(self, how: signal.Signals) -> None:
        self.control.close()
        self.process.send_signal(how)
        self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def now(self) -> int:
        return int(self.control.get("/_sandbox/clock").json()["now"])

    def move_to(self, now: int) -> int:
        """Sets the clock; returns how many due effects happened on the way."""
        answer = self.control.post("/_sandbox/clock", json={"now": now})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["happened"])

    def move_to_next_month(self) -> None:
        """To midnight on the first of a month that has 31 days."""
        at = datetime.fromtimestamp(self.now(), UTC).replace(day=1, hour=0, minute=0, second=0)
        while True:
            at = (at + timedelta(days=32)).replace(day=1)
            if monthrange(at.year, at.month)[1] == 31:
                self.move_to(int(at.timestamp()))
                return

    def account(self) -> Account:
        return Account(self)


class Account:
    """A Stripe account of its own in the sandbox, seen through the unmodified SDK."""

    def __init__(self, sandbox: Sandbox, key: str | None = None) -> None:
        self.sandbox = sandbox
        self.key = key or f"sk_test_{uuid4().hex}"
        self._client: tuple[str, stripe.StripeClient] | None = None

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def client(self) -> stripe.StripeClient:
        """A client of the process that runs now."""
        url = self.sandbox.url
        if self._client is None or self._client[0] != url:
            self._client = url, stripe.StripeClient(self.key, base_addresses={"api": url, "meter_events": url})
        return self._client[1]

    @property
    def v1(self) -> Any:
        return self.client.v1

    def set(self, **settings: Any) -> None:
        answer = self.sandbox.control.post("/_sandbox/settings", json=settings, headers=self.auth)
        assert answer.status_code == 200, answer.text

    def stats(self) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = self.sandbox.control.get("/_sandbox/stats", headers=self.auth).json()
        return counts

    def register(self, receiver: Receiver, **params: Any) -> None:
        """Sends the account's events to ``receiver``."""
        body = {"url": receiver.url, "secret": receiver.secret, **params}
        answer = self.sandbox.control.post("/_sandbox/webhooks", json=body, headers=self.auth)
        assert answer.status_code == 200, answer.text

    def flush(self) -> dict[str, int]:
        """Has what waits delivered now; (delivered, failed, pending) of the account."""
        answer = self.sandbox.control.post("/_sandbox/webhooks/flush", headers=self.auth)
        assert answer.status_code == 200, answer.text
        counts: dict[str, int] = answer.json()
        return counts

    # What most tests need

    def customer(self, **params: Any) -> str:
        return str(self.v1.customers.create({"name": "Globex", **params}).id)

    def meter(self, event_name: str = "tokens", formula: str = "sum", **params: Any) -> Any:
        return self.v1.billing.meters.create(
            {
                "display_name": event_name.title(),
                "event_name": event_name,
                "default_aggregation": {"formula": formula},
                **params,
            }
        )

    def price(self, meter: str, **params: Any) -> Any:
        if "product" not in params:
            params["product"] = self.v1.products.create({"name": "OpenClaw Usage"}).id
        if "tiers" not in params and "unit_amount" not in params:
            params.setdefault("unit_amount_decimal", "1")
        recurring = {"interval": "month", "usage_type": "metered", "meter": meter, **params.pop("recurring", {})}
        return self.v1.prices.create({"currency": "usd", "recurring": recurring, **params})

    def use(self, customer: str, value: int | str, at: int | None = None, **params: Any) -> Any:
        """Sends one meter event."""
        if at is not None:
            params["timestamp"] = at
        payload = {"stripe_customer_id": customer, "value": str(value)}
        return self.v1.billing.meter_events.create({"event_name": "tokens", "payload": payload, **params})

    def held(self, meter: str, customer: str, start: int, end: int, **params: Any) -> list[tuple[int, float]]:
        """(start, value) of the meter's summaries, all pages."""
        params = {"customer": customer, "start_time": start, "end_time": end, **params}
        summaries = self.v1.billing.meters.event_summaries.list(meter, params)
        return [(summary.start_time, summary.aggregated_value) for summary in summaries.auto_paging_iter()]

    def event_types(self) -> list[str]:
        """Types of all the account's events, oldest first."""
        events = self.v1.events.list({"limit": 100}).auto_paging_iter()
        return [event.type for event in events][::-1]


class Receiver:
    """A webhook endpoint in a thread: keeps what came, answers what ``answer`` says."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.events: list[Any] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[], int] = lambda: 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.bodies.append(body)
                receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                status = receiver.answer()
                if status == 200 and b'"v2.core.event"' not in body:
                    signature = self.headers["stripe-signature"]
                    receiver.events.append(stripe.Webhook.construct_event(body, signature, receiver.secret))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/stripe"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def receiving(secret: str) -> Iterator[Receiver]:
    receiver = Receiver(secret)
    try:
        yield receiver
    finally:
        receiver.close()
