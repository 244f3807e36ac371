"""Errors as Stripe answers them: status, type, code, param and message. Nothing here knows a resource."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer that is an error. ``kept`` says whether an idempotency key remembers it (Stripe forgets those of
    requests that never began: validation, authentication, rate limits and conflicts); ``effects_stay`` whether what
    the call wrote stays, as it does for a declined charge.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        kept: bool = False,
        effects_stay: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = headers or {}
        self.kept = kept
        self.effects_stay = effects_stay

    def body(self) -> dict[str, Any]:
        """The JSON document of the answer."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind}
        if self.code:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param:
            error["param"] = self.param
        return {"error": error}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request began, and is refused for what it says."""
    return ApiError(400, message, param=param, code=code, kept=True)


def missing(noun: str, identifier: str, param: str = "id", status: int = 404) -> ApiError:
    """404 for an object in the path, 400 (``status``) for one named by a parameter."""
    return ApiError(status, f"No such {noun}: '{identifier}'", code="resource_missing", param=param, kept=True)


def unsupported(what: str, param: str | None = None) -> ApiError:
    """400 for what Stripe takes and the sandbox does not keep: never a 200 that does nothing."""
    return ApiError(400, f"The clawbill sandbox does not keep {what}.", code="sandbox_unsupported", param=param)
