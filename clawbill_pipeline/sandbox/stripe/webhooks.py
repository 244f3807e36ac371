"""Webhook endpoints: who gets which events. Sending is in ``delivery``, what an event holds in ``events``."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.store import scrambled


def register(
    call: Call, url: str, enabled_events: list[str], *, secret: str | None = None, thin: bool = False
) -> Document:
    """A new endpoint; the signing secret is made up where none is given. ApiError (400) if the URL is not http(s)."""
    if not url.startswith(("http://", "https://")):
        raise invalid("Invalid URL: an explicit scheme (such as https) must be provided.", "url", "url_invalid")
    identifier = call.new_id("we")
    return {
        "id": identifier,
        "object": "webhook_endpoint",
        "api_version": None,
        "application": None,
        "created": call.now,
        "description": None,
        "enabled_events": enabled_events,
        "livemode": False,
        "metadata": {},
        "status": "enabled",
        "url": url,
        "_secret": secret or f"whsec_{scrambled(call.account, identifier, 'secret', length=32)}",
        "_thin": thin,
    }


def create(call: Call, params: Document) -> Document:
    endpoint = register(call, params["url"], params["enabled_events"])
    endpoint["description"] = params.get("description") or None
    endpoint["metadata"] = merged_metadata({}, params.get("metadata"))
    endpoint["api_version"] = params.get("api_version")
    call.put("webhook_endpoint", endpoint)
    # The one answer that shows the secret, as with Stripe.
    return {**public(endpoint), "secret": endpoint["_secret"]}


def retrieve(call: Call, params: Document, id: str) -> Document:
    return public(call.find("webhook_endpoint", id))


def update(call: Call, params: Document, id: str) -> Document:
    endpoint = call.find("webhook_endpoint", id)
    endpoint["metadata"] = merged_metadata(endpoint["metadata"], params.get("metadata"))
    for name in ("url", "enabled_events", "description"):
        if name in params:
            endpoint[name] = params[name]
    if "disabled" in params:
        endpoint["status"] = "disabled" if params["disabled"] else "enabled"
    return public(call.put("webhook_endpoint", endpoint))


def delete(call: Call, params: Document, id: str) -> Document:
    call.find("webhook_endpoint", id)
    call.store.drop(call.account, "webhook_endpoint", id)
    return {"id": id, "object": "webhook_endpoint", "deleted": True}


def list_all(call: Call, params: Document) -> Document:
    return page(call, "webhook_endpoint", params, "/v1/webhook_endpoints")


_PATH = "/v1/webhook_endpoints"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract("WebhookEndpointCreateParams", "api_version description enabled_events metadata url"),
        create,
    ),
    Route("GET", _PATH, Contract("WebhookEndpointListParams", "ending_before limit starting_after"), list_all),
    Route("GET", _PATH + "/{id}", Contract("WebhookEndpointRetrieveParams"), retrieve),
    Route(
        "POST",
        _PATH + "/{id}",
        Contract("WebhookEndpointUpdateParams", "description disabled enabled_events metadata url"),
        update,
    ),
    Route("DELETE", _PATH + "/{id}", Contract("WebhookEndpointDeleteParams"), delete),
]
