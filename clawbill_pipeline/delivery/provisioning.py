"""Makes Stripe match the catalogue: product, meters, prices, customers, subscriptions, and the ledger's map of them.

Creates and fills in, never deletes and never changes what bills somebody already; what can't be changed is explained.
Sending usage is ``sending``'s; what a price costs in Stripe's terms is in ``pricing``.
"""

from __future__ import annotations

import hashlib
import json
import time
from calendar import monthrange
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, Literal, TypeVar

import stripe
from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert

from clawbill_pipeline.catalog import Catalog, Tenant, UnknownService
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.delivery.backends import USAGE_RECORD, Backend, MeterMismatch, backend_of_meter
from clawbill_pipeline.delivery.errors import account_is_refused, may_work_later, retry_after, said
from clawbill_pipeline.delivery.pricing import Unpriceable, amount_terms, described, quantity_terms
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail, stripe_customers, stripe_items
from clawbill_pipeline.results import Check
from clawbill_pipeline.settings import is_live, refuse_live
from clawbill_pipeline.stripe_api import StripeApi

MOST_ITEMS = 20  # of a subscription (docs.stripe.com/api/subscriptions/create#create_subscription-items)
_LOOKUPS = 10  # lookup keys that one list call takes
_ATTEMPTS = 5
_ENDED = ("canceled", "incomplete_expired")
_BOUNDARIES = 24  # billing periods ahead that Stripe's calendar is compared with the catalogue's

Document = dict[str, Any]
Kind = Literal["product", "meter", "price", "customer", "subscription", "item"]
Outcome = Literal["made", "kept", "failed"]
T = TypeVar("T")


class ProvisioningError(RuntimeError):
    """Nothing can be provisioned at all: the key is refused, or Stripe is away."""


class _Failed(ValueError):
    """One object can't be made or used; the others can."""


@dataclass(frozen=True)
class Action:
    """One object at Stripe: made (or to be made, in a dry run), kept as it is, or failed, and why."""

    kind: Kind
    name: str
    outcome: Outcome
    detail: str = ""
    tenant_id: str | None = None


@dataclass(frozen=True)
class Provisioned:
    """What provisioning did, or would do in a dry run, object by object."""

    actions: tuple[Action, ...]
    #: Tenants whose billing periods Stripe can't follow to the hour.
    adrift: tuple[str, ...] = ()
    dry_run: bool = False

    def _of(self, outcome: Outcome) -> tuple[Action, ...]:
        return tuple(action for action in self.actions if action.outcome == outcome)

    @property
    def made(self) -> tuple[Action, ...]:
        return self._of("made")

    @property
    def kept(self) -> tuple[Action, ...]:
        return self._of("kept")

    @property
    def failed(self) -> tuple[Action, ...]:
        return self._of("failed")

    @property
    def checks(self) -> tuple[Check, ...]:
        first = "; ".join(f"{action.kind} {action.name}: {action.detail}" for action in self.failed[:3])
        return (
            Check(
                "stripe_matches_catalogue",
                not self.failed,
                first or "everything that the catalogue names is at Stripe",
                {"made": len(self.made), "kept": len(self.kept), "failed": len(self.failed)},
            ),
            Check(
                "stripe_follows_the_calendar",
                not self.adrift,
                "Stripe's months are counted in UTC and know no clock change: some periods of "
                f"{', '.join(self.adrift[:5])} start at another hour there; choose time_zone UTC to have them agree"
                if self.adrift
                else "billing periods start at the same moment at Stripe and in the catalogue",
                {"tenants": len(self.adrift)},
            ),
        )


def provision(
    ledger: Ledger, catalog: Catalog, api: StripeApi, *, now: datetime, run_id: str, dry_run: bool = False
) -> Provisioned:
    """Makes what is missing at Stripe for the catalogue at ``now``, and maps tenants in the ledger.

    Idempotent: objects are found again by lookup key and metadata, and created under idempotency keys. What fails for
    one service or tenant is listed in ``failed`` and stops nobody else. ``dry_run`` reads only, and lists what it would
    make. Raises ProvisioningError when Stripe can't be asked at all, SettingsError for a live key not allowed.
    """
    refuse_live(api.key, live_allowed=catalog.live)
    with ledger.transaction() as connection:
        lock(connection, "provisioning")
        return _Work(ledger, catalog, api, now, run_id, dry_run).done()


