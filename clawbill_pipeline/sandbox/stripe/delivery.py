"""Delivers queued events to webhook endpoints: signed, retried with backoff for three days, without any order.

Attempts are timed and signed by the real clock (a receiver checks the signature's age against its own); only what an
event says is on the sandbox's clock. Queue and outcome are in the store, so a killed sandbox goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from contextlib import suppress

import httpx
from stripe import WebhookSignature

from clawbill_pipeline.sandbox.stripe.clock import Clock
from clawbill_pipeline.sandbox.stripe.core import Call, Document
from clawbill_pipeline.sandbox.stripe.events import event_document
from clawbill_pipeline.sandbox.stripe.store import Store
from clawbill_pipeline.sandbox.stripe.thin_events import notification

_GIVE_UP_SECONDS = 3 * 86_400
_LONGEST_WAIT = 3_600.0
_AT_ONCE = 4


class Delivery:
    """The worker behind the webhooks. ``run()`` is its task; ``flush()`` attempts all that waits, now."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._woken = asyncio.Event()
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._flushes: list[set[int]] = []
        self._attempted = asyncio.Condition()
        self._client = httpx.AsyncClient(timeout=20, trust_env=False)
        store.wake_delivery = lambda: store.after_commit(self._woken.set)

    async def run(self) -> None:
        """Attempts what is due, until cancelled."""
        try:
            async with self._client:
                while True:
                    self._woken.clear()
                    await self._store.durable()
                    now = time.time()  # One now for both: what falls due between them must not be missed.
                    self._start(now)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), self._pause(now))
        finally:
            for task in self._under_way.values():
                task.cancel()

    async def flush(self, account: str | None = None) -> dict[str, int]:
        """Attempts each waiting delivery once, whatever its backoff; returns how many are in which state since ever.

        Of ``account``, or of all accounts.
        """
        mine, values = (" AND account = ?", (account,)) if account else ("", ())
        self._store.begin()
        sql = f"UPDATE deliveries SET next_at = 0 WHERE state = 'pending'{mine} RETURNING seq"  # noqa: S608 (own text)
        waiting = {row["seq"] for row in self._store.db.execute(sql, values).fetchall()}
        await self._store.durable()
        self._flushes.append(waiting)
        self._woken.set()
        async with self._attempted:
            await self._attempted.wait_for(lambda: not waiting)
        self._flushes.remove(waiting)
        sql = f"SELECT state, count(*) AS n FROM deliveries WHERE true{mine} GROUP BY state"  # noqa: S608 (own text)
        counts = {row["state"]: row["n"] for row in self._store.db.execute(sql, values)}
        return {state: counts.get(state, 0) for state in ("delivered", "failed", "pending")}

    def _pause(self, now: float) -> float | None:
        """Seconds until the next retry; None while all slots are taken or nothing waits (an attempt's end wakes)."""
        if len(self._under_way) >= _AT_ONCE:
            return None
        sql = "SELECT min(next_at) AS soonest FROM deliveries WHERE state = 'pending' AND next_at > ?"
        soonest = self._store.db.execute(sql, (now,)).fetchone()["soonest"]
        return None if soonest is None else max(0.0, soonest - time.time())

    def _start(self, now: float) -> None:
        sql = "SELECT * FROM deliveries WHERE state = 'pending' AND next_at <= ? ORDER BY next_at, rank, seq LIMIT ?"
        for row in self._store.db.execute(sql, (now, _AT_ONCE + len(self._under_way))).fetchall():
            if len(self._under_way) >= _AT_ONCE:
                break
            if row["seq"] not in self._under_way:
                self._under_way[row["seq"]] = asyncio.create_task(self._attempt(row))

    async def _attempt(self, row: sqlite3.Row) -> None:
        try:
            answer = await self._send(row)
            self._settle(row, answer)
            await self._store.durable()
        finally:
            del self._under_way[row["seq"]]
            for waiting in self._flushes:
                waiting.discard(row["seq"])
            self._woken.set()
            async with self._attempted:
                self._attempted.notify_all()

    async def _send(self, row: sqlite3.Row) -> str:
        """What came of it: "2xx", another status, or the error. Never raises for what a receiver does."""
        endpoint = self._endpoint(row)
        if endpoint is None or endpoint["status"] != "enabled":
            return "the endpoint is gone or disabled"
        call = Call(self._store, self._clock, row["account"])
        data = self._store.db.execute("SELECT data FROM events WHERE id = ?", (row["event"],)).fetchone()["data"]
        body = json.dumps(event_document(call, data), indent=2) if not row["thin"] else notification(data)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": WebhookSignature.generate_signature_header(body, endpoint["_secret"]),
        }
        try:
            answer = await self._client.post(endpoint["url"], content=body.encode(), headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__
        return "2xx" if answer.is_success else f"status {answer.status_code}"

    def _endpoint(self, row: sqlite3.Row) -> Document | None:
        return self._store.get(row["account"], "webhook_endpoint", row["endpoint"]) or self._store.get(
            "*", "webhook_endpoint", row["endpoint"]
        )

    def _settle(self, row: sqlite3.Row, answer: str) -> None:
        now, attempts = time.time(), row["attempts"] + 1
        first = row["first_at"] or now
        base = float(self._store.setting(row["account"], "webhook_retry_seconds", 1.0))
        wait = min(base * 2 ** (attempts - 1), _LONGEST_WAIT) * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)
        if answer == "2xx":
            state = "delivered"
        elif self._endpoint(row) is None or now + wait > first + _GIVE_UP_SECONDS:
            state = "failed"
        else:
            state = "pending"
        self._store.begin()
        self._store.db.execute(
            "UPDATE deliveries SET state = ?, attempts = ?, next_at = ?, first_at = ?, answer = ? WHERE seq = ?",
            (state, attempts, now + wait, first, answer, row["seq"]),
        )
