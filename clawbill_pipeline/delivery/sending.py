"""From the outbox to Stripe: sends what is planned, and settles what became of it, so that each record has one effect.

The intent is committed before the call (``sending``), and every retry goes under the same identifier. What is planned
is ``planning``'s, how a call looks is ``backends``', the rows are ``outbox``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
import stripe

from clawbill_pipeline.catalog import Catalog, UnknownTenant
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.delivery.backends import (
    BACKENDS,
    FURTHEST_AHEAD,
    OLDEST,
    UNSENDABLE,
    Intent,
    Session,
    payload_hash,
)
from clawbill_pipeline.delivery.errors import account_is_refused, had_no_effect, may_work_later, retry_after, said
from clawbill_pipeline.delivery.outbox import (
    Claims,
    Lane,
    Move,
    OutboxRow,
    claiming,
    delivered_before,
    due_lanes,
    mark_sending,
    open_rows,
    take_rejections,
    write_moves,
)
from clawbill_pipeline.delivery.pacing import Backoff, TokenBucket
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.sharding import Shard
from clawbill_pipeline.ledger.tallies import Tally, add_tally
from clawbill_pipeline.ledger.turns import tell, whom
from clawbill_pipeline.money import total
from clawbill_pipeline.results import Check
from clawbill_pipeline.settings import refuse_live
from clawbill_pipeline.stripe_api import StripeApi

log = logging.getLogger(__name__)

#: How long Stripe surely knows an identifier (24 h), less some time for a last call.
IDENTIFIER_LIFE = timedelta(hours=24) - timedelta(minutes=5)
#: A wait that Stripe asks for and that is longer than this is left to the next delivery.
_LONGEST_WAIT = 60.0
_LANES_AT_ONCE = 100
_FLUSH_SECONDS = 0.1
#: How often a customer's meter that another delivery has in hand is asked for again, and how long at most.
_BUSY_SECONDS, _BUSY_AT_MOST = 0.25, 600.0

Clock = Callable[[], datetime]


class DeliveryRefused(RuntimeError):
    """Stripe refuses the key, so nothing can be delivered."""


@dataclass(frozen=True)
class Delivered:
    """What a delivery came to, in records. ``waiting`` go on by themselves, ``parked`` ones wait for a person."""

    delivered: int = 0
    #: Of the delivered: Stripe had them already from an earlier attempt.
    duplicates: int = 0
    rejected: int = 0
    unknown: int = 0
    waiting: int = 0
    parked: int = 0
    retries: int = 0
    #: Answers 429: Stripe asked to go slower.
    rate_limited: int = 0
    #: Delivered before, and rejected by Stripe since: a 200 is not the end.
    rejected_later: int = 0
    #: Customers' meters that another delivery still had in hand in the end: theirs to send, or the next one's.
    busy: int = 0
    #: Why the delivery ended early, or None.
    stopped: str | None = None
    #: Runs that were sending for the same customers.
    waited_for: str | None = None

    @property
    def checks(self) -> tuple[Check, ...]:
        settled = not (
            self.rejected
            or self.rejected_later
            or self.unknown
            or self.waiting
            or self.busy
            or self.parked
            or self.stopped
        )
        return (
            Check(
                "outbox_is_delivered",
                settled,
                self.stopped
                or (
                    "every record that was due is at Stripe"
                    if settled
                    else "see `clawbill outbox list` for the reasons"
                ),
                {
                    "delivered": self.delivered,
                    "rejected": self.rejected + self.rejected_later,
                    "unknown": self.unknown,
                    "waiting": self.waiting,
                    "parked": self.parked,
                },
            ),
        )


def deliver(
    ledger: Ledger,
    catalog: Catalog,
    api: StripeApi,
    *,
    now: Clock,
    run_id: str,
    customers: Collection[str] | None = None,
    shard: Shard | None = None,
    backoff: Backoff = Backoff(),  # noqa: B008 -- immutable
) -> Delivered:
    """Sends every record of the outbox that is due, once, or of ``customers`` or ``shard`` alone, and says what became
    of each.

    Several deliveries at once share the work: none sends a customer's meter while another one does, but waits, and then
    sends what the other one had not seen. One customer's
    failure leaves everyone else's records flowing. Raises LedgerError when the database is away, SettingsError for a
    live key not allowed.
    """
    refuse_live(api.key, live_allowed=catalog.live)
    rejected_later = take_rejections(ledger, now())
    with claiming(ledger, run_id) as claims:
        work = _Delivery(ledger, catalog, api, claims, now, run_id, backoff, customers, shard)
        asyncio.run(work.run())
    with ledger.transaction() as connection:
        add_tally(connection, _watched(work.counts))
    return replace(work.result(), rejected_later=rejected_later)


def _watched(counts: Mapping[str, int]) -> Tally:
    """What /metrics says of a delivery."""
    calls = ("retries", "rate_limited")
    return {("delivery_calls" if name in calls else "delivery_records", name): n for name, n in counts.items()}


class _Turn(NamedTuple):
    """Lanes in hand, with their rows to send in order. Several lanes where one call takes many records."""

    lanes: list[Lane]
    rows: list[OutboxRow]


def sendable(rows: Sequence[OutboxRow], now: datetime) -> Iterator[OutboxRow]:
    """Which open ``rows`` of one lane may be sent now, in an order in which a correction never overtakes.

    A revision waits for the ones before it in its window, parked ones too: on an hourly meter the last to arrive wins,
    and a difference builds on what came before. Only what Stripe would never take is passed over.
    """
    blocked: datetime | None = None
    for row in rows:
        if row.window_start == blocked:
            continue
        if row.parked is None and (row.next_attempt_at is None or row.next_attempt_at <= now):
            yield row
        elif row.parked != UNSENDABLE:
            blocked = row.window_start


def next_call(rows: Sequence[OutboxRow]) -> tuple[list[OutboxRow], list[OutboxRow]]:
    """The rows of the next call, and the rest. Revisions of one window never travel together: order decides there."""
    backend = BACKENDS[rows[0].backend]
    if backend.most == 1:
        return [rows[0]], list(rows[1:])
    chosen: list[OutboxRow] = []
    rest: list[OutboxRow] = []
    windows: set[tuple[Lane, datetime]] = set()
    for row in rows:
        window = (row.lane, row.window_start)
        fits = len(chosen) < backend.most and row.backend == backend.name and window not in windows
        (chosen if fits else rest).append(row)
        windows.add(window)
    return chosen, rest


def together(turns: Iterable[_Turn]) -> Iterator[_Turn]:
    """Lanes whose backend takes many records a call share a turn, until it has a call's worth."""
    shared = _Turn([], [])
    for turn in turns:
        most = BACKENDS[turn.rows[0].backend].most if turn.rows else 1
        if most == 1:
            yield turn
            continue
        shared.lanes.extend(turn.lanes)
        shared.rows.extend(turn.rows)
        if len(shared.rows) >= most:
            yield shared
            shared = _Turn([], [])
    if shared.lanes:
        yield shared


