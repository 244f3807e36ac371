"""Requests against the installed SDK's types: what is taken, and what each refusal says."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from stripe._encode import _api_encode

from clawbill_pipeline.sandbox.stripe.app import ROUTES
from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.contract import _adapter as adapter
from clawbill_pipeline.sandbox.stripe.errors import ApiError
from clawbill_pipeline.sandbox.stripe.form import decode


def checked(source: str, acts_on: str, text: str) -> dict[str, Any]:
    return Contract(source, acts_on).check(decode(text))


def refused(source: str, acts_on: str, text: str) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        checked(source, acts_on, text)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def test_what_the_sdk_encodes_is_decoded_to_the_same() -> None:
    params = {
        "customer": "cus_1",
        "items": [{"price": "price_1", "metadata": {"0": "a", "é & =": "b c"}}, {"price": "price_2"}],
        "cancel_at_period_end": True,
        "trial_end": 17,
    }
    text = urlencode(list(_api_encode(params)))
    assert checked("SubscriptionCreateParams", " ".join(params), text) == params


def test_lists_may_go_without_numbers() -> None:
    assert decode("types[]=a&types[]=b") == {"types": {"0": "a", "1": "b"}}


@pytest.mark.parametrize(
    "text", ["a[=1", "a]b=1", "[a]=1", "a=1&a[b]=2", "a[b]=1&a[b][c]=2", "a=1&a=2", "a[b]=1&a[b]=2"]
)
def test_a_malformed_form_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(text)
    assert caught.value.status == 400


METER = ("billing.MeterCreateParams", "display_name event_name default_aggregation event_time_window")
SUBSCRIPTION = ("SubscriptionCreateParams", "customer items.price metadata cancel_at trial_end")


@pytest.mark.parametrize(
    ("contract", "text", "code", "param"),
    [
        (METER, "display_name=a&event_name=b", "parameter_missing", "default_aggregation"),
        (METER, "display_name=a&event_name=b&default_aggregation[formula]=mean", None, "default_aggregation[formula]"),
        (
            METER,
            "display_name=a&event_name=b&nickname=c&default_aggregation[formula]=sum",
            "parameter_unknown",
            "nickname",
        ),
        (METER, "display_name=a&event_name=b&default_aggregation=sum", None, "default_aggregation"),
        (METER, "display_name[x]=a&event_name=b&default_aggregation[formula]=sum", None, "display_name"),
        (SUBSCRIPTION, "customer=c&items[0][price]=p&items[0][cost]=1", "parameter_unknown", "items[0][cost]"),
        (SUBSCRIPTION, "customer=c&trial_end=soon", "parameter_invalid_integer", "trial_end"),
        (SUBSCRIPTION, "customer=c&trial_end=1.5", "parameter_invalid_integer", "trial_end"),
        (SUBSCRIPTION, "customer=c&items=p", None, "items"),
        (SUBSCRIPTION, "customer=c&items[1][price]=p", None, "items"),
        # In the SDK's types, yet nothing the sandbox would act on: never taken in silence.
        (SUBSCRIPTION, "customer=c&automatic_tax[enabled]=true", "sandbox_unsupported", "automatic_tax"),
        (SUBSCRIPTION, "customer=c&items[0][price]=p&items[0][quantity]=2", "sandbox_unsupported", "items[quantity]"),
        # Options of the SDK travel as headers.
        (SUBSCRIPTION, "customer=c&api_key=sk_test_1", "parameter_unknown", "api_key"),
    ],
)
def test_refusals_name_the_parameter(contract: tuple[str, str], text: str, code: str | None, param: str) -> None:
    assert refused(*contract, text) == (code, param)


def test_words_and_numbers_of_one_parameter_are_told_apart() -> None:
    assert checked(*SUBSCRIPTION, "customer=c&trial_end=now&cancel_at=12&metadata=") == {
        "customer": "c",
        "trial_end": "now",
        "cancel_at": 12,
        "metadata": "",
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_has_a_type_of_the_sdk_and_acts_on_parameters_that_are_in_it(route: Any) -> None:
    code, param = None, None
    try:
        route.contract.check({"no_such_parameter": "x"} if route.contract.form else {"no_such_parameter": 1})
    except ApiError as error:
        code, param = error.code, error.param
    assert (code, param) == ("parameter_unknown", "no_such_parameter")
    schema = adapter(route.contract.source, route.contract.form).json_schema()
    for name in route.contract.acts_on - {"expand"}:
        place = schema
        for part in name.split("."):
            properties = properties_in(schema, place)
            assert part in properties, f"{name} is not a parameter of the SDK"
            place = properties[part]


def properties_in(schema: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """Properties of an object, of a list's entries, or of any member of a union."""
    if "$ref" in place:
        place = schema["$defs"][place["$ref"].rsplit("/", 1)[1]]
    found = dict(place.get("properties", {}))
    for inner in [*place.get("anyOf", []), *([place["items"]] if "items" in place else [])]:
        found |= properties_in(schema, inner)
    return found
