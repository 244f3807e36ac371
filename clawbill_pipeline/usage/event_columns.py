"""The fast way for many posted CloudEvents: Arrow reads requests into columns. It knows no reason for a fault.

It takes only requests of which every event is usage beyond doubt, by the rules of ``events``; all others it hands
back, to be judged event by event. Members are checked in ``bulk``, as those of JSON lines are. Of members that it does
not know it does not see if one is there twice: requests are looked through for that before they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from clawbill_pipeline.usage.bulk import COLUMNS, Bulk, Numbers
from clawbill_pipeline.usage.events import Judge

_ATTRIBUTES = ("specversion", "id", "source", "type", "subject")
#: Requests that are not tried in smaller parts, since Arrow costs more than they do.
_FEW, _PARTS = 32, 16


class EventColumns:
    """Reads requests, each one CloudEvent or an array of them, for one catalogue at one moment. Safe across threads."""

    def __init__(self, judge: Judge) -> None:
        self._bulk = Bulk(judge)
        dimensions = [pa.field(name, pa.string()) for name in self._bulk.dimensions]
        # A dimension of such a name is told by the attribute as well: the slow way knows which one counts.
        self._clear = not {*_ATTRIBUTES, "time", "data", "quantity"} & set(self._bulk.dimensions)
        event = [
            *(pa.field(name, pa.string()) for name in _ATTRIBUTES),
            pa.field("time", pa.timestamp("ns", tz="UTC")),
            pa.field("data", pa.struct([pa.field("quantity", pa.decimal128(38, 12)), *dimensions])),
            *dimensions,
        ]
        if self._clear:
            schema = pa.schema([pa.field("requests", pa.list_(pa.list_(pa.struct(event))))])
            self._parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def read(self, requests: Sequence[tuple[int, bytes]]) -> tuple[list[pa.RecordBatch], list[tuple[int, bytes]]]:
        """``(events as batches of COLUMNS, requests that are left over)`` of numbered requests."""
        batches: list[pa.RecordBatch] = []
        left: list[tuple[int, bytes]] = []
        pending = [requests] if self._clear else []
        if not self._clear:
            left += requests
        while pending:
            some = pending.pop()
            events = self._events([body for _, body in some]) if some else None
            if events is not None:
                batch, good = self._good(some, *events)
                batches += [batch] if batch.num_rows else []
                left += [request for request, is_good in zip(some, good, strict=True) if not is_good]
            elif len(some) <= _FEW:
                left += some
            else:
                size = -(-len(some) // _PARTS)
                pending += [some[start : start + size] for start in range(0, len(some), size)]
        return batches, sorted(left)

    def _events(self, bodies: Sequence[bytes]) -> tuple[pa.StructArray, Numbers] | None:
        """``(events of all bodies, how many each has)``; None where Arrow can't read them, or reads more into them."""
        joined = b",".join(body if body.startswith(b"[") else b"[%b]" % body for body in bodies)
        # A member that is null may stand for one that is not there, or hide another one.
        if b"null" in joined or (b"\\" in joined and b"\\u0000" in joined):
            return None
        data = b'{"requests":[%b]}' % joined
        try:
            options = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
            table = pj.read_json(pa.BufferReader(data), read_options=options, parse_options=self._parse)
        except pa.ArrowInvalid:
            return None
        requests = table["requests"].combine_chunks().flatten()
        if table.num_rows != 1 or len(requests) != len(bodies):
            return None
        return requests.flatten(), pc.list_value_length(requests).to_numpy(zero_copy_only=False)

    def _good(
        self, requests: Sequence[tuple[int, bytes]], events: pa.StructArray, lengths: Numbers
    ) -> tuple[pa.RecordBatch, Sequence[bool]]:
        """``(the events of good requests, which ones are good)``: those whose events all are."""
        data = pc.struct_field(events, "data")
        source, event_id = pc.struct_field(events, "source"), pc.struct_field(events, "id")
        given = {
            "event_id": pc.binary_join_element_wise(source, event_id, " "),
            "tenant_id": pc.struct_field(events, "subject"),
            "service": pc.struct_field(events, "type"),
            "quantity": pc.struct_field(data, "quantity"),
            "timestamp": pc.struct_field(events, "time"),
            "specversion": pa.nulls(len(events), pa.string()),
        }
        for name in self._bulk.dimensions:
            given[name] = pc.coalesce(pc.struct_field(data, name), pc.struct_field(events, name))
        columns, numbers = self._bulk.checked(given)
        is_event = np.zeros(len(events), np.bool_)
        is_event[numbers] = True
        is_event &= _all(
            pc.equal(pc.struct_field(events, "specversion"), "1.0"),
            pc.and_(pc.string_is_ascii(source), pc.invert(pc.match_substring_regex(source, r"\s"))),
            pc.and_(pc.greater(pc.binary_length(source), 0), pc.greater(pc.binary_length(event_id), 0)),
        )
        owner = np.repeat(np.arange(len(requests)), lengths)
        good = np.bincount(owner[~is_event], minlength=len(requests)) == 0
        kept = good[owner[numbers]]
        if not kept.all():
            columns = [column.filter(pa.array(kept)) for column in columns]
        lines = np.array([number for number, _ in requests], np.int64)[owner[numbers[kept]]]
        places = [pa.array(lines), pa.array(np.zeros(len(lines), np.int64))]
        return pa.RecordBatch.from_arrays([*places, *columns], schema=COLUMNS), good.tolist()


def _all(*checks: pa.BooleanArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = checks[0]
    for check in checks[1:]:
        found = pc.and_(found, check)
    passed: np.ndarray[tuple[int], np.dtype[np.bool_]] = found.fill_null(False).to_numpy(zero_copy_only=False)
    return passed
