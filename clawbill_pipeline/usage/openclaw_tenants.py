"""Whose usage an OpenClaw session bears, where rules of the catalogue tell it: by cell, agent or session key.

A fork begins with copies of the lines before it, under the same ids: they are the usage of the session that they were
copied from, and its tenant's. What is read of the gateway's state is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from clawbill_pipeline.catalog.sources import CellRule
from clawbill_pipeline.usage.events import Fault


class Session(NamedTuple):
    """A session as the gateway keeps it: its key, when it began, and which session it was forked from, if any."""

    key: str
    began: datetime | None = None
    forked_from: str | None = None


class Whose:
    """The rules at work on one agent of one cell. ``read`` gives all sessions by id, as they are now."""

    def __init__(
        self, rules: Sequence[CellRule], cell: str, agent: str, read: Callable[[], Mapping[str, Session]]
    ) -> None:
        self._rules = rules
        self._known = {"cell": cell, "agent": agent}
        self._read = read
        self._sessions: Mapping[str, Session] | None = None

    def tenant(self, session: str, at: datetime) -> str:
        """The tenant of what was used in ``session`` at that moment. Raises Fault where no rule fits."""
        key: str | None = None
        for rule in self._rules:
            if rule.by == "session_key" and key is None:
                key = self._key(session, at)
            found = re.search(rule.pattern, (key or "") if rule.by == "session_key" else self._known[rule.by])
            if found is not None:
                return rule.tenant or found[1]
        told = f"cell {self._known['cell']!r}, agent {self._known['agent']!r}"
        if key is not None:
            told += f", session key {key!r}" if key else f", session {session!r} without a key"
        raise Fault("no_tenant", "tenants", f"no rule of `tenants` fits {told}; add one, then replay this line")

    def _key(self, session: str, at: datetime) -> str:
        if self._sessions is None or session not in self._sessions:
            self._sessions = {session: Session(""), **self._read()}
        sessions, seen = self._sessions, {session}
        found = sessions[session]
        while found.forked_from is not None and found.began is not None and at < found.began:
            if found.forked_from not in sessions or found.forked_from in seen:
                break
            seen.add(found.forked_from)
            found = sessions[found.forked_from]
        return found.key
