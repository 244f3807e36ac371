"""Who may post usage: tokens, each with the tenants and services that it is good for. No HTTP in here.

A token reads ``clawbill_<name>_<secret>``; the ledger keeps its SHA-256, which is enough for a secret of 256 random
bits. The name leads to the row, so that a comparison is with one hash, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import audit_trail, ingest_tokens

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_TOKEN = re.compile(rf"clawbill_({NAME.pattern})_[\w-]{{20,100}}", re.ASCII)


class TokenError(ValueError):
    """A token can't be added or revoked; the message says why."""


@dataclass(frozen=True)
class Token:
    """A token as the ledger knows it. ``tenants`` and ``services`` are None where it is good for all."""

    name: str
    sha256: str
    tenants: frozenset[str] | None
    services: frozenset[str] | None
    made_at: datetime
    made_by: str
    revoked_at: datetime | None

    def opens(self, presented: str) -> bool:
        """Whether ``presented`` is this token, and it was not revoked."""
        return self.revoked_at is None and hmac.compare_digest(_digest(presented), self.sha256)

    def covers(self, tenant_id: object, service: object) -> bool:
        """Whether it may bring this usage. What is no text is no tenant or service, and judged elsewhere."""
        return all(
            allowed is None or not isinstance(value, str) or value in allowed
            for allowed, value in ((self.tenants, tenant_id), (self.services, service))
        )


def name_of(presented: str) -> str | None:
    """The name in what may be a token; None where it has not the form of one."""
    found = _TOKEN.fullmatch(presented)
    return found[1] if found else None


def add_token(
    ledger: Ledger,
    name: str,
    *,
    tenants: Sequence[str] | None,
    services: Sequence[str] | None,
    now: datetime,
    by: str,
) -> str:
    """A new token, which is shown here once and kept nowhere. Raises TokenError."""
    if not NAME.fullmatch(name):
        raise TokenError(f"{name!r}: a token's name is 1 to 40 lower-case letters, digits and '-', such as acme-prod")
    token = f"clawbill_{name}_{secrets.token_urlsafe(32)}"
    limits = {"tenants": sorted(tenants) if tenants else None, "services": sorted(services) if services else None}
    row = {"name": name, "sha256": _digest(token), **limits, "made_at": now, "made_by": by}
    with ledger.transaction() as connection:
        adding = insert_unless_there(ingest_tokens).values(row).on_conflict_do_nothing()
        if connection.scalar(adding.returning(ingest_tokens.c.name)) is None:
            raise TokenError(f"there is, or was, a token {name!r}; give the new one another name")
        detail = {"by": by, **limits}
        connection.execute(insert(audit_trail).values(at=now, kind="ingest_token.added", subject=name, detail=detail))
    return token


def revoke_token(ledger: Ledger, name: str, *, now: datetime, by: str) -> None:
    """From now on the token opens nothing (a web app may remember it for ten seconds). Raises TokenError."""
    known = ingest_tokens.c
    with ledger.transaction() as connection:
        revoking = update(ingest_tokens).where(known.name == name, known.revoked_at.is_(None)).values(revoked_at=now)
        if not connection.execute(revoking).rowcount:
            raise TokenError(f"no token {name!r} is in use; see: clawbill tokens list")
        row = {"at": now, "kind": "ingest_token.revoked", "subject": name, "detail": {"by": by}}
        connection.execute(insert(audit_trail).values(row))


def find_token(ledger: Ledger, name: str) -> Token | None:
    """The token of that name, revoked or not."""
    with ledger.transaction() as connection:
        row = connection.execute(select(ingest_tokens).where(ingest_tokens.c.name == name)).one_or_none()
    return None if row is None else _token(row)


def all_tokens(ledger: Ledger) -> list[Token]:
    """All tokens by name, revoked ones too."""
    with ledger.transaction() as connection:
        return [_token(row) for row in connection.execute(select(ingest_tokens).order_by(ingest_tokens.c.name))]


def _token(row: Row[Any]) -> Token:
    tenants, services = (None if limit is None else frozenset(limit) for limit in (row.tenants, row.services))
    return Token(row.name, row.sha256, tenants, services, row.made_at, row.made_by, row.revoked_at)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
