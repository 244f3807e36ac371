"""Tenants' Stripe customers from a CSV file, and tenants that share one."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawbill_pipeline.catalog import Catalog, CatalogError, load, parse, with_customers

TEXT = """
start: 2026-01-01T00:00:00Z
services: {tokens: {unit: token}, calls: {unit: call, bill_by: quantity}}
rate_cards:
  usd: &card
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: 1}, calls: {model: per_unit, unit_amount: 1}}
  eur: {<<: *card, currency: EUR}
tenants:
  acme: {rate_card: usd}
  globex: {rate_card: usd}
  initech: {rate_card: usd}
"""


def _mapped(tmp_path: Path, csv: str, text: str = TEXT) -> Catalog:
    file = tmp_path / "customers.csv"
    file.write_text(csv)
    return with_customers(parse(text), file)


def test_a_file_maps_customers_and_items(tmp_path: Path) -> None:
    csv = "tenant_id,customer_id,service,subscription_item_id\n"
    catalog = _mapped(tmp_path, csv + "acme,cus_1,tokens,si_1\nacme,cus_1,calls,si_2\nglobex, cus_2 ,,\n")
    acme, globex, initech = catalog.tenants.values()
    assert (acme.stripe_customer, acme.stripe_items) == ("cus_1", {"tokens": "si_1", "calls": "si_2"})
    assert (globex.stripe_customer, globex.stripe_items) == ("cus_2", {})
    assert initech.stripe_customer is None


def test_the_catalogue_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(TEXT + "customers: who.csv\n")
    (tmp_path / "who.csv").write_text("customer_id,tenant_id\ncus_1,acme\n")
    assert load(tmp_path / "catalog.yaml").tenants["acme"].stripe_customer == "cus_1"
    (tmp_path / "who.csv").unlink()
    with pytest.raises(CatalogError, match=r"who\.csv: can't be read"):
        load(tmp_path / "catalog.yaml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nobody,cus_1,,", "tenant_id: 'nobody' is no tenant"),
        ("acme,1,,", "customer_id: '1' is no Stripe customer"),
        ("globex,cus_9,,", "customer_id: globex has cus_2 on an earlier line"),
        ("acme,cus_1,tokens,", "subscription_item_id: is empty"),
        ("acme,cus_1,,si_1", "service: is empty"),
        ("acme,cus_1,beer,si_1", "service: 'beer' is no service"),
        ("globex,cus_2,tokens,si_3", "service: globex has an item for tokens"),
        ("acme,cus_1,tokens,x", "subscription_item_id: 'x' is no subscription item"),
        ("acme,cus_1,tokens,si_1,more", "line: has more fields"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, line: str, said: str) -> None:
    csv = f"tenant_id,customer_id,service,subscription_item_id\nglobex,cus_2,tokens,si_2\n{line}\n"
    with pytest.raises(CatalogError) as caught:
        _mapped(tmp_path, csv)
    assert f"customers.csv:3: {said}" in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        _mapped(tmp_path, "tenant_id,customer_id\nnobody,cus_1\nacme,x\n")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("header", ["", "tenant,customer", "tenant_id", "tenant_id,customer_id,phone"])
def test_a_wrong_first_line_is_told(tmp_path: Path, header: str) -> None:
    with pytest.raises(CatalogError, match=r"customers\.csv:1: .*tenant_id and customer_id"):
        _mapped(tmp_path, header + "\n")


def test_the_file_may_not_contradict_the_catalogue(tmp_path: Path) -> None:
    text = TEXT.replace("acme: {", "acme: {stripe_customer: cus_7, ")
    with pytest.raises(CatalogError, match="the catalogue gives acme cus_7"):
        _mapped(tmp_path, "tenant_id,customer_id\nacme,cus_1\n", text)


def _shared(acme: str = "", globex: str = "", text: str = TEXT) -> Catalog:
    return parse(
        text.replace("acme: {rate_card: usd", "acme: {stripe_customer: cus_1, rate_card: usd" + acme).replace(
            "globex: {rate_card: usd", "globex: {stripe_customer: cus_1" + (globex or ", rate_card: usd")
        )
    )


def test_tenants_may_share_a_customer() -> None:
    catalog = _shared(", anchor_day: 5", ", rate_card: usd, anchor_day: 5")
    assert catalog.tenants["acme"].stripe_customer == catalog.tenants["globex"].stripe_customer


@pytest.mark.parametrize(
    ("globex", "said"),
    [
        (", rate_card: eur", "another currency"),
        (", rate_card: usd, time_zone: Asia/Tokyo", "another time_zone"),
        (", rate_card: usd, anchor_day: 2", "another billing period"),
        (", rate_card: usd, interval: week", "another billing period"),
        (", rate_card: usd, stripe_items: {tokens: si_1}", "another stripe_items"),
        (", rate_card: usd, prices: {calls: {model: per_unit, unit_amount: 2}}", "their calls as one quantity"),
    ],
)
def test_what_an_invoice_has_once_must_agree(globex: str, said: str) -> None:
    with pytest.raises(CatalogError, match=said) as caught:
        _shared("", globex)
    assert "tenants.globex.stripe_customer" in str(caught.value)


def test_a_price_that_does_not_add_up_is_not_shared() -> None:
    tiers = "{model: graduated, tiers: [{up_to: 5, unit_amount: 2}, {up_to: inf, unit_amount: 1}]}"
    with pytest.raises(CatalogError, match="their calls as one quantity"):
        _shared(text=TEXT.replace("calls: {model: per_unit, unit_amount: 1}", f"calls: {tiers}"))
    assert _shared(text=TEXT.replace("tokens: {model: per_unit, unit_amount: 1}", f"tokens: {tiers}"))


def test_a_mapping_by_file_is_checked_for_sharing_too(tmp_path: Path) -> None:
    text = TEXT.replace("globex: {rate_card: usd", "globex: {rate_card: eur")
    with pytest.raises(CatalogError, match=r"customers\.csv: tenants\.globex\.stripe_customer: .*another currency"):
        _mapped(tmp_path, "tenant_id,customer_id\nacme,cus_1\nglobex,cus_1\n", text)
