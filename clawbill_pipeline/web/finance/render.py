"""Renders the finance pages: templates, how numbers and times look, and the headers of a page. Reads no data."""

from __future__ import annotations

import hashlib
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from clawbill_pipeline.ledger.causes import CAUSES, STEPS
from clawbill_pipeline.money import exponent
from clawbill_pipeline.reporting.page import instant, number

_HERE = Path(__file__).parent
_STYLE = (_HERE / "static" / "finance.css").read_bytes()
_HEADERS = {
    # No script at all, and no style but ours: a tenant's name that is markup stays text.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

#: What a page says after a decision; its address names only which, so that no link can put words into it.
SAID = {
    "done": "Done.",
    "waits": "Decided. Stripe did not take it yet, and is told again by the next close.",
    "accepted": "Adjustment accepted; Stripe has it.",
    "rejected": "Adjustment rejected.",
    "undone": "Adjustment undone.",
    "sending": "Decided. Stripe's answer is not known yet; it is asked again by itself.",
    "refused": "Decided, but Stripe refused. Its words are below.",
    "approved": "Correction approved; it is made within minutes.",
}

#: How an adjustment stands, and what a correction does.
STATES = {
    "accepted": "accepted, and not sent to Stripe yet",
    "sending": "accepted; Stripe's answer is not known yet",
    "refused": "Stripe refused it",
    "undoing": "being taken back; Stripe's answer is not known yet",
    "done": "done at Stripe",
    "undone": "taken back",
    "rejected": "let go",
}
REMEDIES = {
    "meter": "Meter, rate and send an hour again",
    "rate": "Rate and send an hour again",
    "plan": "Send what is rated in an hour",
    "redeliver": "Send usage records again",
    "resend": "Send lost usage again",
    "propose": "Propose adjustments",
}


def _amount(value: Decimal | int | None, currency: str | None = None, *, minor: bool = False) -> str:
    """A number in full; with ``minor`` in the currency's minor unit where it has no more digits."""
    if value is None:
        return "–"
    return number(Decimal(value), exponent(currency) if minor and currency else None)


def _when(at: datetime | None) -> str:
    return "–" if at is None else instant(at)


def _age(since: datetime, now: datetime) -> str:
    hours = max(int((now - since).total_seconds() // 3600), 0)
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h"


def _size(count: int) -> str:
    return f"{count:,} B" if count < 10_000 else f"{count / 1000:,.0f} kB"


_env = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_env.filters |= {"amount": _amount, "when": _when, "age": _age, "size": _size}
_env.globals |= {
    "CAUSES": CAUSES,
    "SAID": SAID,
    "STEPS": STEPS,
    "REMEDIES": REMEDIES,
    "STATES": STATES,
    "style": hashlib.sha256(_STYLE).hexdigest()[:12],
    "visit": None,
    "period": None,
    "periods": (),
    "here": "",
}


def page(template: str, *, status: int = 200, **values: Any) -> Response:
    """The page that ``template`` makes of ``values``."""
    return HTMLResponse(_env.get_template(template).render(**values), status, _HEADERS)


async def style_sheet(request: Request) -> Response:
    """``GET /static/finance.css``: holds nothing of anybody, so it needs no sign-in."""
    headers = {"Cache-Control": "public, max-age=86400"}
    return Response(_STYLE, media_type="text/css", headers=headers)
