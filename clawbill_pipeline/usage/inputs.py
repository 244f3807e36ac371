"""What a reader gives to landing: inputs (a file, a table), their blocks of lines, and where to go on next time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from clawbill_pipeline.usage.events import Claims, Fault


class Line(NamedTuple):
    """One line or row as it stands. ``raw`` is what it says, or what is kept of it beside a ``fault``; ``session`` is
    the conversation that it belongs to, where an input knows it beside the line."""

    number: int
    offset: int
    raw: bytes
    fault: Fault | None = None
    session: str = ""

    @property
    def place(self) -> str:
        return f"line {self.number}, byte {self.offset}"


class Block(Protocol):
    """Lines read in one piece. ``data`` is what a landing is known by; ``position`` is where they end."""

    @property
    def data(self) -> bytes: ...

    @property
    def position(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes of memory that the block takes, about."""
        ...

    @property
    def whole(self) -> bool:
        """Whether a landing may end here: not within an over-long line."""
        ...

    def lines(self) -> Iterable[Line]: ...


class Landing(NamedTuple):
    """A landing that was made of an input before, as the ledger keeps it."""

    id: int
    position: str
    size: int
    sha256: str


class Format(Protocol):
    """How one line reads."""

    def records(self, line: Line) -> list[Any]:
        """The records of a line: one, or the members of a batch, broken ones as their Fault. Raises Fault."""
        ...

    def claims(self, record: Any) -> Sequence[Claims] | None:
        """The usage events that a record claims; None where it is of a kind that bears no usage. Raises Fault."""
        ...

    def shown(self, record: Any) -> Any:
        """The part of a record that quarantine may keep."""
        ...

    def raw(self, line: Line) -> bytes:
        """What quarantine may keep of a line that gives no record."""
        ...


class Input(Protocol):
    """Something that is read from where the last landing ended. ``uri`` is the same wherever the source's folder is."""

    @property
    def uri(self) -> str: ...

    @property
    def format(self) -> Format: ...

    @property
    def looks_back(self) -> bool:
        """Whether ``blocks`` compares all that was landed; otherwise the newest landing says enough."""
        ...

    def size(self) -> int:
        """Bytes or rows that are there now."""
        ...

    def stamp(self) -> Sequence[int | str] | None:
        """Stays the same as long as the input does; None where nothing cheap can tell that."""
        ...

    def line_at(self, number: int, offset: int) -> Line:
        """The line that a place in quarantine names. Raises InputFault where it is gone, and errors as ``blocks``."""
        ...

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[Block]:
        """What is new after ``landed`` (the newest one last), in order. ``finished``: no writer will complete a half
        line at the end.

        Raises InputFault where the input can't be trusted, before, between or after blocks; OSError or sqlite3.Error
        where it can't be read.
        """
        ...


class InputFault(Exception):
    """What is wrong with an input as a whole, or with its end.

    ``keep``: the blocks before it are sound and may be landed. ``passing``: it is no fault yet, only not there in full.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        place: str = "file",
        raw: bytes = b"",
        keep: bool = False,
        passing: bool = False,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.place = place
        self.raw = raw
        self.keep = keep
        self.passing = passing
