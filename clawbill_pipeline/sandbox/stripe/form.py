"""Form encoding as Stripe reads it: ``a[b][0]=x`` becomes ``{"a": {"b": {"0": "x"}}}``. Types are in ``contract``."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from clawbill_pipeline.sandbox.stripe.errors import ApiError

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\[\]]*)\]")


def decode(text: str) -> dict[str, Any]:
    """Nested dicts of strings; a list is a dict with the keys "0", "1", ... (``a[]=`` takes the next one).

    Raises ApiError (400) for a key that is not Stripe's form encoding or that is both a value and a container.
    """
    result: dict[str, Any] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        if "[" not in key and "]" not in key:
            if key in result:
                raise _malformed(key)
            result[key] = value
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            raise _malformed(key)
        *parents, last = [match[1], *_PART.findall(match[2])]
        place = result
        for part in parents:
            place = place.setdefault(part or str(len(place)), {})
            if not isinstance(place, dict):
                raise _malformed(key)
        last = last or str(len(place))
        if last in place:
            raise _malformed(key)
        place[last] = value
    return result


def _malformed(key: str) -> ApiError:
    return ApiError(400, f"Invalid form encoding: {key}", param=key)
