"""Provisioning against the real SDK: what it makes, that a second call makes nothing, and whom a failure stops."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from clawbill_pipeline.catalog import parse, with_customers
from clawbill_pipeline.delivery.pricing import quantity_terms
from clawbill_pipeline.delivery.provisioning import ProvisioningError, anchor, follows, provision, same_terms
from clawbill_pipeline.ledger.tables import stripe_customers, stripe_items
from clawbill_pipeline.settings import SettingsError
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.delivery.faults import faulty
from clawbill_pipeline_tests.delivery.world import CATALOG, T0, World


def _mapped(world: World) -> tuple[dict, dict]:
    with world.ledger.transaction() as connection:
        customers = {row.tenant_id: row for row in connection.execute(select(stripe_customers))}
        items = {(row.tenant_id, row.service): row for row in connection.execute(select(stripe_items))}
    return customers, items


def test_makes_everything_and_maps_it(world: World) -> None:
    result = world.provision()
    assert not result.failed
    assert all(check.passed for check in result.checks)
    kinds = [action.kind for action in result.made]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "product": 1,
        "meter": 2,
        "price": 2,
        "customer": 2,
        "subscription": 2,
    }
    customers, items = _mapped(world)
    assert set(customers) == {"acme", "globex"}
    assert set(items) == {(tenant, service) for tenant in customers for service in ("tokens", "requests")}
    assert {item.backend for item in items.values()} == {"hour_meter"}
    v1 = world.account.v1
    price = v1.prices.retrieve(items["acme", "tokens"].price_id)
    assert price.unit_amount_decimal == Decimal("0.0001")  # cents: a millionth of a dollar
    assert price.recurring.meter == items["acme", "tokens"].meter_id
    # 0.25 dollars a request, sent in thousandths of a request
    assert v1.prices.retrieve(items["acme", "requests"].price_id).unit_amount_decimal == Decimal("0.025")
    meter = v1.billing.meters.retrieve(items["acme", "tokens"].meter_id)
    assert (meter.event_name, meter.event_time_window) == ("clawbill_tokens", "hour")
    assert v1.customers.retrieve(customers["globex"].customer_id).metadata["tenant_id"] == "globex"
    subscription = v1.subscriptions.retrieve(customers["acme"].subscription_id).to_dict()
    assert subscription["billing_cycle_anchor"] == int(world.catalog.tenant("acme").period_at(T0).end.timestamp())
    assert {item["metadata"]["service"] for item in subscription["items"]["data"]} == {"tokens", "requests"}


def test_a_second_call_changes_nothing_and_says_so(world: World) -> None:
    world.provision()
    mapped, stats = _mapped(world), world.account.stats()["objects"]
    again = world.provision()
    assert not again.made
    assert not again.failed
    assert len(again.kept) == 1 + 2 + 2 + 2 + 2 + 4
    assert _mapped(world) == mapped
    assert world.account.stats()["objects"] == stats


def test_a_ledger_that_forgot_finds_everything_again(world: World) -> None:
    world.provision()
    before = _mapped(world)
    world.execute("DELETE FROM stripe_items")
    world.execute("DELETE FROM stripe_customers")
    assert not world.provision().made
    after = _mapped(world)
    for old, new in zip(before, after, strict=True):
        assert {key: row._asdict() | {"mapped_at": None} for key, row in old.items()} == {
            key: row._asdict() | {"mapped_at": None} for key, row in new.items()
        }


def test_a_dry_run_makes_nothing(world: World) -> None:
    shown = world.provision(dry_run=True)
    assert shown.dry_run
    assert _mapped(world) == ({}, {})
    assert not world.account.stats().get("objects")
    made = world.provision()
    assert {(action.kind, action.name) for action in shown.made} == {(action.kind, action.name) for action in made.made}
    assert not world.provision(dry_run=True).made


def test_a_new_service_and_a_new_tenant_are_added(world: World) -> None:
    world.provision()
    text = CATALOG.replace("  tokens: {unit", "  extra: {unit: byte}\n  tokens: {unit")
    text = text.replace(
        "          tokens: {", '          extra: {model: per_unit, unit_amount: "1"}\n          tokens: {'
    )
    world.catalog = parse(text + "  initech: {rate_card: standard}\n")
    made = world.provision()
    assert not made.failed
    assert sorted((action.kind, action.name) for action in made.made) == [
        ("customer", "initech"),
        ("item", "acme/extra"),
        ("item", "globex/extra"),
        ("meter", "clawbill_extra"),
        ("price", "clawbill:extra:usd"),
        ("subscription", "initech"),
    ]
    assert len(_mapped(world)[1]) == 9
    assert not world.provision().made


def test_an_existing_customer_is_taken(world: World) -> None:
    customer = world.account.customer()
    world.catalog = parse(CATALOG.replace("name: Acme", f"stripe_customer: {customer}"))
    assert not world.provision().failed
    assert _mapped(world)[0]["acme"].customer_id == customer
    assert world.account.v1.customers.retrieve(customer).metadata["tenant_id"] == "acme"


def test_one_bad_customer_id_stops_nobody_else(world: World) -> None:
    world.catalog = parse(CATALOG.replace("name: Acme", "stripe_customer: cus_nobody"))
    result = world.provision()
    assert [(action.tenant_id, action.kind) for action in result.failed] == [("acme", "customer")]
    assert "cus_nobody" in result.failed[0].detail
    assert set(_mapped(world)[0]) == {"globex"}
    assert not result.checks[0].passed


def test_someone_elses_customer_is_refused(world: World) -> None:
    customer = world.account.customer(metadata={"tenant_id": "initech"})
    world.catalog = parse(CATALOG.replace("name: Acme", f"stripe_customer: {customer}"))
    (failed,) = world.provision().failed
    assert "belongs to tenant 'initech'" in failed.detail


def test_two_customers_of_one_tenant_are_not_guessed_between(world: World) -> None:
    for _ in range(2):
        world.account.customer(metadata={"tenant_id": "acme"})
    (failed,) = world.provision().failed
    assert "name one in the catalogue" in failed.detail


def test_a_cancelled_subscription_is_reported(world: World) -> None:
    world.provision()
    world.account.v1.subscriptions.cancel(_mapped(world)[0]["acme"].subscription_id)
    (failed,) = world.provision().failed
    assert failed.tenant_id == "acme"
    assert "canceled" in failed.detail


@pytest.mark.parametrize(
    ("formula", "params", "said"),
    [
        ("last", {}, "aggregates by 'last'"),
        ("sum", {"event_time_window": "day"}, "one value a day"),
        ("sum", {"value_settings": {"event_payload_key": "n"}}, "payload keys"),
    ],
)
def test_a_meter_that_does_not_fit_is_refused(world: World, formula: str, params: dict, said: str) -> None:
    world.account.meter("clawbill_tokens", formula, **params)
    result = world.provision()
    (failed,) = result.failed
    assert failed.kind == "meter"
    assert said in failed.detail
    assert "can't be changed" in failed.detail
    assert set(_mapped(world)[1]) == {("acme", "requests"), ("globex", "requests")}


def test_a_plain_sum_meter_is_used_as_one(world: World) -> None:
    world.account.meter("clawbill_tokens")
    assert not world.provision().failed
    assert {key[1]: row.backend for key, row in _mapped(world)[1].items()} == {
        "tokens": "sum_meter",
        "requests": "hour_meter",
    }


def test_a_changed_price_is_explained_not_changed(world: World) -> None:
    world.provision()
    before = _mapped(world)
    world.catalog = parse(CATALOG.replace("0.25", "0.26"))
    result = world.provision()
    assert [action.name for action in result.failed] == ["clawbill:requests:usd:standard"]
    assert "can't be changed" in result.failed[0].detail
    assert _mapped(world) == before


def test_a_price_that_stripe_cannot_charge_is_refused_and_others_work(world: World) -> None:
    world.catalog = parse(
        CATALOG.replace(
            '{model: per_unit, unit_amount: "0.25"}', '{model: per_unit, unit_amount: "0.25", minimum: "5"}'
        )
    )
    result = world.provision()
    assert ["minimum" in action.detail for action in result.failed] == [True]
    assert set(_mapped(world)[1]) == {("acme", "tokens"), ("globex", "tokens")}


def test_periods_that_start_inside_an_hour_get_sum_meters(world: World) -> None:
    world.catalog = parse(CATALOG.replace("name: Acme", "time_zone: Asia/Kolkata"))
    assert not world.provision().failed
    assert {row.backend for row in _mapped(world)[1].values()} == {"sum_meter"}


def test_an_hour_meter_is_refused_to_periods_that_start_inside_an_hour(world: World) -> None:
    world.account.meter("clawbill_tokens", event_time_window="hour")
    world.catalog = parse(CATALOG.replace("name: Acme", "time_zone: Asia/Kolkata"))
    result = world.provision()
    assert [(action.name, action.kind) for action in result.failed] == [("acme/tokens", "item")]
    assert set(_mapped(world)[1]) == {("acme", "requests"), ("globex", "tokens"), ("globex", "requests")}


def test_a_refused_key_is_not_quoted(world: World) -> None:
    api = StripeApi(SecretStr("sk_nonsense_1234567890abcdef"), base=world.sandbox.url)
    with pytest.raises(ProvisioningError) as raised:
        provision(world.ledger, world.catalog, api, now=world.now(), run_id="test")
    assert "STRIPE_SECRET_KEY" in str(raised.value)
    assert "cdef" not in str(raised.value)


def test_a_live_key_needs_a_live_catalogue(world: World) -> None:
    api = StripeApi(SecretStr("sk_live_1234567890abcdef"), base=world.sandbox.url)
    with pytest.raises(SettingsError, match="live: true"):
        provision(world.ledger, world.catalog, api, now=world.now(), run_id="test")


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        (
            "{rate_card: standard}",
            {"billing_cycle_anchor": int(datetime.fromisoformat("2026-03-01T00:00Z").timestamp())},
        ),
        (
            "{rate_card: standard, anchor_day: 31}",
            {"billing_cycle_anchor_config": {"day_of_month": 31, "hour": 0, "minute": 0, "second": 0}},
        ),
        (
            "{rate_card: standard, time_zone: Asia/Tokyo}",
            {"billing_cycle_anchor_config": {"day_of_month": 31, "hour": 15, "minute": 0, "second": 0}},
        ),
    ],
)
def test_stripes_periods_start_when_the_tenants_do(tenant: str, expected: dict) -> None:
    catalog = parse(CATALOG + f"  t: {tenant}\n")
    now = T0 - timedelta(days=5)
    assert anchor(catalog.tenant("t"), now) == expected
    assert follows(catalog.tenant("t"), now)


def test_a_clock_change_is_named(world: World) -> None:
    world.catalog = parse(CATALOG.replace("name: Acme", "time_zone: America/New_York"))
    result = world.provision()
    assert result.adrift == ("acme",)
    assert not result.checks[1].passed
    assert "acme" in result.checks[1].description


def test_a_legacy_item_lives_on_usage_records(world: World) -> None:
    subscription = world.legacy_subscription("acme")
    result = world.provision()
    assert not result.failed
    customers, items = _mapped(world)
    assert customers["acme"].subscription_id == subscription
    assert (items["acme", "tokens"].backend, items["acme", "tokens"].meter_id) == ("usage_record", "")
    assert items["acme", "requests"].backend == "hour_meter"
    assert not world.provision().made


def test_a_legacy_item_that_charges_something_else_is_refused(world: World) -> None:
    world.legacy_subscription("acme", "0.0002")
    (failed,) = world.provision().failed
    assert (failed.name, "without a meter" in failed.detail) == ("acme/tokens", True)
    assert ("acme", "tokens") not in _mapped(world)[1]


SHARED = CATALOG.replace("name: Acme", "stripe_customer: {0}, name: Acme").replace(
    "globex: {rate_card: standard", "globex: {rate_card: standard, stripe_customer: {0}"
)


def _share(world: World) -> str:
    customer = world.account.customer()
    world.catalog = parse(SHARED.replace("{0}", customer))
    return customer


def test_tenants_that_share_a_customer_are_on_one_subscription(world: World) -> None:
    customer = _share(world)
    assert not world.provision(dry_run=True).failed
    assert not world.provision().failed
    customers, items = _mapped(world)
    assert {row.customer_id for row in customers.values()} == {customer}
    assert (customers["acme"].payer_id, customers["globex"].payer_id) == (None, "acme")
    assert customers["acme"].subscription_id == customers["globex"].subscription_id
    for service in ("tokens", "requests"):
        assert items["acme", service].subscription_item_id == items["globex", service].subscription_item_id
    assert len(world.account.v1.subscriptions.list({"customer": customer}).data) == 1
    assert world.account.v1.customers.retrieve(customer).metadata["tenant_id"] == "acme"
    again = world.provision()
    assert not again.made
    assert not again.failed


def test_who_pays_goes_on_paying(world: World) -> None:
    """Whoever comes first in the catalogue later: invoices, standing and records are with the one that paid first."""
    customer = world.account.customer()
    alone = CATALOG.replace("  acme: {rate_card: standard, name: Acme}\n", "")
    world.catalog = parse(alone.replace("email: billing@globex.example", f"stripe_customer: {customer}"))
    world.provision()
    world.catalog = parse(SHARED.replace("{0}", customer))
    assert not world.provision().failed
    customers, _ = _mapped(world)
    assert (customers["globex"].payer_id, customers["acme"].payer_id) == (None, "globex")


def test_a_customer_is_shared_only_where_both_name_it(world: World) -> None:
    world.provision()
    taken = _mapped(world)[0]["acme"].customer_id
    world.catalog = parse(CATALOG + f"  initech: {{rate_card: standard, stripe_customer: {taken}}}\n")
    (failed,) = world.provision().failed
    assert (failed.tenant_id, "name it for both tenants" in failed.detail) == ("initech", True)
    assert "initech" not in _mapped(world)[0]


def _bought_elsewhere(world: World, cadence: dict[str, Any] | None = None, **price: Any) -> tuple[str, str]:
    """A customer with a subscription to our meter at somebody's own price; the ids of customer and item."""
    v1, customer = world.account.v1, world.account.customer()
    meter = world.account.meter("clawbill_tokens", event_time_window="hour").id
    given = {
        "product": v1.products.create({"name": "By hand"}).id,
        "currency": "usd",
        "recurring": {"interval": "month", "usage_type": "metered", "meter": meter, **(cadence or {})},
        "unit_amount_decimal": "0.0001",
        **price,
    }
    ends = int(world.catalog.tenant("acme").period_at(world.now()).end.timestamp())
    subscription = v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": v1.prices.create(given).id}],
            "billing_cycle_anchor": ends,
            "proration_behavior": "none",
        }
    ).to_dict()
    return customer, subscription["items"]["data"][0]["id"]


