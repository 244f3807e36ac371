"""Tax rates: ``/v1/tax_rates``. What they make of an invoice's lines is in ``taxes``."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.errors import invalid

_PLAIN = ("country", "description", "display_name", "jurisdiction", "state", "tax_type")


def create(call: Call, params: Document) -> Document:
    percentage = params["percentage"]
    if not 0 <= percentage <= 100:
        raise invalid("`percentage` must be between 0 and 100.", "percentage")
    if round(percentage, 4) != percentage:
        raise invalid("`percentage` has at most 4 decimal places.", "percentage")
    rate: Document = {
        "id": call.new_id("txr"),
        "object": "tax_rate",
        "active": params.get("active", True),
        **{name: params.get(name) for name in _PLAIN},
        "created": call.now,
        "effective_percentage": None,
        "flat_amount": None,
        "inclusive": params["inclusive"],
        "jurisdiction_level": None,
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata")),
        "percentage": percentage,
        "rate_type": "percentage",
    }
    return public(call.put("tax_rate", rate))


def retrieve(call: Call, params: Document, id: str) -> Document:
    return public(call.find("tax_rate", id))


def update(call: Call, params: Document, id: str) -> Document:
    """Its percentage never changes: archive it and make another."""
    rate = call.find("tax_rate", id)
    rate |= {name: params[name] for name in ("active", *_PLAIN) if name in params}
    rate["metadata"] = merged_metadata(rate["metadata"], params.get("metadata"))
    return public(call.put("tax_rate", rate))


def list_all(call: Call, params: Document) -> Document:
    def keep(rate: Document) -> bool:
        return all(params.get(name, rate[name]) == rate[name] for name in ("active", "inclusive"))

    return page(call, "tax_rate", params, "/v1/tax_rates", keep=keep)


def checked_rates(call: Call, given: list[str] | str | None, param: str) -> list[str]:
    """The ids, if each is an active rate. Raises ApiError (400)."""
    for identifier in given or []:
        if not call.find("tax_rate", identifier, param=param)["active"]:
            raise invalid(f"The tax rate {identifier} is archived and can't be applied.", param)
    return list(given or [])


_COMMON = f"active metadata {' '.join(_PLAIN)}"
ROUTES = [
    Route("POST", "/v1/tax_rates", Contract("TaxRateCreateParams", f"{_COMMON} inclusive percentage"), create),
    Route(
        "GET",
        "/v1/tax_rates",
        Contract("TaxRateListParams", "active created ending_before inclusive limit starting_after"),
        list_all,
    ),
    Route("GET", "/v1/tax_rates/{id}", Contract("TaxRateRetrieveParams"), retrieve),
    Route("POST", "/v1/tax_rates/{id}", Contract("TaxRateUpdateParams", _COMMON), update),
]
