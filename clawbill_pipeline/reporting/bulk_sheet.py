"""A worksheet that takes many rows at a third of xlsxwriter's cost a cell. What is in the cells is the workbook's.

xlsxwriter keeps an object a cell and builds its XML from lists of attributes. Here a row is its XML at once, between
what xlsxwriter itself writes above and below it. It leans on what xlsxwriter keeps to itself (``_write_rows``,
``_get_xf_index``, the table of shared strings), so the tests open every workbook with another library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from xlsxwriter.format import Format
from xlsxwriter.worksheet import Worksheet

#: A cell's XML from its style on: ' s="3"><v>1.5</v></c>'.
Fragment = Callable[[Any], str]
Clean = Callable[[str], str]

_EPOCH = datetime(1899, 12, 30, tzinfo=UTC)
# What XML or the format's own escapes (_x000D_) would take for something else.
_SPECIAL = re.compile(r"[&<>\x00-\x08\x0b-\x1f]|_x[0-9A-Fa-f]{4}_")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
#: Characters of a cell that Excel opens.
_LONGEST = 32_767


class BulkSheet(Worksheet):  # type: ignore[misc]  # xlsxwriter has no types
    """A worksheet with one block of rows that come as XML; everything else is xlsxwriter's."""

    def __init__(self) -> None:
        super().__init__()
        self._block: list[str] = []
        self._first = 0
        self.dim_rowmin: int | None
        self.dim_rowmax: int | None

    def add_rows(self, first: int, rows: list[str], columns: int) -> None:
        """The block: ``rows`` by ``row_xml``, from row ``first`` (from 0) on, in ``columns`` columns."""
        self._block, self._first = rows, first
        self._check_dimensions(first, 0)
        self._check_dimensions(first + len(rows) - 1, columns - 1)

    def _write_rows(self) -> None:
        if not self._block:
            super()._write_rows()
            return
        top, bottom = self.dim_rowmin, self.dim_rowmax
        self.dim_rowmax = self._first - 1
        super()._write_rows()
        for row in self._block:
            self.fh.write(row)
        self.dim_rowmin, self.dim_rowmax = self._first + len(self._block), bottom
        super()._write_rows()
        self.dim_rowmin = top

    # --- fragments -------------------------------------------------------------------------------------------------

    def shared(self, look: Format, clean: Clean) -> Fragment:
        """Texts of which there are few: each is cleaned and kept once in the file."""
        style, strings = look._get_xf_index(), self.str_table
        known: dict[str, str] = {}

        def fragment(text: str) -> str:
            found = known.get(text)
            if found is None:
                at = strings._get_shared_string_index(clean(text)[:_LONGEST])
                found = known[text] = f' s="{style}" t="s"><v>{at}</v></c>'
            else:
                strings.count += 1
            return found

        return fragment

    def inline(self, look: Format, clean: Clean) -> Fragment:
        """Texts that are all different, cleaned."""
        style = look._get_xf_index()

        def fragment(text: str) -> str:
            shown = clean(text)[:_LONGEST]
            if _SPECIAL.search(shown):
                shown = _escaped(shown)
            return f' s="{style}" t="inlineStr"><is><t xml:space="preserve">{shown}</t></is></c>'

        return fragment

    def instant(self, look: Format) -> Fragment:
        """Instants, as Excel counts days."""
        style = look._get_xf_index()
        known: dict[datetime, str] = {}

        def fragment(at: datetime) -> str:
            found = known.get(at)
            if found is None:
                found = known[at] = f' s="{style}"><v>{(at - _EPOCH).total_seconds() / 86_400!r}</v></c>'
            return found

        return fragment


def number_cell(look: Format) -> Fragment:
    """Numbers, to the digits that a spreadsheet has."""
    style = look._get_xf_index()

    def fragment(value: Decimal | int) -> str:
        return f' s="{style}"><v>{float(value)!r}</v></c>'

    return fragment


def row_xml(number: int, cells: Iterable[tuple[str, str]], height: float | None) -> str:
    """The row of that number (from 1) with ``(column letter, fragment)`` cells; ``height`` in points."""
    inside = "".join([f'<c r="{letter}{number}"{fragment}' for letter, fragment in cells])
    tall = f' ht="{height:g}" customHeight="1"' if height is not None else ""
    return f'<row r="{number}"{tall}>{inside}</row>'


def _escaped(text: str) -> str:
    text = re.sub(r"_(x[0-9A-Fa-f]{4}_)", r"_x005F_\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _CONTROL.sub(lambda found: f"_x{ord(found[0]):04X}_", text)
