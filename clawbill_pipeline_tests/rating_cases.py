"""``run_case``: the one mapping from a case of rating_cases.json to the engine's public interface.

A case says a peer's price in a peer's words; here those words become a price as our catalogue writes it. Nothing here
computes money, and nothing knows a case by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

from clawbill_pipeline.catalog.prices import Discount, Price
from clawbill_pipeline.money import exponent, invoice_amount
from clawbill_pipeline.rating import engine
from clawbill_pipeline.rating.engine import Rating, Share, Usage

Params = dict[str, Any]
_PRICE: TypeAdapter[Price] = TypeAdapter(Price)
_DISCOUNTS: TypeAdapter[tuple[Discount, ...]] = TypeAdapter(tuple[Discount, ...])
_ROUND = {
    "up": "up",
    "ceil": "up",
    "ceiling": "up",
    "down": "down",
    "floor": "down",
    "half_up": "half_up",
    "round": "half_up",
    "nearest": "half_up",
    "none": None,
}
_NOT = {"no", "not", "nothing", "without", "never", "skips", "waives", "omits", "free"}


def run_case(case: dict[str, Any]) -> Decimal:
    """The amount (for a metering case the quantity) of ``case``, rounded as an invoice line where it says so."""
    amount = _MODELS[case["model"]](case, _given(case.get("params") or {}))
    return _rounded(case, amount.amount if isinstance(amount, Rating) else amount)


def _given(params: Any) -> Any:
    """``params`` without what is there but null, which is as good as not there."""
    if isinstance(params, dict):
        return {name: _given(value) for name, value in params.items() if value is not None}
    return [_given(value) for value in params] if isinstance(params, list) else params


def _rounded(case: dict[str, Any], amount: Decimal) -> Decimal:
    return amount if (case.get("rounding") or "none") == "none" else invoice_amount(amount, case["currency"])


def _line(case: dict[str, Any], amount: Decimal) -> Decimal:
    """``amount`` as one of several lines, which are rounded each by itself unless only their total is."""
    return amount if "total" in (case.get("rounding") or "") else _rounded(case, amount)


def _usage(quantity: Any, events: int | None = None) -> Usage:
    if isinstance(quantity, list):
        return Usage.of_events(Decimal(str(item)) for item in quantity)
    if isinstance(quantity, dict):
        return Usage.of_parts({unit: Decimal(str(value)) for unit, value in quantity.items()})
    return Usage(Decimal(str(quantity)), event_count=events)


def _price(case: dict[str, Any], model: str, params: Params, **fields: Any) -> Price:
    """A price of ``model`` with what cases say alike for all: limits, allowances, conversion, discounts, policy."""
    common: Params = {
        "minimum": params.get("minimum"),
        "maximum": params.get("maximum"),
        "discounts": _discounts(params.get("discounts", ()), case),
        "included": params.get("free_units", params.get("usage_discount", "0")),
    }
    factors = {name: params[name] for name in ("divide_by", "multiply_by") if name in params}
    if factors:
        rounding = _ROUND[params.get("round", "none")]
        common["convert"] = {**factors, "round": rounding, "decimals": params.get("precision", 0) if rounding else 0}
    policy = set((case.get("policy") or "").split("_"))
    if "zero" in policy:
        # zero_usage_bills_first_flat, or that it bills nothing, no flat amount, ...
        common["charge_flat_on_zero"] = "flat" in policy and not policy & _NOT
    if model == "capacity":
        del common["included"]
    return _PRICE.validate_python({"model": model, **common, **fields})


def _discounts(discounts: Any, case: dict[str, Any]) -> list[Params]:
    """In the card's order: peers take percentages first, unless the case says that they come as listed."""
    found: list[Params] = [
        {"kind": "percentage", "percent": value} if kind.startswith("percent") else {"kind": "fixed", "amount": value}
        for kind, value in discounts
    ]
    if set((case.get("policy") or "").split("_")) & {"listed", "order", "sequence", "sequential"}:
        return found
    return sorted(found, key=lambda discount: discount["kind"] == "fixed")