def test_existing_items_go_on_being_used(world: World, tmp_path: Path) -> None:
    customer, item = _bought_elsewhere(world)
    file = tmp_path / "customers.csv"
    file.write_text(f"tenant_id,customer_id,service,subscription_item_id\nacme,{customer},tokens,{item}\n")
    plain = world.catalog
    world.catalog = with_customers(plain, file)
    result = world.provision()
    assert not result.failed
    assert not result.adrift
    customers, items = _mapped(world)
    assert customers["acme"].customer_id == customer
    assert items["acme", "tokens"].subscription_item_id == item
    assert items["acme", "requests"].backend == "hour_meter"  # its item was added to the same subscription
    assert len(world.account.v1.subscriptions.list({"customer": customer}).data) == 1
    world.catalog = plain  # the ledger remembers
    again = world.provision()
    assert not again.made
    assert not again.failed


@pytest.mark.parametrize(
    ("cadence", "price", "said"),
    [
        ({}, {"unit_amount_decimal": "0.0002"}, "bills by price"),
        ({"interval": "week"}, {}, "bills by price"),
        ({}, {"transform_quantity": {"divide_by": 10, "round": "up"}}, "bills by price"),
    ],
)
def test_an_existing_item_that_charges_something_else_is_refused(
    world: World, cadence: dict[str, Any], price: dict[str, Any], said: str
) -> None:
    if cadence:
        world.catalog = parse(CATALOG.replace("name: Acme", "interval: week"))
    customer, item = _bought_elsewhere(world, cadence, **price)
    named = f"stripe_customer: {customer}, stripe_items: {{tokens: {item}}}"
    world.catalog = parse(CATALOG.replace("name: Acme", named))
    assert said in " ".join(action.detail for action in world.provision().failed)
    assert ("acme", "tokens") not in _mapped(world)[1]


