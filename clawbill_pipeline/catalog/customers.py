"""Who is who at Stripe, from a CSV file: tenants' customers and subscription items, put into a catalogue."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from clawbill_pipeline.catalog.models import Catalog, CatalogError, Misfit, Tenant

COLUMNS = ("tenant_id", "customer_id", "service", "subscription_item_id")
_IDS = {"customer_id": re.compile(r"cus_\w+", re.ASCII), "subscription_item_id": re.compile(r"si_\w+", re.ASCII)}


def with_customers(catalog: Catalog, path: Path) -> Catalog:
    """The catalogue whose tenants have the Stripe customers and items of the CSV file ``path``.

    A line names a tenant and its customer, and may name a service and the subscription item that bills it: then a
    tenant has a line a service. Raises CatalogError that names the file, line and field of every fault.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: can't be read: {error}") from None
    reader = csv.DictReader(text.splitlines(), restkey="rest", restval="")
    columns = reader.fieldnames or []
    if not set(COLUMNS[:2]) <= set(columns) <= set(COLUMNS) or len(set(columns)) != len(columns):
        raise CatalogError(
            f"{path}:1: {', '.join(columns) or 'nothing'}: the first line must name the columns tenant_id and "
            "customer_id, and may name service and subscription_item_id"
        )
    customers: dict[str, str] = {}
    items: dict[str, dict[str, str]] = {}
    faults: list[str] = []
    for row in reader:
        line = {name: (value.strip() if isinstance(value, str) else "") for name, value in row.items()}
        found = [
            f"{path}:{reader.line_num}: {fault}" for fault in _faults(catalog, line, "rest" in row, customers, items)
        ]
        faults += found
        if not found:
            customers[line["tenant_id"]] = line["customer_id"]
            if line.get("service"):
                items.setdefault(line["tenant_id"], {})[line["service"]] = line["subscription_item_id"]
    if faults:
        raise CatalogError("\n".join(faults))
    tenants = {
        tenant_id: _with_customer(tenant, customers.get(tenant_id), items.get(tenant_id, {}))
        for tenant_id, tenant in catalog.tenants.items()
    }
    mapped = catalog.model_copy(update={"tenants": tenants})
    try:
        mapped.check_sharing()
    except Misfit as misfit:
        raise CatalogError(f"{path}: {'.'.join(str(part) for part in misfit.where)}: {misfit}") from None
    return mapped


def _with_customer(tenant: Tenant, customer: str | None, items: Mapping[str, str]) -> Tenant:
    if customer is None:
        return tenant
    return tenant.model_copy(update={"stripe_customer": customer, "stripe_items": {**tenant.stripe_items, **items}})


def _faults(
    catalog: Catalog,
    line: Mapping[str, str],
    too_long: bool,
    customers: Mapping[str, str],
    items: Mapping[str, Mapping[str, str]],
) -> Iterator[str]:
    """What is wrong with a line, each fault beginning with its field."""
    tenant_id, customer, service = line["tenant_id"], line["customer_id"], line.get("service", "")
    item = line.get("subscription_item_id", "")
    if too_long:
        yield "line: has more fields than the first line names; put a field with a comma into quotes"
    tenant = catalog.tenants.get(tenant_id)
    if tenant is None:
        yield f"tenant_id: {tenant_id!r} is no tenant of the catalogue; add it there, or remove the line"
    if not _IDS["customer_id"].fullmatch(customer):
        yield f"customer_id: {customer!r} is no Stripe customer; it begins with cus_"
    elif customers.get(tenant_id, customer) != customer:
        yield f"customer_id: {tenant_id} has {customers[tenant_id]} on an earlier line; a tenant has one customer"
    elif tenant is not None and tenant.stripe_customer not in (None, customer):
        yield f"customer_id: the catalogue gives {tenant_id} {tenant.stripe_customer}; make both the same"
    if bool(service) != bool(item):
        missing = "subscription_item_id" if service else "service"
        yield f"{missing}: is empty; a service and the item that bills it go together"
    elif service and service not in catalog.services:
        yield f"service: {service!r} is no service of the catalogue; there is {', '.join(catalog.services)}"
    elif service in items.get(tenant_id, {}):
        yield f"service: {tenant_id} has an item for {service} on an earlier line; keep one"
    if item and not _IDS["subscription_item_id"].fullmatch(item):
        yield f"subscription_item_id: {item!r} is no subscription item; it begins with si_"