@dataclass
class _Work:
    """One provisioning. ``None`` stands for the id of an object that a dry run would make."""

    ledger: Ledger
    catalog: Catalog
    api: StripeApi
    now: datetime
    run_id: str
    dry_run: bool
    actions: list[Action] = field(default_factory=list)
    adrift: list[str] = field(default_factory=list)
    #: Meters and prices that can be used: by service, and by lookup key.
    meters: dict[str, Document | None] = field(default_factory=dict)
    prices: dict[str, str | None] = field(default_factory=dict)
    #: Rows of ``stripe_customers`` by tenant, and who pays for whom where tenants share a customer.
    mapped: dict[str, Document] = field(default_factory=dict)
    payers: dict[str, str] = field(default_factory=dict)

    def done(self) -> Provisioned:
        self.client = self.api.client().v1
        with self.ledger.transaction() as connection:
            self.mapped = {row.tenant_id: row._asdict() for row in connection.execute(select(stripe_customers))}
        self.payers = payers(self.catalog, self.mapped)
        try:
            product = self._product()
            self._meters()
            self._prices(product)
            self._tenants()
        except stripe.StripeError as error:
            raise ProvisioningError(said(error)) from None
        return Provisioned(tuple(self.actions), tuple(self.adrift), self.dry_run)

    # The account: product, meters, prices.

    def _product(self) -> str | None:
        name = self.catalog.product
        listed = _all(self.client.products.list({"active": True, "limit": 100}))
        product = next((product for product in listed if product["name"] == name), None)
        if product is not None:
            self._note("product", name, "kept", product["id"])
            return str(product["id"])
        params: Document = {"name": name, "metadata": {"made_by": "clawbill"}}
        return self._make("product", name, self.client.products.create, params)

    def _meters(self) -> None:
        listed = list(_all(self.client.billing.meters.list({"limit": 100})))
        active = {meter["event_name"]: meter for meter in listed if meter["status"] == "active"}
        by_name = {meter["event_name"]: meter for meter in listed} | active
        cut = sorted(tenant_id for tenant_id, tenant in self.catalog.tenants.items() if cuts_hours(tenant, self.now))
        for service, sold in self.catalog.services.items():
            name = self.catalog.meter(service)
            meter = by_name.get(name)
            if meter is not None:
                try:
                    backend = self._backend(meter)
                except MeterMismatch as error:
                    self._note("meter", name, "failed", str(error))
                    continue
                self.meters[service] = meter
                self._note("meter", name, "kept", f"{meter['id']}, {backend.name}")
                continue
            params: Document = {
                "display_name": f"{service} ({sold.unit})"[:250],
                "event_name": name,
                "default_aggregation": {"formula": "sum"},
                "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
                "value_settings": {"event_payload_key": "value"},
            }
            # An hourly meter keeps one value an hour. Where a tenant's billing period ends inside an hour it would
            # lose one of the hour's two windows, so such a catalogue gets plain sum meters.
            if not cut:
                params["event_time_window"] = "hour"
            try:
                made = self._make_document("meter", name, self.client.billing.meters.create, params)
            except _Failed as error:
                self._note("meter", name, "failed", str(error))
                continue
            self.meters[service] = made

    def _backend(self, meter: Document) -> Backend:
        return backend_of_meter(meter, self.catalog.delivery.calls_per_second)

    def _prices(self, product: str | None) -> None:
        wanted: dict[str, tuple[str, Document]] = {}
        refused: dict[str, str] = {}
        for tenant_id in dict.fromkeys(self._priced_as(tenant_id) for tenant_id in self.catalog.tenants):
            for service in self.meters:
                key = self._lookup_key(tenant_id, service)
                if key in wanted or key in refused:
                    continue
                try:
                    wanted[key] = (service, self._terms(tenant_id, service))
                except (Unpriceable, UnknownService) as error:
                    refused[key] = str(error)
        for key, reason in refused.items():
            self._note("price", key, "failed", reason)
        found: dict[str, Document] = {}
        for keys in _chunks(wanted, _LOOKUPS):
            for price in _all(self.client.prices.list({"lookup_keys": keys, "limit": 100})):
                found[price["lookup_key"]] = price
        for key, (service, terms) in wanted.items():
            try:
                self.prices[key] = self._price(key, service, terms, product, found.get(key))
            except _Failed as error:
                self._note("price", key, "failed", str(error))

    def _price(
        self, key: str, service: str, terms: Document, product: str | None, price: Document | None
    ) -> str | None:
        meter = self.meters[service]
        digest = _digest(terms)
        if price is not None:
            if not price["active"]:
                raise _Failed(f"price {price['id']} is archived; activate it in Stripe's dashboard")
            if price["metadata"].get("clawbill_terms") != digest:
                raise _Failed(
                    f"price {price['id']} does not charge what the catalogue says now ({described(terms)}), and a "
                    "price can't be changed: give the new prices a rate card of another name, or use bill_by: amount"
                )
            if meter is None or price["recurring"]["meter"] != meter["id"]:
                raise _Failed(
                    f"price {price['id']} bills another meter than {self.catalog.meter(service)!r}; remove its lookup "
                    "key in Stripe, then provision again"
                )
            self._note("price", key, "kept", f"{price['id']}, {described(terms)}")
            return str(price["id"])
        if meter is None or product is None:
            self._note("price", key, "made", described(terms))  # dry run
            return None
        params: Document = {
            "product": product,
            "currency": key.split(":")[2],
            "nickname": service,
            "lookup_key": key,
            "recurring": {**_recurring(key), "usage_type": "metered", "meter": meter["id"]},
            "metadata": {"service": service, "clawbill_terms": digest},
            **terms,
        }
        return self._make("price", key, self.client.prices.create, params, described(terms))

    def _priced_as(self, tenant_id: str) -> str:
        """The tenant whose prices bill this one: that pays for it, unless it left the catalogue."""
        payer_id = self.payers[tenant_id]
        return payer_id if payer_id in self.catalog.tenants else tenant_id

    def _lookup_key(self, tenant_id: str, service: str) -> str:
        """One price a service, currency and length of period (a month if not named); by quantity also a rate card, and
        a tenant that has a price of its own."""
        tenant = self.catalog.tenant(tenant_id)
        key = f"clawbill:{service}:{self.catalog.currency(tenant_id).lower()}"
        if (every := tenant.cadence).count > 1 or every.interval != "month":
            key += f":every-{every.count}-{every.interval}"
        if self.catalog.services[service].bill_by == "amount":
            return key
        return f"{key}:{tenant.rate_card}" + (f":{tenant_id}" if service in tenant.prices else "")

    def _terms(self, tenant_id: str, service: str) -> Document:
        sold = self.catalog.services[service]
        if sold.bill_by == "amount":
            return amount_terms(self.catalog.currency(tenant_id))
        priced = self.catalog.price_for(tenant_id, service, self.now)
        return quantity_terms(priced.price, priced.currency, sold.quantity_decimals)

    # Tenants: customers, subscriptions and the map.

    def _tenants(self) -> None:
        customers: dict[str, list[Document]] | None = None
        # Who pays comes first: the others are mapped to what it has.
        for tenant_id in sorted(self.catalog.tenants, key=lambda tenant_id: self.payers[tenant_id] != tenant_id):
            tenant = self.catalog.tenants[tenant_id]
            try:
                if tenant_id not in self.mapped and tenant.stripe_customer is None and customers is None:
                    customers = self._customers_by_tenant()
                self._tenant(tenant_id, tenant, customers or {})
            except _Failed as error:
                self._note("customer", tenant_id, "failed", str(error), tenant_id)
            except stripe.StripeError as error:
                if account_is_refused(error):
                    raise
                self._note("customer", tenant_id, "failed", said(error), tenant_id)

    def _customers_by_tenant(self) -> dict[str, list[Document]]:
        # Listing is consistent at once; Stripe's search lags by up to a minute and could find a twin too late.
        found: dict[str, list[Document]] = {}
        for customer in _all(self.client.customers.list({"limit": 100})):
            if tenant_id := customer["metadata"].get("tenant_id"):
                found.setdefault(tenant_id, []).append(customer)
        return found

    def _tenant(self, tenant_id: str, tenant: Tenant, customers: Mapping[str, Sequence[Document]]) -> None:
        if not follows(tenant, self.now):
            self.adrift.append(tenant_id)
        payer_id = self.payers[tenant_id]
        wanted = self._wanted(tenant_id, tenant)
        if not wanted:
            raise _Failed("no service of the catalogue has a usable meter and price; see the failures above")
        if len(wanted) > MOST_ITEMS:
            raise _Failed(f"{len(wanted)} services, but a Stripe subscription has at most {MOST_ITEMS} items")
        currency = self.catalog.currency(tenant_id)
        mapped = self.mapped.get(tenant_id)
        if mapped is not None:
            if tenant.stripe_customer not in (None, mapped["customer_id"]):
                raise _Failed(
                    f"is billed as customer {mapped['customer_id']}, but the catalogue names {tenant.stripe_customer}: "
                    "a tenant can't move while usage is on the old one"
                )
            if mapped["currency"] != currency:
                raise _Failed(
                    f"is billed in {mapped['currency']} at Stripe, but its rate card is in {currency}: a customer's "
                    "currency can't change; use a new tenant"
                )
            customer_id: str | None = mapped["customer_id"]
            self._note("customer", tenant_id, "kept", str(customer_id), tenant_id)
        elif payer_id != tenant_id:
            customer_id = self._shared_customer(tenant_id, tenant, payer_id)
        else:
            customer_id = self._customer(tenant_id, tenant, customers.get(tenant_id, ()))
        if customer_id is None:  # dry run
            self._note("subscription", tenant_id, "made", _periods(tenant, self.now), tenant_id)
            return
        subscription = self._subscription(tenant_id, tenant, customer_id, wanted)
        if subscription is not None:
            items = self._items(tenant_id, tenant, subscription, wanted)
            if not self.dry_run:
                self._map(tenant_id, customer_id, subscription["id"], currency, items)

    def _shared_customer(self, tenant_id: str, tenant: Tenant, payer_id: str) -> str | None:
        """The customer of the tenant that pays for this one too, which must be willing to."""
        payer, known = self.catalog.tenants.get(payer_id), self.mapped.get(payer_id)
        if payer is None or payer.stripe_customer != tenant.stripe_customer:
            raise _Failed(
                f"customer {tenant.stripe_customer} bills tenant {payer_id!r} already: name it for both tenants in the "
                "catalogue to have them share its bill"
            )
        if known is None and not self.dry_run:
            raise _Failed(f"shares the customer of {payer_id}, which failed; see there")
        self._note("customer", tenant_id, "kept", f"{tenant.stripe_customer}, billed with {payer_id}", tenant_id)
        return tenant.stripe_customer

    def _wanted(self, tenant_id: str, tenant: Tenant) -> dict[str, str | None]:
        """Price by service, of the services that can be billed to the tenant."""
        wanted: dict[str, str | None] = {}
        for service, meter in self.meters.items():
            key = self._lookup_key(self._priced_as(tenant_id), service)
            if meter is not None and self._backend(meter).absolute and cuts_hours(tenant, self.now):
                self._note(
                    "item",
                    f"{tenant_id}/{service}",
                    "failed",
                    f"billing periods in {tenant.time_zone} start inside a UTC hour, and meter {meter['event_name']!r} "
                    "keeps one value an hour: give the service another `meter:` name, so that a sum meter is made",
                    tenant_id,
                )
            elif key in self.prices:
                wanted[service] = self.prices[key]
        return wanted

    def _customer(self, tenant_id: str, tenant: Tenant, found: Sequence[Document]) -> str | None:
        if tenant.stripe_customer is not None:
            found = [self.client.customers.retrieve(tenant.stripe_customer).to_dict()]
        if len(found) > 1:
            ids = ", ".join(customer["id"] for customer in found)
            raise _Failed(f"several customers have metadata.tenant_id {tenant_id!r} ({ids}): name one in the catalogue")
        if not found:
            params: Document = {"name": tenant.name or tenant_id, "metadata": {"tenant_id": tenant_id}}
            if tenant.email:
                params["email"] = tenant.email
            return self._make("customer", tenant_id, self.client.customers.create, params, tenant_id=tenant_id)
        (customer,) = found
        customer_id = str(customer["id"])
        if customer.get("deleted"):
            raise _Failed(f"customer {customer_id} was deleted at Stripe: name another one in the catalogue")
        owner = customer["metadata"].get("tenant_id")
        if owner == tenant_id:
            self._note("customer", tenant_id, "kept", customer_id, tenant_id)
        elif owner is not None:
            raise _Failed(f"customer {customer_id} belongs to tenant {owner!r} by its metadata.tenant_id")
        else:
            if not self.dry_run:
                self.client.customers.update(customer_id, {"metadata": {"tenant_id": tenant_id}})
            self._note("customer", tenant_id, "made", f"metadata.tenant_id on {customer_id}", tenant_id)
        return customer_id

    def _subscription(
        self,
        tenant_id: str,
        tenant: Tenant,
        customer_id: str,
        wanted: Mapping[str, str | None],
    ) -> Document | None:
        subscription = self._present_subscription(tenant_id, tenant, customer_id)
        if subscription is not None:
            self._note("subscription", tenant_id, "kept", str(subscription["id"]), tenant_id)
            return subscription
        if None in wanted.values() or self.payers[tenant_id] != tenant_id:  # dry run
            self._note("subscription", tenant_id, "made", _periods(tenant, self.now), tenant_id)
            return None
        params: Document = {
            "customer": customer_id,
            "items": [
                {"price": price, "metadata": {"tenant_id": tenant_id, "service": service}}
                for service, price in wanted.items()
            ],
            "metadata": {"tenant_id": tenant_id},
            # A first period that is cut short by the anchor is no reason to prorate: usage is billed as it was used.
            "proration_behavior": "none",
            **anchor(tenant, self.now),
        }
        detail = _periods(tenant, self.now)
        create = self.client.subscriptions.create
        return self._make_document("subscription", tenant_id, create, params, detail, tenant_id)

    def _present_subscription(self, tenant_id: str, tenant: Tenant, customer_id: str) -> Document | None:
        mapped = self.mapped.get(tenant_id) or self.mapped.get(self.payers[tenant_id])
        if mapped is not None:
            found: Document = self.client.subscriptions.retrieve(mapped["subscription_id"]).to_dict()
            if found["status"] in _ENDED:
                raise _Failed(
                    f"subscription {found['id']} is {found['status']}: its usage can be billed no more; take the "
                    "tenant out of the catalogue, or subscribe a new one"
                )
            return found
        listed = _all(self.client.subscriptions.list({"customer": customer_id, "limit": 100}))
        running = [subscription for subscription in listed if subscription["status"] not in _ENDED]
        if tenant.stripe_items:
            return self._named_subscription(tenant_id, tenant, customer_id, running)
        ours = [subscription for subscription in running if subscription["metadata"].get("tenant_id") == tenant_id]
        if len(ours) > 1:
            ids = ", ".join(subscription["id"] for subscription in ours)
            raise _Failed(f"several subscriptions bill the tenant ({ids}): cancel all but one")
        return ours[0] if ours else None

    def _named_subscription(
        self, tenant_id: str, tenant: Tenant, customer_id: str, running: Sequence[Document]
    ) -> Document:
        """The subscription that has the items which the catalogue or a file names."""
        wanted = set(tenant.stripe_items.values())
        for subscription in running:
            items = [item for item in _all(self._list_items(subscription["id"])) if item["id"] in wanted]
            if {item["id"] for item in items} == wanted:
                ends = int(tenant.period_at(self.now).end.timestamp())
                if any(item["current_period_end"] != ends for item in items) and tenant_id not in self.adrift:
                    self.adrift.append(tenant_id)
                return subscription
        raise _Failed(
            f"no running subscription of customer {customer_id} has the items {', '.join(sorted(wanted))}: name items "
            "of one subscription, or none"
        )

    def _items(
        self, tenant_id: str, tenant: Tenant, subscription: Document, wanted: Mapping[str, str | None]
    ) -> list[Document]:
        """The rows of ``stripe_items``: of items that are there, and of those that were missing."""
        items = list(_all(self._list_items(subscription["id"])))
        by_meter = {_meter_of(item): item for item in items}
        legacy = {item["metadata"].get("service"): item for item in items if _meter_of(item) is None}
        rows = []
        for service, price in wanted.items():
            name = f"{tenant_id}/{service}"
            meter: Document | None = None if service in legacy else self.meters[service]
            try:
                if service in legacy:
                    item: Document | None = self._kept_legacy_item(name, tenant_id, service, legacy[service])
                elif meter is not None and meter["id"] in by_meter:
                    item = self._kept_item(name, tenant_id, service, by_meter[meter["id"]], price)
                elif service in tenant.stripe_items:
                    raise _Failed(
                        f"item {tenant.stripe_items[service]} bills by another meter than "
                        f"{self.catalog.meter(service)!r}: name that meter as the service's, or leave the item out"
                    )
                elif meter is not None and price is not None:
                    item = self._add_item(name, subscription["id"], tenant_id, service, price, meter["id"])
                else:  # dry run
                    self._note("item", name, "made", "", tenant_id)
                    item = None
            except _Failed as error:
                self._note("item", name, "failed", str(error), tenant_id)
                continue
            if item is not None:
                rows.append(
                    {
                        "tenant_id": tenant_id,
                        "service": service,
                        "subscription_item_id": item["id"],
                        "price_id": item["price"]["id"],
                        "meter_id": meter["id"] if meter else "",
                        "meter": self.catalog.meter(service),
                        "backend": (self._backend(meter) if meter else USAGE_RECORD).name,
                    }
                )
        return rows

    def _kept_item(self, name: str, tenant_id: str, service: str, item: Document, price: str | None) -> Document:
        if item["price"]["id"] != price and not self._charges(item["price"], tenant_id, service):
            raise _Failed(
                f"item {item['id']} bills by price {item['price']['id']}, the catalogue wants {price}: change it in "
                "Stripe's dashboard at the end of a period, then provision again"
            )
        self._note("item", name, "kept", str(item["id"]), tenant_id)
        return item

    def _kept_legacy_item(self, name: str, tenant_id: str, service: str, item: Document) -> Document:
        """An item whose price no meter backs: it lives on usage records, as long as it charges the same."""
        terms = self._terms(self._priced_as(tenant_id), service)
        price = item["price"]
        if price["recurring"]["usage_type"] != "metered" or not self._charges(price, tenant_id, service):
            raise _Failed(
                f"item {item['id']} has a price without a meter that does not charge what the catalogue says "
                f"({described(terms)}): move it to a price with a meter"
            )
        self._note("item", name, "kept", f"{item['id']}, legacy usage records", tenant_id)
        return item

    def _charges(self, price: Document, tenant_id: str, service: str) -> bool:
        """Whether a price that was not made here charges what the catalogue says, as often."""
        terms = self._terms(self._priced_as(tenant_id), service)
        every, recurring = self.catalog.tenant(tenant_id).cadence, price["recurring"]
        if (recurring["interval"], recurring["interval_count"]) != (every.interval, every.count):
            return False
        if price["billing_scheme"] == "tiered":
            price = self.client.prices.retrieve(price["id"], {"expand": ["tiers"]}).to_dict()
        return same_terms(price, terms)

    def _add_item(
        self, name: str, subscription_id: str, tenant_id: str, service: str, price: str, meter_id: str
    ) -> Document | None:
        added: Document = {
            "items": [{"price": price, "metadata": {"tenant_id": tenant_id, "service": service}}],
            "proration_behavior": "none",
        }

        def add(params: Any, options: Any) -> Any:
            self.client.subscriptions.update(subscription_id, params, options)
            return next(
                item
                for item in self._list_items(subscription_id).auto_paging_iter()
                if _meter_of(item.to_dict()) == meter_id
            )

        return self._make_document("item", name, add, added, "", tenant_id, under=subscription_id)

    def _list_items(self, subscription_id: str) -> Any:
        return self.client.subscription_items.list({"subscription": subscription_id, "limit": 100})

    def _map(
        self, tenant_id: str, customer_id: str, subscription_id: str, currency: str, items: Sequence[Document]
    ) -> None:
        payer_id = self.payers[tenant_id]
        self.mapped.setdefault(
            tenant_id, {"customer_id": customer_id, "subscription_id": subscription_id, "currency": currency}
        )
        with self.ledger.transaction() as connection:
            customer = insert(stripe_customers).values(
                tenant_id=tenant_id,
                customer_id=customer_id,
                subscription_id=subscription_id,
                currency=currency,
                livemode=is_live(self.api.key),
                mapped_at=self.now,
                payer_id=payer_id if payer_id != tenant_id else None,
            )
            connection.execute(customer.on_conflict_do_nothing(index_elements=["tenant_id"]))
            for row in items:
                item = insert(stripe_items).values(**row, mapped_at=self.now)
                fresh = {name: item.excluded[name] for name in (*row, "mapped_at") if name not in _ITEM_KEY}
                changed = [
                    stripe_items.c[name].is_distinct_from(item.excluded[name]) for name in row if name not in _ITEM_KEY
                ]
                connection.execute(
                    item.on_conflict_do_update(index_elements=_ITEM_KEY, set_=fresh, where=or_(*changed))
                )

    # Making things.

    def _make(
        self,
        kind: Kind,
        name: str,
        create: Callable[..., Any],
        params: Document,
        detail: str = "",
        tenant_id: str | None = None,
    ) -> str | None:
        made = self._make_document(kind, name, create, params, detail, tenant_id)
        return None if made is None else str(made["id"])

    def _make_document(
        self,
        kind: Kind,
        name: str,
        create: Callable[..., Any],
        params: Document,
        detail: str = "",
        tenant_id: str | None = None,
        under: str = "",
    ) -> Document | None:
        """Creates the object under an idempotency key made of its parameters; None in a dry run."""
        made: Document | None = None
        if not self.dry_run:
            key = f"clawbill-{kind}-{_digest({**params, 'under': under})}"
            try:
                made = _persistently(lambda: create(params, {"idempotency_key": key})).to_dict()
            except stripe.StripeError as error:
                if account_is_refused(error):
                    raise
                raise _Failed(said(error)) from None
            detail = f"{made['id']}, {detail}" if detail else str(made["id"])
            self._record(kind, name, str(made["id"]), tenant_id)
        self._note(kind, name, "made", detail, tenant_id)
        return made

    def _note(self, kind: Kind, name: str, outcome: Outcome, detail: str = "", tenant_id: str | None = None) -> None:
        self.actions.append(Action(kind, name, outcome, detail, tenant_id))

    def _record(self, kind: Kind, name: str, stripe_id: str, tenant_id: str | None) -> None:
        detail = {"name": name, "run_id": self.run_id}
        with self.ledger.transaction() as connection:
            connection.execute(
                audit_trail.insert().values(
                    at=self.now, kind=f"stripe_{kind}.created", tenant_id=tenant_id, subject=stripe_id, detail=detail
                )
            )