def test_items_that_are_not_there_are_told(world: World) -> None:
    customer = world.account.customer()
    named = f"stripe_customer: {customer}, stripe_items: {{tokens: si_nothing}}"
    world.catalog = parse(CATALOG.replace("name: Acme", named))
    (failed,) = world.provision().failed
    assert (failed.tenant_id, "si_nothing" in failed.detail) == ("acme", True)
    assert set(_mapped(world)[0]) == {"globex"}


@pytest.mark.parametrize(
    ("tenant", "recurring", "words"),
    [
        ("interval: day", ("day", 1), "daily, next period from 2026-03-03T00:00Z"),
        ("interval: week", ("week", 1), "weekly, next period from 2026-03-09T00:00Z"),
        ("interval_count: 3", ("month", 3), "every 3 months, next period from 2026-04-01T00:00Z"),
        ("interval_count: 3, anchor_day: 31", ("month", 3), "every 3 months, next period from 2026-04-30T00:00Z"),
        ("interval: year, anchor_date: 2024-02-29", ("year", 1), "yearly, next period from 2027-02-28T00:00Z"),
    ],
)
def test_periods_of_any_length_start_at_stripe_when_the_tenants_do(
    world: World, tenant: str, recurring: tuple[str, int], words: str
) -> None:
    world.catalog = parse(CATALOG.replace("name: Acme", tenant))
    assert any(words in action.detail for action in world.provision(dry_run=True).actions if action.tenant_id == "acme")
    result = world.provision()
    assert not result.failed
    assert not result.adrift
    _, items = _mapped(world)
    price = world.account.v1.prices.retrieve(items["acme", "tokens"].price_id)
    assert (price.recurring.interval, price.recurring.interval_count) == recurring
    globex = world.account.v1.prices.retrieve(items["globex", "tokens"].price_id)
    assert (globex.recurring.interval, globex.recurring.interval_count) == ("month", 1)
    of_stripe = world.account.v1.subscription_items.retrieve(items["acme", "tokens"].subscription_item_id)
    period = world.catalog.tenant("acme").period_at(world.now())
    assert of_stripe.current_period_end == int(period.end.timestamp())
    assert not world.provision().made


