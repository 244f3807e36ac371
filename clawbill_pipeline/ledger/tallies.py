"""Counts that processes of every kind keep together in the ledger, for /metrics: they only grow, and outlive a process.

They are for watching, never for money: what was billed is counted where it is booked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal

from sqlalchemy import Connection, text

#: Upper bounds of a histogram's buckets, in seconds; the last bucket has none.
SECONDS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30")
_BOUNDS = [Decimal(bound) for bound in SECONDS]
#: Labels of a histogram beside its bounds.
BEYOND, SUM = "+Inf", "sum"

Tally = Mapping[tuple[str, str], int | Decimal]


def add_tally(connection: Connection, counts: Tally) -> None:
    """Adds ``counts``, by ``(name, label)``. Last in a transaction: whoever counts the same waits for its end."""
    rows = [(name, label, Decimal(count)) for (name, label), count in sorted(counts.items()) if count]
    if rows:
        names, labels, numbers = zip(*rows, strict=True)
        connection.execute(_ADD, {"names": list(names), "labels": list(labels), "counts": list(numbers)})


_ADD = text("""
    INSERT INTO tallies AS t (name, label, count)
    SELECT * FROM unnest(CAST(:names AS text[]), CAST(:labels AS text[]), CAST(:counts AS numeric[])) g (n, l, c)
    ORDER BY n, l
    ON CONFLICT (name, label) DO UPDATE SET count = t.count + excluded.count
""")


def histogram(name: str, milliseconds: Iterable[Decimal]) -> dict[tuple[str, str], int | Decimal]:
    """A tally of durations: how many fell into each bucket of SECONDS, and their sum in seconds."""
    durations = [duration / 1000 for duration in milliseconds]
    buckets = Counter((*SECONDS, BEYOND)[bisect_left(_BOUNDS, duration)] for duration in durations)
    counts: dict[tuple[str, str], int | Decimal] = {(name, bound): count for bound, count in buckets.items()}
    return counts | {(name, SUM): sum(durations, Decimal(0))} if durations else counts


def read_tallies(connection: Connection) -> dict[str, dict[str, Decimal]]:
    """All counts: label → count by name."""
    found: dict[str, dict[str, Decimal]] = {}
    for name, label, count in connection.execute(text("SELECT name, label, count FROM tallies")):
        found.setdefault(name, {})[label] = count
    return found
