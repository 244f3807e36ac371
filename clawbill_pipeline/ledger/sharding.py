"""Shards: an hour that is too large for one worker is shared out by a hash of the tenant. Does no work.

A tenant's bucket is the same here, in PostgreSQL (the function ``ledger.bucket``) and in DuckDB, for ever. Tenants that
share a Stripe customer have their payer's, so that what goes into one usage record is never parted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.ledger.sharing import Sharing, read_sharing

#: So many parts an hour can have at most; a shard is some of them, side by side.
BUCKETS = 256


def bucket(tenant_id: str) -> int:
    """0 to 255."""
    return hashlib.sha256(tenant_id.encode()).digest()[0]


#: The same in DuckDB.
DUCK_BUCKET = "CAST('0x' || left(sha256({tenant}), 2) AS UTINYINT)"


@dataclass(frozen=True, order=True)
class Shard:
    """One of ``of`` parts of all tenants, counted from 1. Written ``2/4``."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= BUCKETS:
            raise ValueError(f"{self} is no shard: write 2/4 for the second of four; there are at most {BUCKETS}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/4`` as a shard. Raises ValueError."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise ValueError(f"{text!r} is no shard: write 2/4 for the second of four")
        return cls(int(number), int(of))

    @property
    def buckets(self) -> range:
        first, after = (-(-BUCKETS * number // self.of) for number in (self.number - 1, self.number))
        return range(first, after)


def shards(of: int) -> list[Shard | None]:
    """What an hour is shared out into: that many shards, or None, which is all of it."""
    return [Shard(number, of) for number in range(1, of + 1)] if of > 1 else [None]


@dataclass(frozen=True)
class Share:
    """The tenants of a shard, or all of them, as they share customers at one moment."""

    shard: Shard | None = None
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def whole(self) -> bool:
        return self.shard is None

    @property
    def layout(self) -> str:
        """The same for all shards whose tenants together are all there are, each of them once."""
        payers = json.dumps(sorted(self.sharing.payers.items()))
        return hashlib.sha256(payers.encode()).hexdigest()[:16] if self.sharing.payers else ""

    @property
    def name(self) -> str:
        """One word for these tenants; empty for all of them."""
        return f"{self.shard.number}-of-{self.shard.of}{self.layout and f'-{self.layout}'}" if self.shard else ""

    def holds(self, tenant_id: str) -> bool:
        return self.shard is None or bucket(self.sharing.payer(tenant_id)) in self.shard.buckets

    @property
    def parameters(self) -> dict[str, Any]:
        """What a query with ``in_share`` is given."""
        if self.shard is None:
            return {"first_bucket": None, "last_bucket": None, "payers": "{}"}
        buckets = self.shard.buckets
        return {
            "first_bucket": buckets[0],
            "last_bucket": buckets[-1],
            "payers": json.dumps(dict(self.sharing.payers)),
        }


#: All tenants.
ALL = Share()


def share_of(connection: Connection, shard: Shard | None) -> Share:
    """The tenants of ``shard`` as they share customers now."""
    return ALL if shard is None else Share(shard, read_sharing(connection))


def in_share(tenant: str) -> str:
    """SQL: whether the tenant, a column, is of the share whose ``parameters`` are given."""
    group = f"coalesce(CAST(:payers AS jsonb) ->> {tenant}, {tenant})"
    return f"(CAST(:first_bucket AS integer) IS NULL OR bucket({group}) BETWEEN :first_bucket AND :last_bucket)"


def due_anew(connection: Connection, share: Share, start: datetime, end: datetime) -> None:
    """Makes hours of ``[start, end)`` due again whose shard was metered while tenants shared customers in another way.

    For what comes after metering: a tenant that has moved to another shard since is neither's to rate or to bill.
    """
    if share.shard is not None:
        given = {"shards": share.shard.of, "shard": share.shard.number, "layout": share.layout}
        connection.execute(_DUE_ANEW, {**given, "start": start, "end": end})


_DUE_ANEW = text("""
    INSERT INTO hour_recounts (hour, asked, done)
    SELECT hour, 1, 0 FROM (
        SELECT DISTINCT ON (hour) hour, layout FROM metered_shards
        WHERE hour >= :start AND hour < :end AND shards = :shards AND shard = :shard
        ORDER BY hour, landings DESC, recounts DESC, metered_at DESC) AS newest
    WHERE layout <> :layout
    ON CONFLICT (hour) DO UPDATE SET asked = hour_recounts.asked + 1
""")