def _per_unit_price(case: dict[str, Any], params: Params) -> Price:
    fields = {name: params[name] for name in ("unit_amount", "per", "increment") if name in params}
    return _price(case, "per_unit", params, **fields, flat_amount=params.get("connect_fee", "0"))


def _tiered_price(case: dict[str, Any], model: str, params: Params) -> Price:
    tiers = [
        {
            "up_to": tier.get("up_to"),
            "unit_amount": tier.get("unit_amount") or "0",
            "flat_amount": tier.get("flat_amount") or "0",
            "maximum": tier.get("tier_cap", tier.get("maximum", params.get("tier_cap"))),
        }
        for tier in params["tiers"]
    ]
    return _price(case, model, params, tiers=_open(tiers))


def _open(tiers: list[Params]) -> list[Params]:
    """A peer's last tier may end; ours must not, or quantities above it had no price."""
    return [*tiers[:-1], {**tiers[-1], "up_to": None}]


def _package_price(case: dict[str, Any], params: Params) -> Price:
    fields = {name: params[name] for name in ("package_size", "package_amount")}
    return _price(case, "package", params, **fields, round=_ROUND[params.get("round", "up")])


def _percentage_price(case: dict[str, Any], params: Params) -> Price:
    names = ("fixed_per_event", "free_events", "min_per_event", "max_per_event")
    fields = {name: params[name] for name in names if params.get(name) is not None}
    return _price(case, "percentage", params, percent=params["rate_percent"], **fields)


def _graduated_percentage_price(case: dict[str, Any], params: Params) -> Price:
    tiers = [
        {"up_to": tier.get("up_to"), "percent": tier["rate_percent"], "flat_amount": tier.get("flat_amount") or "0"}
        for tier in params["tiers"]
    ]
    return _price(case, "graduated_percentage", params, tiers=_open(tiers))


def _block_price(case: dict[str, Any], mode: str, params: Params) -> Price:
    tiers, up_to = [], Decimal(0)
    for block in params["blocks"]:
        up_to += Decimal(block["block_size"]) * Decimal(block.get("max_blocks") or 0)
        tiers.append({"up_to": up_to, "block_size": block["block_size"], "block_amount": block["price"]})
    return _price(case, "block", params, mode=mode, tiers=_open(tiers))


def _capacity_price(case: dict[str, Any], params: Params) -> Price:
    tiers = [{"amount": tier["price"], "limits": tier.get("limits") or {}} for tier in params["tiers"]]
    tiers[-1]["limits"] = {}
    return _price(case, "capacity", params, tiers=tiers)


def _rated(price: Price, case: dict[str, Any], params: Params) -> Rating:
    return engine.rate(price, _usage(case["quantity"], params.get("events")))


def _progressive(price: Price, case: dict[str, Any], params: Params) -> Rating:
    before, added = Decimal(params.get("already_rated_quantity", 0)), Decimal(str(case["quantity"]))
    billed = params.get("already_billed")
    return engine.rate_increment(price, before, added, billed=None if billed is None else Decimal(billed))


def _buckets(price: Price, case: dict[str, Any]) -> Rating:
    return engine.rate_buckets(price, [Decimal(str(quantity)) for quantity in case["quantity"]])


def _time_of_use(case: dict[str, Any], params: Params) -> Rating:
    # The case gives what fell into each tariff, not when: any bands will do that do not overlap.
    bands, parts = [], {}
    for number, (quantity, unit_amount, *per) in enumerate(params["segments"]):
        times = {"from": f"{number // 60:02}:{number % 60:02}", "to": f"{(number + 1) // 60:02}:{(number + 1) % 60:02}"}
        per_unit = {"model": "per_unit", "unit_amount": unit_amount, "per": (*per, params.get("per", "1"))[0]}
        bands.append({"name": f"segment{number}", **times, "price": per_unit})
        parts[f"segment{number}"] = Decimal(quantity)
    fields = {"bands": bands, "otherwise": {"model": "per_unit", "unit_amount": "0"}}
    price = {"model": "time_of_use", **fields, "flat_amount": params.get("connect_fee", "0")}
    return engine.rate(_PRICE.validate_python(price), Usage.of_parts(parts))


