"""Compiled loops over bytes: they cut lines of one shape at their members, and read values where these lie.

Machine code by Numba, without Python's lock: a byte of a log is looked at once. What a shape is, and what becomes of
lines that have another one, is for ``uniform``. All text is UTF-8 or not: no loop here looks beyond a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from clawbill_pipeline.money import SCALE

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int32]
Limbs = npt.NDArray[np.uint64]

# Places are unsigned: of others Numba asks at each byte whether they count from the end.
_U, _ONE = np.uint64, np.uint64(1)
_QUOTE, _BACKSLASH, _MINUS, _POINT, _ZERO, _NINE, _T, _COLON, _Z = b'"\\-.09T:Z'
#: What ends a value: its quotation mark, or what JSON writes in another way.
_SPECIAL = np.array([byte < ord(" ") or byte in (_QUOTE, _BACKSLASH) for byte in range(256)])
#: A number of so many digits is less than 2 ** 64, whatever they are.
_DIGITS = 18
_POWERS = np.array([10**power for power in range(7)], np.uint64)
_HALF = _U(0xFFFFFFFF)
_32 = _U(32)
_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_DAYS_BEFORE = np.concatenate((_DAYS[:1], np.cumsum(_DAYS)[:-1]))
_EPOCH = date(1970, 1, 1).toordinal() - 1


def _compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiled at import, or taken from Numba's cache; where that has no place to be, each process compiles anew."""

    def compile(loop: Callable[..., Any]) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True)(loop)
        except RuntimeError:  # no folder that can be written
            found = numba.njit(signature, nogil=True)(loop)
        return found

    return compile


@_compiled("UniTuple(int64, 3)(Array(u1, 1, 'C', readonly=True), int64, Array(u1, 1, 'C', readonly=True), i8[::1], "
           "b1[::1], i4[:, ::1], i4[:, ::1])")  # fmt: skip
def cut(
    data: Bytes,
    at: int,
    text: Bytes,
    text_ends: npt.NDArray[np.int64],
    is_number: npt.NDArray[np.bool_],
    begins: Places,
    ends: Places,
) -> tuple[int, np.uint64, int]:
    """Cuts lines from ``data[at:]`` on while each is ``text`` with a value between its parts, which end at
    ``text_ends``; the value of member m in line n comes to lie in ``data[begins[m, n]:ends[m, n]]``.

    Values end before a quotation mark and hold no control and no backslash, or are JSON numbers without an exponent.
    Data and text end with a line feed, which is in no value: so no loop looks for the end of data.
    Returns ``(lines, where they end, all bytes of values or-ed)``.
    """
    size, last, begin, line, bits = _U(len(data)), len(is_number), _U(at), 0, 0
    while line < begins.shape[1]:
        place, known = begin, _U(0)
        for member in range(last + 1):
            length = _U(text_ends[member]) - known
            if place + length > size:
                return line, begin, bits
            differ = np.uint8(0)
            for step in range(length):
                differ |= data[place + _U(step)] ^ text[known + _U(step)]
            if differ:
                return line, begin, bits
            place += length
            known += length
            if member == last:
                break
            begins[member, line] = place
            if is_number[member]:
                if data[place] == _MINUS:
                    place += _ONE
                first = place
                while _ZERO <= data[place] <= _NINE:
                    place += _ONE
                if place == first or (data[first] == _ZERO and place > first + _ONE):
                    return line, begin, bits
                if data[place] == _POINT:
                    place += _ONE
                    first = place
                    while _ZERO <= data[place] <= _NINE:
                        place += _ONE
                    if place == first:
                        return line, begin, bits
            else:
                while not _SPECIAL[data[place]]:
                    bits |= data[place]
                    place += _ONE
                if data[place] != _QUOTE:
                    return line, begin, bits
            ends[member, line] = place
        begin = place
        line += 1
    return line, begin, bits


