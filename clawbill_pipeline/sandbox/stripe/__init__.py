"""A stand-in for Stripe's billing API on a laptop: real HTTP for the unmodified ``stripe`` SDK, kept on disk.

One module a Stripe resource (``customers``, ``prices``, ``subscriptions``, ...), each with its routes and its rules.
Shared by them: ``contract`` (request types), ``store`` (SQLite), ``clock``, ``events`` and ``delivery`` (webhooks),
``app`` (the request pipeline) and ``control`` (``/_sandbox``). See docs/sandbox-stripe.md.
"""

from clawbill_pipeline.sandbox.stripe.server import serve

__all__ = ["serve"]
