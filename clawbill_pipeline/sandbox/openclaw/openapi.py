"""The server's OpenAPI document. Kept by hand: a test holds it against what the server answers."""

from __future__ import annotations

from typing import Any

_DECIMAL = {"type": "string", "description": "A decimal number with all its digits.", "examples": ["12.345"]}
_CENTS = {**_DECIMAL, "description": "In the currency's minor unit (ISO 4217), exact and unrounded."}
_STRING = {"type": "string"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _json(schema: str, description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _problems(*statuses: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {"application/problem+json": {"schema": schema}}
    said = {
        400: "The body is not a JSON object.",
        401: "No bearer token, or not the right one.",
        404: "No such tenant.",
        413: "The body is too large.",
        422: "A field is missing, not known or wrong, or the tenant's rate card has no price for it.",
    }
    return {str(status): {"description": said[status], "content": content} for status in statuses}


_TENANT = {"name": "tenant_id", "in": "path", "required": True, "schema": _STRING}
_OPEN: list[Any] = []

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "OpenClaw rating", "version": "1", "description": "Rates usage by tenant and service."},
    "security": [{"token": []}],
    "paths": {
        "/rating": {
            "post": {
                "summary": "What a quantity of a service costs a tenant",
                "operationId": "rate",
                "requestBody": {"required": True, **_json("RatingRequest", "")},
                "responses": {"200": _json("Rating", "The amount."), **_problems(400, 401, 404, 413, 422)},
            }
        },
        "/tenants/{tenant_id}/status": {
            "parameters": [_TENANT],
            "put": {
                "summary": "Reports how a tenant stands",
                "operationId": "putStatus",
                "requestBody": {"required": True, **_json("StatusRequest", "")},
                "responses": {"200": _json("Status", "What is kept."), **_problems(400, 401, 404, 413, 422)},
            },
            "get": {
                "summary": "How a tenant stands",
                "operationId": "getStatus",
                "responses": {"200": _json("Status", "The last status reported."), **_problems(401, 404)},
            },
        },
        "/healthz": {
            "get": {
                "summary": "Whether the server works",
                "operationId": "health",
                "security": _OPEN,
                "responses": {"200": _json("Health", "It does.")},
            }
        },
    },
    "components": {
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "RatingRequest": _object(
                {
                    "tenant_id": _STRING,
                    "service": {**_STRING, "description": "With its priced dimensions: tokens.output:mockai/large."},
                    "quantity": {"type": ["number", "string"], "description": "A number, or a decimal string."},
                },
            ),
            "Rating": _object(
                {
                    "amount_cents": _CENTS,
                    "currency": _STRING,
                    "tenant_id": _STRING,
                    "service": _STRING,
                    "quantity": _DECIMAL,
                    "discounts": {
                        "type": "array",
                        "items": _object({"name": _STRING, "amount_cents": _CENTS}),
                        "description": "What was taken off; also among the lines.",
                    },
                    "lines": {"type": "array", "items": {"$ref": "#/components/schemas/Line"}},
                    "rate_card": _STRING,
                    "rate_card_version": _STRING,
                    "terms": {
                        **_STRING,
                        "description": "Changes with anything but the request that the amount depends on.",
                    },
                },
                {
                    "limits": _object(
                        {"unlimited_cents": {**_CENTS, "description": "The amount before maximum and minimum."}},
                        {"maximum_cents": _CENTS, "minimum_cents": _CENTS},
                    )
                },
            ),
            "Line": _object(
                {"kind": {"enum": ["usage", "flat", "discount", "maximum", "minimum"]}, "amount_cents": _CENTS},
                {
                    "quantity": _DECIMAL,
                    "unit_amount": {**_DECIMAL, "description": "In the currency's major unit."},
                    "per": {**_DECIMAL, "description": "How many units the unit amount buys; 1 where it is left out."},
                    "tier": {"type": "integer", "minimum": 1},
                    "part": _STRING,
                    "name": _STRING,
                },
            ),
            "StatusRequest": _object({"status": {**_STRING, "examples": ["paid", "overdue"]}}),
            "Status": _object(
                {
                    "tenant_id": _STRING,
                    "status": {"type": ["string", "null"], "description": "null where none was reported yet."},
                    "reported_at": {"type": ["string", "null"], "format": "date-time"},
                },
            ),
            "Health": _object(
                {"status": {"const": "ok"}, "now": {"type": "integer"}, "catalog_fault": {"type": ["string", "null"]}},
            ),
            "Problem": _object(
                {"type": _STRING, "title": _STRING, "status": {"type": "integer"}, "detail": _STRING},
                {"errors": {"type": "array", "items": _object({"pointer": _STRING, "detail": _STRING})}},
            ),
        },
    },
}