def _sum_of_cents(case: dict[str, Any], params: Params) -> Rating:
    cents = Decimal(10) ** exponent(case["currency"])
    price = _price(case, "dynamic", params, multiplier=params.get("multiplier", "1"), convert={"divide_by": cents})
    return engine.rate(price, _usage(case["quantity"]))


def _weighted_sum(case: dict[str, Any], params: Params) -> Decimal:
    deltas = [(Decimal(at), Decimal(delta)) for at, delta in params["deltas"]]
    places = {"places": params["round_places"]} if "round_places" in params else {}
    initial = Decimal(params.get("initial_value", 0))
    return engine.weighted_sum(deltas, Decimal(params["period_seconds"]), initial=initial, **places)


def _late_correction(case: dict[str, Any], params: Params) -> Rating:
    price = _PRICES[params["model"]](case, params)
    return engine.correction(price, _usage(case["quantity"]), Decimal(params.get("already_billed", 0)))


def _proration_net(case: dict[str, Any], params: Params) -> Decimal:
    share = Share(Decimal(params["remaining_days"]), Decimal(params["period_days"]))
    new, old = (_line(case, engine.prorated(Decimal(params.get(name, 0)), share)) for name in ("new", "old"))
    return new - old


_PRICES: dict[str, Callable[[dict[str, Any], Params], Price]] = {
    "per_unit": _per_unit_price,
    "graduated": lambda case, params: _tiered_price(case, "graduated", params),
    "volume": lambda case, params: _tiered_price(case, "volume", params),
    "package": _package_price,
    "percentage": _percentage_price,
    "graduated_percentage": _graduated_percentage_price,
    "block_graduated": lambda case, params: _block_price(case, "graduated", params),
    "block_volume": lambda case, params: _block_price(case, "volume", params),
    "capacity": _capacity_price,
    "dynamic": lambda case, params: _price(case, "dynamic", params, multiplier=params["multiplier"]),
}
# The same prices by their other names in cases.
_PRICES |= {
    "per_unit_connect": _PRICES["per_unit"],
    "unit_convert": _PRICES["per_unit"],
    "unit_convert_graduated": _PRICES["graduated"],
    "unit_convert_volume": _PRICES["volume"],
    "graduated_capped": _PRICES["graduated"],
    "volume_capped": _PRICES["volume"],
    "percentage_per_event": _PRICES["percentage"],
    "dynamic_multiplier": _PRICES["dynamic"],
}


def _of(build: Callable[[dict[str, Any], Params], Price]) -> Callable[[dict[str, Any], Params], Rating]:
    return lambda case, params: _rated(build(case, params), case, params)


def _progressive_of(build: Callable[[dict[str, Any], Params], Price]) -> Callable[[dict[str, Any], Params], Rating]:
    return lambda case, params: _progressive(build(case, params), case, params)


def _buckets_of(build: Callable[[dict[str, Any], Params], Price]) -> Callable[[dict[str, Any], Params], Rating]:
    return lambda case, params: _buckets(build(case, params), case)


_MODELS: dict[str, Callable[[dict[str, Any], Params], Rating | Decimal]] = {
    **{name: _of(build) for name, build in _PRICES.items()},
    **{f"{name}_progressive": _progressive_of(build) for name, build in _PRICES.items()},
    **{f"per_bucket_{name}": _buckets_of(build) for name, build in _PRICES.items()},
    "time_of_use": _time_of_use,
    "dynamic_sum_cents": _sum_of_cents,
    "metering_weighted_sum": _weighted_sum,
    "late_correction_delta": _late_correction,
    "proration_net": _proration_net,
    "round_amount": lambda case, params: Decimal(params["amount"]),
    "sum_of_rounded_lines": lambda case, params: sum(
        (_line(case, Decimal(str(line))) for line in case["quantity"]), Decimal(0)
    ),
    "minimum_true_up": lambda case, params: engine.true_up(
        Decimal(params["minimum"]), _line(case, Decimal(params["used_amount"]))
    ),
    "discounts": lambda case, params: engine.discounted(
        Decimal(params["subtotal"]), _DISCOUNTS.validate_python(_discounts(params["discounts"], case))
    ),
}
