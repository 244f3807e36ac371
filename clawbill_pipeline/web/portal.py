"""``GET /tenants/{tenant_id}/portal``: the address of a Stripe customer portal session, for the host's own application.

The host's server calls it with its token and sends the signed-in tenant there; the token never reaches a browser. A
page that does so is in docs/portal.md.

An address is good for one visit and a few minutes: ask for a new one each time.
"""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import stripe
from pydantic import SecretStr
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clawbill_pipeline.ledger import Ledger, LedgerError
from clawbill_pipeline.ledger.tables import stripe_customers
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.web.local import is_loopback

log = logging.getLogger(__name__)


class Portal:
    """The endpoint. ``home`` is where Stripe leads back to when the caller names no ``return_url``."""

    def __init__(self, ledger: Ledger, api: StripeApi, token: SecretStr, home: str | None) -> None:
        self._ledger = ledger
        self._api = api
        self._token = token
        self._home = home

    async def __call__(self, request: Request) -> Response:
        if not self._authentic(request.headers.get("authorization", "")):
            return _error(
                HTTPStatus.UNAUTHORIZED, "give the portal's token as a bearer token", {"WWW-Authenticate": "Bearer"}
            )
        return_url = request.query_params.get("return_url", self._home)
        if return_url is not None and not _is_safe(return_url):
            return _error(HTTPStatus.BAD_REQUEST, "return_url must be an absolute https:// address")
        return await run_in_threadpool(self._session, request.path_params["tenant_id"], return_url)

    def _authentic(self, header: str) -> bool:
        expected = f"Bearer {self._token.get_secret_value()}"
        return secrets.compare_digest(header.encode(), expected.encode())

    def _session(self, tenant_id: str, return_url: str | None) -> Response:
        of_tenant = stripe_customers.c.tenant_id == tenant_id
        try:
            with self._ledger.transaction() as connection:
                query = select(stripe_customers.c.customer_id).where(of_tenant)
                customer_id = None if "\0" in tenant_id else connection.scalar(query)  # PostgreSQL takes no NUL
            if customer_id is None:
                return _error(HTTPStatus.NOT_FOUND, "no Stripe customer is mapped to this tenant")
            params: Any = {"customer": customer_id} | ({"return_url": return_url} if return_url else {})
            session = self._api.client().v1.billing_portal.sessions.create(params)
        except stripe.InvalidRequestError as error:
            # A portal that was never configured, or a customer that is gone: no retry mends it.
            log.warning("portal: Stripe refused a session for %s: %s", tenant_id, error.user_message)
            return _error(HTTPStatus.BAD_GATEWAY, f"Stripe refused: {error.user_message}")
        except (stripe.StripeError, LedgerError) as error:
            log.warning("portal: no session for %s: %s", tenant_id, type(error).__name__)
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "not now; try again", {"Retry-After": "5"})
        return JSONResponse({"tenant_id": tenant_id, "url": session.url})


def _is_safe(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    )


def _error(status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)
