"""Every call on Stripe that the pipeline's own code makes is one that the stand-in keeps, found in the code itself."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import stripe

import clawbill_pipeline
from clawbill_pipeline.sandbox.stripe.app import ROUTES

V1 = stripe.StripeClient("sk_test_x").v1
PACKAGE = Path(clawbill_pipeline.__file__).parent


def chain(node: ast.expr) -> list[str]:
    """``a.b.c`` as its names, as far as it is one."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return names[::-1]


def sdk_calls() -> Iterator[str]:
    """Such as ``v1.billing.meters.create``: each chain in the package that starts a call of a Stripe client."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if "sandbox" in file.relative_to(PACKAGE).parts:
            continue  # the demonstration plays the customer's part as well
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names = chain(node)
                for version in ("v1", "v2"):
                    if version in names:
                        yield ".".join(names[names.index(version) :]).removesuffix("_async")
                if names[:1] == ["client"] and len(names) > 1 and hasattr(V1, names[1]):  # a v1 client that is kept
                    yield ".".join(["v1", *names[1:]]).removesuffix("_async")


def raw_paths() -> Iterator[str]:
    """Paths that are named as such, in files that speak to Stripe."""
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "sandbox" not in file.relative_to(PACKAGE).parts and "stripe" in text.lower():
            for found in re.finditer(r'"(/v[12]/[a-z_/{}\[\]\'().]+)"', text):
                yield found[1]


def request_of(call: str) -> tuple[str, str] | None:
    """Method and path that the SDK's method sends; None for what is no method (a chain's beginning)."""
    place: object = stripe.StripeClient("sk_test_x")
    for name in call.split("."):
        place = getattr(place, name)
    if not inspect.ismethod(place):
        return None
    source = inspect.getsource(place)
    method = re.search(r'_request\(\s*"(\w+)"', source)
    path = re.search(r'"(/v[12]/[^"]*)"', source)
    assert method, call
    assert path, call
    return method[1].upper(), path[1]


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_the_stand_in_keeps_every_call_that_the_pipeline_makes() -> None:
    kept = {(route.method, shape(route.path)) for route in ROUTES}
    requests = {call: request_of(call) for call in sorted(set(sdk_calls()))}
    made = {call: request for call, request in requests.items() if request is not None}
    assert {"v1.billing.meters.create", "v1.invoices.update", "v2.billing.meter_event_stream.create"} <= set(made)
    assert len(made) > 20
    missing = {call: request for call, request in made.items() if (request[0], shape(request[1])) not in kept}
    assert missing == {}
    paths = {shape(path) for path in raw_paths()}
    assert paths
    assert paths <= {path for _, path in kept}
