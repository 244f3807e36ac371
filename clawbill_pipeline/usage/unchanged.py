"""Which inputs need no look, since they are what they were when all of them had been read. A cache, no more.

Without it every input is compared with what was landed of it, byte by byte. It lies in the lake, a file a source.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.lake import Lake
from clawbill_pipeline.usage.inputs import Input


class Unchanged:
    """What one source's inputs were like: the landing that read each of them to its end, and its stamp before that.

    ``through`` is the newest landing of the source that this was compared with. So the ledger is asked for later ones
    alone, however many there are: of each it is the later landing that counts.
    """

    def __init__(self, lake: Lake, source: str) -> None:
        self._folder, self._name, self._source = lake.folder, f"sources/{source}.json", source
        try:
            kept = json.loads(self._folder.read(self._name))
        except (FileNotFoundError, ValueError):
            kept = {}
        # Earlier versions kept the stamps alone.
        self._kept: dict[str, Any] = kept if isinstance(kept.get("stamps"), dict) else {"stamps": kept}
        self._through: dict[str, Any] | None = self._kept.get("through")
        self._stamps: dict[str, list[Any]] = {**self._kept["stamps"]}

    def compare(self, connection: Connection) -> None:
        """Drops what the ledger knows better: another worker's landings, or all where it is another ledger."""
        newest = connection.execute(_NEWEST, {"source": self._source}).mappings().first()
        if self._stamps:
            asked = {"source": self._source, **(self._through or {"id": 0, "run_id": "", "sha256": ""})}
            since = connection.scalar(_KNOWN, asked) or 0
            rows = connection.execute(_LATER, {"source": self._source, "since": since})
            later = {row.uri: row.newest for row in rows}
            self._stamps = {
                uri: kept
                for uri, kept in self._stamps.items()
                if (kept[0] == later[uri] if uri in later else kept[0] <= since)
            }
        # It was asked for first: what came meanwhile is later the next time as well.
        self._through = dict(newest) if newest is not None else None

    def holds(self, input: Input) -> bool:
        stamp, kept = input.stamp(), self._stamps.get(input.uri)
        return stamp is not None and kept is not None and kept[1:] == [*stamp]

    def forget(self, uri: str) -> None:
        """To be called before an input is read."""
        self._stamps.pop(uri, None)

    def remember(self, uri: str, landing_id: int, stamp: Sequence[int | str] | None) -> None:
        """``landing_id`` is the newest of an input that was read to its end, ``stamp`` what it had before that."""
        if stamp is not None:
            self._stamps[uri] = [landing_id, *stamp]

    def keep(self) -> None:
        found = {"through": self._through, "stamps": self._stamps}
        if self._stamps and found != self._kept:
            with self._folder.made(self._name) as path:
                path.write_text(json.dumps(found), encoding="utf-8")


# Replays go by themselves: they say nothing of how far an input was read.
_NEWEST = text("""
    SELECT id, run_id, sha256 FROM landings
    WHERE source = :source AND position NOT LIKE 'replay of %' ORDER BY id DESC LIMIT 1
""")
_KNOWN = text("SELECT id FROM landings WHERE id = :id AND source = :source AND run_id = :run_id AND sha256 = :sha256")
_LATER = text("""
    SELECT uri, max(id) AS newest FROM landings
    WHERE source = :source AND id > :since AND position NOT LIKE 'replay of %' GROUP BY uri
""")
