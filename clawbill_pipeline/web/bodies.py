"""Reads a request's body, as large and as slow as it may be, and refuses others. It knows no meaning of it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request

#: Seconds in which a body must have arrived.
BODY_PATIENCE = 30


class Refused(Exception):
    """The request is answered with ``status``; ``reason`` is what it is counted by."""

    def __init__(self, status: HTTPStatus, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


def check_length(request: Request, most: int) -> None:
    """Raises Refused for a body that says that it has more than ``most`` bytes, before any is read."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise _too_large(most)


async def read_body(request: Request, most: int) -> bytes:
    """The body. Raises Refused for one of more than ``most`` bytes, one cut off, and one that comes too slowly."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_PATIENCE):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise _too_large(most)
                chunks.append(chunk)
    except ClientDisconnect:
        raise Refused(HTTPStatus.BAD_REQUEST, "truncated", "the body ended early") from None
    except TimeoutError:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "truncated", "the body came too slowly") from None
    return b"".join(chunks)


def _too_large(most: int) -> Refused:
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"more than {most} bytes")
