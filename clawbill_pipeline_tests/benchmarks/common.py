"""What benchmarks share: clocks, rounds that take turns, tables, the memory of a process. No benchmark is here."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Took:
    """Seconds: ``wall`` on the clock, ``cpu`` of this process in all its threads, which says more on a busy machine."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Took:
    """How long ``work`` took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def median(of: Sequence[Took]) -> Took:
    return Took(statistics.median(took.wall for took in of), statistics.median(took.cpu for took in of))


def taking_turns(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Took]:
    """The median of each candidate over ``rounds``; they take turns, so that a busy moment meets all of them."""
    found: dict[str, list[Took]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            found[name].append(timed(work))
    return {name: median(of) for name, of in found.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A text table: the first column to the left, the others, which are numbers, to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(w) if not at else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def peak_megabytes() -> float:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def output_of(module: str, *arguments: object, env: Mapping[str, str] | None = None) -> str:
    """What ``python -m module`` prints, in a process of its own: to measure memory without what came before."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, **(env or {})},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of other processes so far; 0 where there is no /proc."""
    ticks = 0
    for pid in pids:
        with suppress(FileNotFoundError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
