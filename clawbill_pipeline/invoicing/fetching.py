"""Asks Stripe for what an event does not hold: an invoice as it is now, all its lines, a subscription, a thin event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import stripe

from clawbill_pipeline.invoicing.events import (
    Invoice,
    Line,
    Notes,
    Subscription,
    read_invoice,
    read_line,
    read_rejections,
    read_subscription,
)
from clawbill_pipeline.stripe_api import StripeApi

_Found = TypeVar("_Found")


class Stripe:
    """Reads from Stripe for one run. Once it does not answer it is not asked again: each try may take its timeout.

    Every method raises stripe.StripeError as the SDK does, and UnusableEvent for an object that can't be read.
    """

    def __init__(self, api: StripeApi) -> None:
        self._client = api.client()
        self._away: stripe.APIConnectionError | None = None

    def invoice(self, invoice_id: str) -> Invoice:
        """The invoice as it is now, with all its lines."""
        invoice = self._ask(lambda: read_invoice(self._client.v1.invoices.retrieve(invoice_id).to_dict()))
        return replace(invoice, lines=self.lines(invoice_id), has_more=False) if invoice.has_more else invoice

    def lines(self, invoice_id: str) -> tuple[Line, ...]:
        """All lines of the invoice, page by page."""

        def read() -> tuple[Line, ...]:
            pages = self._client.v1.invoices.line_items.list(invoice_id, {"limit": 100})
            return tuple(read_line(line.to_dict()) for line in pages.auto_paging_iter())

        return self._ask(read)

    def subscription(self, subscription_id: str) -> Subscription:
        """The subscription as it is now."""
        retrieve = self._client.v1.subscriptions.retrieve
        return self._ask(lambda: read_subscription(retrieve(subscription_id).to_dict()))

    def rejections(self, event_id: str) -> Notes:
        """A thin event of rejected usage with the data that its notification leaves out."""
        retrieve = self._client.v2.core.events.retrieve
        return self._ask(lambda: read_rejections(retrieve(event_id).to_dict()))

    def _ask(self, read: Callable[[], _Found]) -> _Found:
        if self._away is not None:
            raise self._away
        try:
            return read()
        except stripe.APIConnectionError as error:
            self._away = error
            raise