def hindrance(row: OutboxRow, now: datetime) -> Move | None:
    """Why ``row`` must not be sent now, as what becomes of it; None if nothing is in its way."""
    if payload_hash(row.payload) != row.payload_sha256:
        return _parked(
            row, now, "payload_changed", "the payload is not the one that was planned; restore it or re-plan"
        )
    if row.event_timestamp > now + FURTHEST_AHEAD:
        return replace(_restored(row, now), error="Stripe takes no future usage", next_attempt_at=row.event_timestamp)
    if row.event_timestamp < now - OLDEST and not row.doubtful:
        return _too_old(row, now)
    return None


def _too_old(row: OutboxRow, now: datetime) -> Move:
    return _parked(
        row, now, "too_old", f"Stripe takes no usage older than {OLDEST.days} days; bill it by an adjustment instead"
    )


def _parked(row: OutboxRow, now: datetime, reason: str, error: str, *, doubtful: bool | None = None) -> Move:
    doubtful = row.doubtful if doubtful is None else doubtful
    return Move(row, "unknown" if doubtful else "planned", now, parked=reason, error=error)


def _open(row: OutboxRow, now: datetime, lost: bool, error: str) -> Move:
    """Still to be sent, after a call that failed; unknown if an answer got lost."""
    return Move(row, "unknown" if row.doubtful or lost else "planned", now, error=error)


def _restored(row: OutboxRow, now: datetime) -> Move:
    """As it was before it was marked: it was not its turn after all."""
    return Move(row, "unknown" if row.doubtful else "planned", now)


