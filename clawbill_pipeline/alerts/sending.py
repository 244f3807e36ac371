"""Hands a message to Apprise. What goes wrong comes back as a sentence without the address, never as an exception."""

from __future__ import annotations

import logging
import warnings

import apprise

from clawbill_pipeline.alerts.composing import Message
from clawbill_pipeline.alerts.routes import Route

#: Seconds for one address.
TIMEOUT = 20.0

# Apprise writes whole addresses, with their tokens, into its log; what matters of it is in the answer.
logging.getLogger("apprise").addFilter(lambda _: False)


def send(route: Route, message: Message) -> str | None:
    """None if the message got through, else what went wrong."""
    sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="clawbill", app_desc="clawbill"))
    with warnings.catch_warnings():
        # All plugins are loaded with the first address, some on modules that Python means to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        known = sender.add(route.address.get_secret_value())
    if not known:
        return f"{route.name}: Apprise does not know that kind of address, or a part of it is missing"
    kind = apprise.NotifyType.SUCCESS if message.good else apprise.NotifyType.WARNING
    try:
        result = sender.notify(
            body=message.body, title=message.title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT,
            timeout=TIMEOUT,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 -- a plugin of a hundred; no alert ends a run. Its text may hold the address
        return f"{route.name}: {type(error).__name__} while the message was sent"
    return None if result else f"{route.name}: the message was not taken"
