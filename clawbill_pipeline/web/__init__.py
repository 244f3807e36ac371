"""The ASGI app: webhook landing, health, report downloads. No business logic in a request."""
