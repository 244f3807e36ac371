"""Names: the service as OpenClaw sees it, made of a service and its priced dimensions. Nothing else."""

from __future__ import annotations

from collections.abc import Iterable

_ESCAPES = (("%", "%25"), ("/", "%2F"), (":", "%3A"))


def dimension_set(values: Iterable[str]) -> str:
    """Dimension values in the service's fixed order as one text: ``("mockai", "mock-large")`` → ``mockai/mock-large``.

    A ``/``, ``:`` or ``%`` inside a value is percent-encoded, so that two different sets never share a name.
    """
    parts = []
    for value in values:
        for plain, escaped in _ESCAPES:
            value = value.replace(plain, escaped)
        parts.append(value)
    return "/".join(parts)


def openclaw_service(service: str, dimensions: str = "") -> str:
    """The name that a rating request carries: ``tokens.output:mockai/mock-large``, or the bare service."""
    return f"{service}:{dimensions}" if dimensions else service


def split_openclaw_service(name: str) -> tuple[str, str]:
    """``(service, dimension set)`` of a name made by ``openclaw_service``; the set is empty for a bare service."""
    service, _, dimensions = name.partition(":")
    return service, dimensions
