"""What a station's work came to: checks that it made on itself. Shown by ``defs`` and by the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

Shown = str | int | bool | Decimal | None


@dataclass(frozen=True)
class Check:
    """One statement about a result that holds or doesn't, with the numbers that show it."""

    name: str
    passed: bool
    description: str
    numbers: Mapping[str, Shown] = field(default_factory=dict)
    #: A failed serious check is an error; any other is a warning.
    serious: bool = True
