"""Whether a request comes from this machine: both ends of the connection and the name it was made under."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request


def from_this_machine(request: Request) -> bool:
    """Whether a request came over the loopback interface, under a loopback name, and through no proxy.

    The name matters: a web page elsewhere could point its own name here.
    """
    ends = [request.client.host if request.client else "", (request.scope.get("server") or ("",))[0]]
    proxied = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    try:
        # Not request.url: where the header is no host, that falls back on the server's own address.
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return False
    return not proxied and all(map(_is_loopback, ends)) and is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine."""
    return host == "localhost" or _is_loopback(host)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
