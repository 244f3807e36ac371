"""``GET /healthz``: whether every part is ready, by name; ``GET /livez``: whether this process answers.

Neither says anything that an outsider should not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clawbill_pipeline.ledger import Ledger, LedgerError, migration_state

Ready = Callable[[], Mapping[str, bool]]


async def alive(request: Request) -> Response:
    """For what restarts a process that hangs: a database that is away is no reason to."""
    return JSONResponse({"alive": True})


class Health:
    """The endpoint. Parts: ``database`` answers, ``ledger`` is migrated, ``webhook_secret`` is set, and ``ready``'s.

    A ledger that a later version has migrated is ready for this one, too.
    """

    def __init__(self, ledger: Ledger, counts: Counter[str], ready: Ready | None, *, secret: bool) -> None:
        self._url = ledger.engine.url.render_as_string(hide_password=False)
        self._counts = counts
        self._ready = ready
        self._secret = secret

    async def __call__(self, request: Request) -> Response:
        parts = await run_in_threadpool(self._parts)
        missing = sorted(name for name, good in parts.items() if not good)
        document = {
            "ready": not missing,
            "missing": missing,
            "parts": parts,
            "webhook": dict(sorted(self._counts.items())),
        }
        return JSONResponse(document, 503 if missing else 200)

    def _parts(self) -> dict[str, bool]:
        parts = {"database": False, "ledger": False, "webhook_secret": self._secret}
        try:
            revision, newest = migration_state(self._url)
            parts |= {"database": True, "ledger": revision is not None and revision >= newest}
        except LedgerError:
            pass
        return parts | dict(self._ready() if self._ready else {})
