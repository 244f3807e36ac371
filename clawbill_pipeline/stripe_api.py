"""The one place that makes Stripe clients: the SDK's own, unmodified. Which calls are made is a station's affair.

The SDK never retries here: a retry is a decision of the station that put the intent on record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import stripe
from pydantic import SecretStr
from stripe._base_address import BaseAddresses

#: The last version that has usage records, for prices that no meter backs (removed in 2025-03-31.basil).
LEGACY_VERSION = "2025-02-24.acacia"


@dataclass(frozen=True)
class StripeApi:
    """How to reach Stripe, or a stand-in at ``base``. Cheap to pass about; the key never shows."""

    key: SecretStr
    base: str | None = None
    timeout: float = 30

    def client(self) -> stripe.StripeClient:
        """A client for plain calls from a thread."""
        return self._client(stripe.RequestsClient(timeout=self.timeout))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[stripe.StripeClient]:
        """A client for ``*_async`` calls, on aiohttp: it carries several times the calls of the SDK's default."""
        http = stripe.AIOHTTPClient(timeout=self.timeout)
        try:
            yield self._client(http)
        finally:
            await http.close_async()  # type: ignore[no-untyped-call]

    def _client(self, http: stripe.HTTPClient) -> stripe.StripeClient:
        bases: BaseAddresses = {"api": self.base, "meter_events": self.base} if self.base else {}
        return stripe.StripeClient(
            self.key.get_secret_value(), base_addresses=bases, max_network_retries=0, http_client=http
        )