def test_every_kind_of_price_is_made_and_recognised(world: World) -> None:
    """Per unit, graduated, volume, and packages; and a price that is there is told apart from one that differs."""
    tiers = "tiers: [{up_to: 10, unit_amount: 2, flat_amount: 1}, {up_to: inf, unit_amount: 1}]"
    kinds = {
        "per_unit": "{model: per_unit, unit_amount: 2}",
        "graduated": f"{{model: graduated, {tiers}}}",
        "volume": f"{{model: volume, {tiers}}}",
        "package": "{model: package, package_size: 100, package_amount: 3}",
    }
    services = "".join(f"  {name}: {{unit: call, bill_by: quantity}}\n" for name in kinds)
    prices = "".join(f"          {name}: {price}\n" for name, price in kinds.items())
    text = CATALOG.replace("rate_cards:", f"{services}rate_cards:").replace(
        "        prices:\n", f"        prices:\n{prices}"
    )
    world.catalog = parse(text)
    assert not world.provision().failed
    _, items = _mapped(world)
    v1 = world.account.v1
    made = {name: v1.prices.retrieve(items["acme", name].price_id, {"expand": ["tiers"]}).to_dict() for name in kinds}
    for name, price in made.items():
        priced = world.catalog.price_for("acme", name, world.now())
        for other in kinds:
            terms = quantity_terms(world.catalog.price_for("acme", other, world.now()).price, priced.currency, 0)
            assert same_terms(price, terms) == (name == other)
    assert made["package"]["transform_quantity"] == {"divide_by": 100, "round": "up"}
    assert (made["graduated"]["tiers_mode"], made["volume"]["tiers_mode"]) == ("graduated", "volume")


def test_what_stripe_would_prorate_is_said_not_to_be(world: World) -> None:
    """Creating a subscription whose first period is cut, and adding an item to a running one."""
    with faulty(world.sandbox.url) as proxy:
        world.base = proxy.url
        world.provision()
        world.catalog = parse(
            CATALOG.replace("rate_cards:", "  extra: {unit: call}\nrate_cards:").replace(
                "        prices:\n", "        prices:\n          extra: {model: per_unit, unit_amount: 1}\n"
            )
        )
        world.provision()
        subscribed = [params for path, params in proxy.posts if path.startswith("/v1/subscriptions")]
    assert len(subscribed) == 4
    assert {form["proration_behavior"] for form in subscribed} == {"none"}