_ITEM_KEY = ["tenant_id", "service"]


def cuts_hours(tenant: Tenant, now: datetime) -> bool:
    """Whether one of the tenant's next billing periods starts inside a UTC hour (zones such as Asia/Kolkata)."""
    return any(utc_hour(start) != start for start in _starts(tenant, now))


def payers(catalog: Catalog, mapped: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Whose bill each tenant's usage is on: its own, but for tenants that share a customer with an earlier one.

    ``mapped`` are the rows of ``stripe_customers`` by tenant: who pays at Stripe already goes on paying.
    """
    known = {row["customer_id"]: tenant_id for tenant_id, row in mapped.items() if row["payer_id"] is None}
    found = {}
    for tenant_id, tenant in catalog.tenants.items():
        if tenant_id in mapped:
            found[tenant_id] = mapped[tenant_id]["payer_id"] or tenant_id
        elif tenant.stripe_customer is None:
            found[tenant_id] = tenant_id
        else:
            found[tenant_id] = known.setdefault(tenant.stripe_customer, tenant_id)
    return found


def same_terms(price: Document, terms: Mapping[str, Any]) -> bool:
    """Whether Stripe's ``price`` (with its tiers) charges what ``terms`` would."""
    if price["billing_scheme"] != terms["billing_scheme"] or price.get("tiers_mode") != terms.get("tiers_mode"):
        return False
    divided = price.get("transform_quantity")
    if (divided and dict(divided)) != terms.get("transform_quantity"):
        return False
    if terms["billing_scheme"] == "per_unit":
        return _decimal(price["unit_amount_decimal"]) == _decimal(terms["unit_amount_decimal"])
    tiers = [
        tuple(tier[name] for name in ("up_to", "unit_amount_decimal", "flat_amount_decimal"))
        for tier in price.get("tiers") or ()
    ]
    wanted = [(tier["up_to"], tier["unit_amount_decimal"], tier["flat_amount_decimal"]) for tier in terms["tiers"]]
    return [(None if up_to == "inf" else up_to, _decimal(unit), _decimal(flat)) for up_to, unit, flat in wanted] == [
        (up_to, _decimal(unit), _decimal(flat)) for up_to, unit, flat in tiers
    ]


def _decimal(value: Any) -> Decimal:
    return Decimal(value or 0)


def _recurring(key: str) -> Document:
    """The length of the periods that a price of this lookup key is for."""
    for part in key.split(":"):
        if part.startswith("every-"):
            _, count, interval = part.split("-")
            return {"interval": interval, "interval_count": int(count)}
    return {"interval": "month"}


def anchor(tenant: Tenant, now: datetime) -> Document:
    """The parameters by which Stripe's periods start when the tenant's do, from the present period's end on.

    Stripe counts in UTC from the anchor. Where its day of the month is one that short months lack, the day itself is
    given instead, so that it comes back after February.
    """
    first, day = _anchor(tenant, now)
    if tenant.cadence.by_days or day == first.day:
        return {"billing_cycle_anchor": int(first.timestamp())}
    config = {"day_of_month": day, "hour": first.hour, "minute": first.minute, "second": first.second}
    if (tenant.interval, tenant.interval_count) != ("month", 1):
        config["month"] = first.month
    return {"billing_cycle_anchor_config": config}


def follows(tenant: Tenant, now: datetime) -> bool:
    """Whether Stripe's periods, so anchored, start at the same moments as the tenant's."""
    first, day = _anchor(tenant, now)
    every = tenant.cadence
    for number, start in enumerate(_starts(tenant, now)):
        if every.by_days:
            expected = first + number * every.count * timedelta(days=7 if every.interval == "week" else 1)
        else:
            months = first.year * 12 + first.month - 1 + number * every.count * (12 if every.interval == "year" else 1)
            year, month = months // 12, months % 12 + 1
            expected = first.replace(year=year, month=month, day=min(day, monthrange(year, month)[1]))
        if start != expected:
            return False
    return True


def _anchor(tenant: Tenant, now: datetime) -> tuple[datetime, int]:
    starts = list(_starts(tenant, now))
    return starts[0], max(start.day for start in starts)


def _starts(tenant: Tenant, now: datetime) -> Iterator[datetime]:
    """Starts of the tenant's billing periods after ``now``, in UTC."""
    period = tenant.period_at(now)
    for _ in range(_BOUNDARIES):
        yield period.end.astimezone(UTC)
        period = tenant.period_at(period.end)


def _periods(tenant: Tenant, now: datetime) -> str:
    every, count = tenant.interval, tenant.interval_count
    words = {"day": "daily", "week": "weekly", "month": "monthly", "year": "yearly"}
    often = words[every] if count == 1 else f"every {count} {every}s"
    return f"{often}, next period from {tenant.period_at(now).end:%Y-%m-%dT%H:%MZ}"


def _meter_of(item: Document) -> str | None:
    meter = item["price"]["recurring"]["meter"]
    return None if meter is None else str(meter)


def _all(listed: Any) -> Iterator[Document]:
    """Every object of a list, page by page."""
    for item in listed.auto_paging_iter():
        yield item.to_dict()


def _chunks(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:32]


def _persistently(call: Callable[[], T]) -> T:
    """The call's answer, after a few tries if need be: it carries an idempotency key, so that is safe."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except stripe.StripeError as error:
            if not may_work_later(error):
                raise
            time.sleep(retry_after(error) or 0.1 * 2**attempt)
    return call()
