"""What an error of Stripe's means: a message without secrets, whether it had an effect, whether to ask again."""

from __future__ import annotations

import stripe


class SessionLapsed(stripe.StripeError):
    """The token of a meter event session lapsed: nothing was taken, and a new one helps."""


def said(error: stripe.StripeError) -> str:
    """Stripe's message in one line. A refused key is not quoted, not even the part that Stripe shows of it."""
    if isinstance(error, stripe.AuthenticationError):
        return "Stripe refused the key (401): check STRIPE_SECRET_KEY"
    if isinstance(error, stripe.APIConnectionError):
        return "Stripe can't be reached: " + " ".join(str(error.user_message).split())[-200:]
    status = f" ({error.http_status})" if error.http_status else ""
    return f"{' '.join(str(error.user_message).split())[:500]}{status}"


def account_is_refused(error: stripe.StripeError) -> bool:
    """Whether the key itself is the fault, so that no other call can succeed either."""
    return isinstance(error, stripe.AuthenticationError | stripe.PermissionError)


def may_work_later(error: stripe.StripeError) -> bool:
    """Whether the same call can succeed later: the network, a rate limit, a conflict, an answer that can't be read."""
    status = error.http_status
    return isinstance(error, SessionLapsed) or status is None or status in (409, 429) or not 400 <= status < 500


def had_no_effect(error: stripe.StripeError) -> bool:
    """Whether the call was surely not carried out."""
    return isinstance(error, SessionLapsed) or error.http_status == 429


def retry_after(error: stripe.StripeError) -> float | None:
    """Seconds that Stripe asked to wait, if it did."""
    value = {name.lower(): text for name, text in (error.headers or {}).items()}.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        return None
