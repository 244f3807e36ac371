"""What the hours of a simulated month cost, as counts that mean the same on any machine, and what they leave behind:
statements and rows read in the ledger, bytes read, memory, sizes of tables and lake. CPU time is only shown.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from clawbill_pipeline.ledger.tables import metadata

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: By table (partitions added up): rows that PostgreSQL has read so far, rows that were ever written, bytes on disk.
_TABLES = """
SELECT s.schemaname, coalesce(parent.relname, c.relname),
  sum(coalesce(s.seq_tup_read, 0) + coalesce(s.idx_tup_fetch, 0)), sum(s.n_tup_ins), sum(pg_total_relation_size(c.oid))
FROM pg_class c JOIN pg_stat_user_tables s ON s.relid = c.oid
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
GROUP BY 1, 2 ORDER BY 1, 2
"""


@dataclass
class Hour:
    """What one hour's runs took, in this process and in the database."""

    cpu: float = 0.0
    statements: int = 0
    bytes_read: int = 0
    rows_read: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """What is there: memory of this process and of the web app, the ledger's and Dagster's tables as (rows ever
    written, bytes), lake files."""

    memory: int
    web_memory: int
    tables: dict[str, tuple[int, int]]
    dagster: dict[str, tuple[int, int]]
    lake_files: int
    lake_bytes: int


class Meter:
    """Counts in this process and its database."""

    def __init__(self, dsn: str, lake: Path) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._lake = lake
        self._statements = 0
        event.listen(Engine, "before_cursor_execute", self._count)

    def close(self) -> None:
        event.remove(Engine, "before_cursor_execute", self._count)
        self._connection.close()

    def _count(self, connection: Any, cursor: Any, *_: object) -> None:
        # The ledger is reached by psycopg 3, Dagster's storage by psycopg2.
        self._statements += connection.engine.driver == "psycopg"

    @contextmanager
    def hour(self) -> Iterator[Hour]:
        """What happens within, once it is over."""
        made = Hour()
        before = (_cpu(), self._statements, _bytes_read(), self._rows_read())
        yield made
        made.cpu = _cpu() - before[0]
        made.statements = self._statements - before[1]
        made.bytes_read = _bytes_read() - before[2]
        after = self._rows_read()
        made.rows_read = {name: rows - before[3].get(name, 0) for name, rows in after.items()}

    def left(self, web: int) -> Left:
        """What there is now; ``web`` is the web app's process."""
        gc.collect()
        ledger, dagster = (
            {name: each[1:] for name, each in self._tables(is_ours).items()} for is_ours in (True, False)
        )
        files = [path.stat().st_size for path in self._lake.rglob("*") if path.is_file()]
        return Left(_memory("self"), _memory(web), ledger, dagster, len(files), sum(files))

    def _rows_read(self) -> dict[str, int]:
        return {name: each[0] for name, each in self._tables(True).items()}

    def _tables(self, is_ours: bool) -> dict[str, tuple[int, int, int]]:
        rows = self._connection.execute(_TABLES).fetchall()
        return {
            row[1]: (int(row[2]), int(row[3]), int(row[4])) for row in rows if (row[0] == metadata.schema) == is_ours
        }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_of(process: int) -> float:
    """Seconds of CPU time that another process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _bytes_read() -> int:
    """By read(2) and its like, whether from disk, page cache or socket."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(line.split()[1])


def _memory(process: int | str) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except FileNotFoundError:  # it is down just now
        return 0