@_compiled("void(Array(u1, 1, 'C', readonly=True), i4[::1], i4[::1], u1[::1])")
def gather(data: Bytes, begins: Places, offsets: Places, values: Bytes) -> None:
    """Copies the bytes from each of ``begins`` on to ``values[offset:next offset]``."""
    for number in range(len(begins)):
        place, to, end = _U(begins[number]), _U(offsets[number]), _U(offsets[number + 1])
        while to < end:
            values[to] = data[place]
            place += _ONE
            to += _ONE


@_compiled("b1(Array(u1, 1, 'C', readonly=True), i4[::1], i4[::1], u8[:, ::1])")
def decimals(data: Bytes, begins: Places, ends: Places, limbs: Limbs) -> bool:
    """Reads numbers as Arrow's decimal128 of 12 places keeps them: two 64-bit limbs each, the lower one first.

    False where one isn't plainly ``-123.456`` with up to 18 digits, 12 of them behind the point.
    """
    for number in range(len(begins)):
        place, end = _U(begins[number]), _U(ends[number])
        negative = place < end and data[place] == _MINUS
        if negative:
            place += _ONE
        digits, behind, seen = _U(0), -1, 0
        while place < end:
            byte = data[place]
            if _ZERO <= byte <= _NINE:
                digits = digits * _U(10) + _U(byte - _ZERO)
                seen += 1
                behind += behind >= 0
            elif byte == _POINT and behind < 0 and seen:
                behind = 0
            else:
                return False
            place += _ONE
        if not 0 < seen <= _DIGITS or behind == 0 or behind > SCALE:
            return False
        more = SCALE - max(behind, 0)
        low, high = digits, _U(0)
        for power in (more // 2, more - more // 2):
            lower = (low & _HALF) * _POWERS[power]
            upper = (low >> _32) * _POWERS[power] + (lower >> _32)
            low = (lower & _HALF) | (upper << _32)
            high = high * _POWERS[power] + (upper >> _32)
        if negative:
            low, high = ~low + _ONE, ~high + _U(low == 0)
        limbs[number, 0], limbs[number, 1] = low, high
    return True


@_compiled("b1(Array(u1, 1, 'C', readonly=True), i4[::1], i4[::1], i8[::1])")
def times(data: Bytes, begins: Places, ends: Places, microseconds: npt.NDArray[np.int64]) -> bool:
    """Reads times as microseconds since 1970; digits of a second beyond the sixth are cut off.

    False where one isn't plainly ``2026-11-01T00:59:59.123456Z``, with none to nine digits behind the point.
    """
    for number in range(len(begins)):
        begin, end = begins[number], ends[number]
        length = end - begin
        if length != 20 and not 22 <= length <= 30:
            return False
        digits = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18)
        for place in digits:
            if not _ZERO <= data[begin + place] <= _NINE:
                return False
        marks = (4, _MINUS), (7, _MINUS), (10, _T), (13, _COLON), (16, _COLON), (length - 1, _Z)
        for place, mark in marks:
            if data[begin + place] != mark:
                return False
        year = 0
        for place in range(begin, begin + 4):
            year = year * 10 + data[place] - _ZERO
        month = 10 * data[begin + 5] + data[begin + 6] - 11 * _ZERO
        day = 10 * data[begin + 8] + data[begin + 9] - 11 * _ZERO
        hour = 10 * data[begin + 11] + data[begin + 12] - 11 * _ZERO
        minute = 10 * data[begin + 14] + data[begin + 15] - 11 * _ZERO
        second = 10 * data[begin + 17] + data[begin + 18] - 11 * _ZERO
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        if not 1970 <= year <= 2261 or not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 59:
            return False
        if not 1 <= day <= _DAYS[month] + (leap and month == 2):
            return False
        fraction = 0
        if length > 20:
            if data[begin + 19] != _POINT:
                return False
            for place in range(begin + 20, end - 1):
                if not _ZERO <= data[place] <= _NINE:
                    return False
            for place in range(begin + 20, begin + 26):
                fraction = fraction * 10 + (data[place] - _ZERO if place < end - 1 else 0)
        before = year - 1
        days = before * 365 + before // 4 - before // 100 + before // 400 - _EPOCH
        days += _DAYS_BEFORE[month] + (leap and month > 2) + day - 1
        microseconds[number] = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + fraction
    return True