@dataclass
class _Delivery:
    """One call of ``deliver``: a feeder that claims lanes, workers that send them, a writer that commits outcomes."""

    ledger: Ledger
    catalog: Catalog
    api: StripeApi
    claims: Claims
    now: Clock
    run_id: str
    backoff: Backoff
    customers: Collection[str] | None = None
    shard: Shard | None = None
    busy: int = 0
    waited: frozenset[str] = frozenset()
    counts: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None
    _moves: list[Move] = field(default_factory=list)
    _done: list[Lane] = field(default_factory=list)

    def result(self) -> Delivered:
        return Delivered(**self.counts, stopped=self.stopped, busy=self.busy, waited_for=whom(self.waited))

    async def run(self) -> None:
        self._bucket = TokenBucket(self.catalog.delivery.calls_per_second)
        self._turns: asyncio.Queue[_Turn | None] = asyncio.Queue(maxsize=_LANES_AT_ONCE)
        self._claiming = asyncio.Lock()
        finished = asyncio.Event()
        async with self.api.session() as client, asyncio.TaskGroup() as tasks:
            self._session = Session(client)
            tasks.create_task(self._write(finished))
            tasks.create_task(self._send_all(finished))

    async def _send_all(self, finished: asyncio.Event) -> None:
        workers = self.catalog.delivery.concurrency
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed(workers))
                for _ in range(workers):
                    tasks.create_task(self._work())
        except* DeliveryRefused as refused:
            self.stopped = str(refused.exceptions[0])
        finally:
            while not self._turns.empty():
                if (turn := self._turns.get_nowait()) is not None:
                    self._leave(turn.rows)
            finished.set()

    async def _feed(self, workers: int) -> None:
        lanes = await asyncio.to_thread(self._due)
        since = time.monotonic()
        while lanes:
            if not (busy := await self._feed_lanes(lanes)):
                break
            if not self.waited:
                async with self._claiming:
                    self.waited = await asyncio.to_thread(self.claims.holders, busy)
                tell(self.waited, "delivery")
            if time.monotonic() - since > _BUSY_AT_MOST:
                self.busy = len(busy)
                break
            await asyncio.sleep(_BUSY_SECONDS)
            due = set(await asyncio.to_thread(self._due))
            lanes = [lane for lane in busy if lane in due]
        for _ in range(workers):
            await self._turns.put(None)

    def _due(self) -> list[Lane]:
        lanes = due_lanes(self.ledger, self.now(), self.shard)
        return [lane for lane in lanes if self.customers is None or lane[0] in self.customers]

    async def _feed_lanes(self, lanes: list[Lane]) -> list[Lane]:
        """Hands the lanes that are free to the workers; returns those that others hold."""
        busy: list[Lane] = []
        for start in range(0, len(lanes), _LANES_AT_ONCE):
            wanted = lanes[start : start + _LANES_AT_ONCE]
            async with self._claiming:
                taken = await asyncio.to_thread(self.claims.take, wanted)
                turns, moves = await asyncio.to_thread(self._prepare, taken)
            busy += set(wanted).difference(taken)
            for move in moves:
                self._settle(move)
            for turn in together(turns):
                await self._turns.put(turn)
        return busy

    def _prepare(self, lanes: list[Lane]) -> tuple[list[_Turn], list[Move]]:
        """Reads what lanes of ours hold now, and commits that it is being sent; also what can't be sent."""
        now = self.now()
        turns, moves = [], []
        for lane, rows in open_rows(self.ledger, lanes).items():
            due = []
            for row in sendable(rows, now):
                if (move := hindrance(row, now)) is not None:
                    moves.append(move)
                else:
                    due.append(row)
            turns.append(_Turn([lane], due))
        if sending := [row for turn in turns for row in turn.rows]:
            mark_sending(self.ledger, sending, now)
        return turns, moves

    async def _work(self) -> None:
        while (turn := await self._turns.get()) is not None:
            await self._send_turn(turn)
            self._done += turn.lanes

    async def _send_turn(self, turn: _Turn) -> None:
        """Sends call after call. What fails for now ends its lane: the lane's other rows wait with it."""
        rows = turn.rows
        ended: set[Lane] = set()
        held: set[tuple[Lane, datetime]] = set()
        try:
            while rows:
                chunk, rows = next_call(rows)
                for move in await self._send(chunk):
                    self._settle(move)
                    row = move.row
                    if move.parked in _WHOLE_LANE:
                        ended.add(row.lane)
                        others, rows = [r for r in rows if r.lane == row.lane], [r for r in rows if r.lane != row.lane]
                        for other in others:
                            self._settle(_parked(other, move.at, str(move.parked), str(move.error)))
                    elif move.parked is not None or (move.state == "rejected" and not BACKENDS[row.backend].absolute):
                        held.add((row.lane, row.window_start))
                    elif move.state not in ("delivered", "rejected"):
                        ended.add(row.lane)
                if ended or held:
                    self._leave([r for r in rows if r.lane in ended or (r.lane, r.window_start) in held])
                    rows = [r for r in rows if r.lane not in ended and (r.lane, r.window_start) not in held]
        finally:
            # The call in flight may have had its effect: it stays ``sending``, and the next delivery finds out.
            self._leave(rows)

    def _leave(self, rows: Sequence[OutboxRow]) -> None:
        now = self.now()
        for row in rows:
            self._settle(_restored(row, now))

    def _settle(self, move: Move) -> None:
        self._moves.append(move)
        if move.parked is not None:
            self.counts["parked"] += 1
        else:
            self.counts[{"planned": "waiting", "sending": "waiting"}.get(move.state, move.state)] += 1

    async def _send(self, rows: Sequence[OutboxRow]) -> list[Move]:
        """The records of one call to their end: delivered, rejected, parked, or still open after the last attempt."""
        moves, fresh = [], []
        for row in rows:
            if row.doubtful and row.first_sent_at is not None and self.now() - row.first_sent_at >= IDENTIFIER_LIFE:
                # Stripe may have forgotten the identifier: sent again, a difference would count twice.
                move = await self._settled_by_summary(row)
                if move is None and row.event_timestamp < self.now() - OLDEST:
                    move = _too_old(row, self.now())
                if move is not None:
                    moves.append(move)
                    continue
            fresh.append(row)
        return moves + (await self._call(fresh) if fresh else [])

    async def _call(self, rows: Sequence[OutboxRow], lost: bool = False) -> list[Move]:
        """Calls until there is an answer or patience ends. ``lost``: an earlier answer got lost."""
        backend = BACKENDS[rows[0].backend]
        intents = [Intent(row.identifier, row.payload) for row in rows]
        problem, wait = "", 0.0
        for attempt in range(1, self.catalog.delivery.attempts + 1):
            if attempt > 1:
                wait = max(wait, self.backoff.before(attempt))
                if wait > _LONGEST_WAIT:
                    break
                self.counts["retries"] += 1
                await asyncio.sleep(wait)
            await self._bucket.take()
            try:
                answer = await backend.send(self._session, intents)
            except stripe.StripeError as error:
                if account_is_refused(error):
                    for row in rows:
                        self._settle(_open(row, self.now(), lost, said(error)))
                    raise DeliveryRefused(said(error)) from None
                if not may_work_later(error):
                    if len(rows) == 1:
                        return [await self._refused(rows[0], error, rows[0].doubtful or lost)]
                    half = len(rows) // 2
                    return await self._call(rows[:half], lost) + await self._call(rows[half:], lost)
                lost = lost or not had_no_effect(error)
                self.counts["rate_limited"] += error.http_status == HTTPStatus.TOO_MANY_REQUESTS
                problem, wait = said(error), retry_after(error) or 0.0
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                lost = True
                problem, wait = f"the answer got lost: {type(error).__name__}", 0.0
            else:
                return [Move(row, "delivered", self.now(), answer=answer) for row in rows]
        wait = max(wait, self.backoff.before(rows[0].attempts + 2))
        now = self.now()
        later = now + timedelta(seconds=wait)
        return [replace(_open(row, now, lost, problem), next_attempt_at=later) for row in rows]

    async def _refused(self, row: OutboxRow, error: stripe.StripeError, doubtful: bool) -> Move:
        """What a final no means: a duplicate is a yes, an object that is missing concerns the whole lane."""
        now, message = self.now(), said(error)
        if isinstance(error, stripe.IdempotencyError):
            return _parked(row, now, "identifier_taken", message, doubtful=doubtful)
        if _is_duplicate(error):
            if doubtful:
                # Ours: this ledger sent it before, with the payload whose hash was checked.
                self.counts["duplicates"] += 1
                return Move(row, "delivered", now, answer=json.dumps({"duplicate": message}))
            move = await self._settled_by_summary(row)
            if move is not None and move.state == "delivered":
                self.counts["duplicates"] += 1
                return move
            return _parked(
                row,
                now,
                "identifier_taken",
                "Stripe has an event of this identifier that this ledger never sent, and Stripe's total does not show "
                "that it is the same; compare them, then retry or park for good",
            )
        if reason := _missing_object(error):
            return _parked(row, now, reason, message, doubtful=doubtful)
        return Move(row, "rejected", now, error=message)

    async def _settled_by_summary(self, row: OutboxRow) -> Move | None:
        """What Stripe's total of the window proves; None if it proves that the record is not there."""
        now = self.now()
        if not BACKENDS[row.backend].totals:
            return None
        if row.meter_id is None:
            return _parked(row, now, "unmapped", "the tenant's subscription item is gone from the map; provision again")
        try:
            held = await self._held(row)
        except (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError) as error:
            problem = said(error) if isinstance(error, stripe.StripeError) else type(error).__name__
            wait = timedelta(seconds=self.backoff.before(row.attempts + 2))
            return Move(
                row, "unknown", now, error=f"Stripe's total can't be read: {problem}", next_attempt_at=now + wait
            )
        if BACKENDS[row.backend].absolute:
            before = None
            after = row.value
        else:
            await self._commit()  # an earlier revision may have been settled a moment ago
            before = await asyncio.to_thread(delivered_before, self.ledger, row)
            after = before + row.value
        if held == after:
            return Move(row, "delivered", now, answer=json.dumps({"settled_by_summary": str(held)}))
        if before is None or held == before:
            return None
        return _parked(
            row,
            now,
            "unclear_total",
            f"Stripe holds {held} for the window; {before} without this record, {after} with it: find out, then retry",
            doubtful=True,
        )

    async def _held(self, row: OutboxRow) -> Decimal:
        """What Stripe holds for the row's window."""
        end = row.hour + HOUR
        with contextlib.suppress(UnknownTenant):
            end = min(end, self.catalog.tenant(row.tenant_id).period_at(row.window_start).end)
        await self._bucket.take()
        page = await self._session.client.v1.billing.meters.event_summaries.list_async(
            str(row.meter_id),
            {
                "customer": row.customer_id,
                "start_time": int(row.window_start.timestamp()),
                "end_time": int(end.timestamp()),
            },
        )
        return total(Decimal(str(summary.aggregated_value)) for summary in page.data)

    async def _write(self, finished: asyncio.Event) -> None:
        """Commits outcomes a few times a second, and only then lets go of the lanes they belong to."""
        try:
            while not (finished.is_set() and not self._moves and not self._done):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(finished.wait(), _FLUSH_SECONDS)
                await self._commit()
        except asyncio.CancelledError:
            write_moves(self.ledger, self._moves, self.run_id)
            raise

    async def _commit(self) -> None:
        async with self._claiming:
            await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        moves, done = self._moves, self._done
        self._moves, self._done = [], []
        if moves:
            write_moves(self.ledger, moves, self.run_id)
            _log(moves)
        if done:
            self.claims.release(done)


def _log(moves: Iterable[Move]) -> None:
    for move in moves:
        if move.state == "rejected" or move.parked is not None:
            row = move.row
            about = {"tenant": row.tenant_id, "service": row.service, "hour": row.hour, "identifier": row.identifier}
            why = {"state": move.state, "parked": move.parked, "error": move.error}
            log.info("not delivered", extra={"fields": {**about, **why}})


#: Reasons that hold for every record of a customer and meter.
_WHOLE_LANE = ("no_such_customer", "no_such_meter", "no_such_item")


def _is_duplicate(error: stripe.StripeError) -> bool:
    return error.http_status == 400 and "already exists with identifier" in str(error.user_message)


def _missing_object(error: stripe.StripeError) -> str | None:
    if error.code != "resource_missing":
        return None
    message = str(error.user_message).lower()
    if "customer" in message:
        return "no_such_customer"
    return "no_such_meter" if "meter" in message else "no_such_item"
