"""Errors as answers: problem details of RFC 9457. What is wrong is said where it is found."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.responses import Response


class Problem(Exception):
    """An answer that is an error. ``kind`` is stable and for programs, ``detail`` is for people."""

    def __init__(self, status: int, kind: str, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.field = status, kind, detail, field

    def response(self) -> Response:
        """The answer, of media type ``application/problem+json``."""
        document: dict[str, object] = {
            "type": f"urn:openclaw:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field is not None:
            document["errors"] = [{"pointer": f"/{self.field}", "detail": self.detail}]
        headers = {"WWW-Authenticate": 'Bearer realm="openclaw"'} if self.status == HTTPStatus.UNAUTHORIZED else {}
        return Response(json.dumps(document), self.status, headers, "application/problem+json")
