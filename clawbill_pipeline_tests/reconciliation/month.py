"""A billed month in a real ledger and lake, written row by row, so that a test can plant any fault in it.

``Month`` writes what each station would have written for usage that the test names; no station runs here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.lake import EVENT_SCHEMA, Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import invoice_amount, rounded, stripe_exponent

PERIOD = "2026-10"
START = datetime(2026, 10, 1, tzinfo=UTC)
END = datetime(2026, 11, 1, tzinfo=UTC)
#: When the period's invoice became final, and a moment long after all has settled.
FINAL = END + timedelta(hours=1)
NOW = END + timedelta(days=3)

CATALOG = """
start: 2026-09-01T00:00:00Z
services:
  tokens: {unit: token}
  requests: {unit: request, bill_by: quantity, quantity_decimals: 2}
rate_cards:
  usd:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          tokens: {model: per_unit, unit_amount: "0.0015"}
          requests: {model: per_unit, unit_amount: "0.25"}
  jpy:
    currency: JPY
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          tokens: {model: per_unit, unit_amount: "0.2"}
          requests: {model: per_unit, unit_amount: "30"}
tenants:
  acme: {rate_card: usd}
  globex: {rate_card: usd}
  osaka: {rate_card: jpy, time_zone: Asia/Tokyo}
"""
PRICES = {
    ("USD", "tokens"): Decimal("0.0015"),
    ("USD", "requests"): Decimal("0.25"),
    ("JPY", "tokens"): Decimal("0.2"),
    ("JPY", "requests"): Decimal(30),
}


def hour(number: int) -> datetime:
    """The hour of that number in the month."""
    return START + timedelta(hours=number)


@dataclass
class Month:
    """``usage``: (tenant, service, hour) → quantity. Every method writes one station's rows for all of it."""

    ledger: Ledger
    lake: Lake
    catalog: Catalog = field(default_factory=lambda: parse(CATALOG))
    usage: dict[tuple[str, str, datetime], Decimal] = field(default_factory=dict)
    landings: int = 0

    @classmethod
    def at(cls, url: str, folder: Path, catalog: str = CATALOG) -> Month:
        month = cls(Ledger(url), Lake(folder / "lake"), parse(catalog))
        month.ledger.ensure_partitions([START - timedelta(days=1), START, END, NOW])
        return month

    def run(self, statement: str, **parameters: Any) -> list[Any]:
        with self.ledger.transaction() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    def write(self, statement: str, rows: list[dict[str, Any]]) -> None:
        if rows:
            with self.ledger.transaction() as connection:
                connection.execute(text(statement), rows)

    # --- one station after the other -------------------------------------------------------------------------------

    def land(self, events: Iterable[tuple[str, str, str, datetime, object]], landed_at: datetime | None = None) -> int:
        """Events ``(event_id, tenant, service, time, quantity)`` as one landing; returns its id."""
        self.landings += 1
        (row,) = self.run(
            "INSERT INTO landings (source, uri, position, size, sha256, lines, event_lines, events, quarantined,"
            " skipped, landed_at, run_id) VALUES ('logs', :uri, '0', 1, 'x', 1, 1, 1, 0, 0, :at, 'r') RETURNING id",
            uri=f"usage-{self.landings}.jsonl",
            at=landed_at or START,
        )
        by_hour: dict[datetime, list[dict[str, Any]]] = {}
        for line, (event_id, tenant, service, at, quantity) in enumerate(events, 1):
            by_hour.setdefault(at.replace(minute=0, second=0, microsecond=0), []).append(
                {
                    "landing_id": row.id, "source": "logs", "uri": f"usage-{self.landings}.jsonl", "line": line,
                    "byte_offset": line * 100, "event_id": event_id, "tenant_id": tenant, "service": service,
                    "dimensions": "", "quantity": Decimal(quantity), "event_time": at,
                }
            )  # fmt: skip
        landed = []
        for of_hour, rows in by_hour.items():
            file = self.lake.events_file(of_hour, row.id)
            pq.write_table(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), self.lake.path(file))
            sha256 = hashlib.sha256(self.lake.path(file).read_bytes()).hexdigest()
            landed.append({"id": row.id, "hour": of_hour, "events": len(rows), "file": file, "sha256": sha256})
        self.write("INSERT INTO landed_hours VALUES (:id, :hour, :events, :file, :sha256)", landed)
        return int(row.id)

    def used(self, tenant: str, service: str, at: datetime, quantity: object) -> None:
        self.usage[tenant, service, at] = Decimal(quantity)

    def land_usage(self, parts: int = 1) -> None:
        """One event a quantity, or ``parts`` of them that add up to it."""
        self.land(
            (f"{t}-{s}-{h:%d%H}{f'-{part}' * (parts > 1)}", t, s, h + timedelta(minutes=5, seconds=part), q / parts)
            for (t, s, h), q in self.usage.items()
            for part in range(parts)
        )

    def meter(self, revision: int = 1, keys: Iterable[tuple[str, str, datetime]] | None = None) -> None:
        rows = [
            {
                "h": at, "t": tenant, "s": service, "revision": revision, "q": self.usage[tenant, service, at],
                "at": at + timedelta(hours=1), "reason": "first" if revision == 1 else "corrected",
            }
            for tenant, service, at in (self.usage if keys is None else keys)
        ]  # fmt: skip
        self.write("INSERT INTO metered_usage VALUES (:h, :t, :s, '', :h, :revision, :q, 1, :reason, :at, 'r')", rows)
        self.run(
            "INSERT INTO metered_hours SELECT hour, count(*), 1, 0, 0, 1, hour + interval '1 hour', 'r'"
            " FROM landed_hours GROUP BY hour ON CONFLICT DO NOTHING"
        )

    def rate(
        self, keys: Iterable[tuple[str, str, datetime]] | None = None, revision: int = 1, at: datetime | None = None
    ) -> None:
        rows = [
            {
                "h": h, "t": t, "s": s, "revision": revision, "q": self.usage[t, s, h],
                "currency": self.catalog.currency(t), "start": self.start_of(t),
                "amount": self.usage[t, s, h] * PRICES[self.catalog.currency(t), s],
                "at": at or h + timedelta(hours=1), "reason": "first" if revision == 1 else "late",
            }
            for t, s, h in (self.usage if keys is None else keys)
            if t in self.catalog.tenants
        ]  # fmt: skip
        self.write(
            "INSERT INTO rated_usage (hour, tenant_id, service, dimensions, window_start, revision,"
            " metered_revision, basis, reason, quantity, amount, currency, asked_quantity, answered_amount,"
            " period_start, answer, rate_card_version, latency_ms, rated_at, run_id) VALUES (:h, :t, :s, '', :h,"
            " :revision, :revision, 'hourly', :reason, :q, :amount, :currency, :q, :amount, :start, '{}', 'v1', 1,"
            " :at, 'r')",
            rows,
        )

    def start_of(self, tenant: str) -> datetime:
        return self.catalog.tenants[tenant].period(PERIOD).start

    def map(self) -> None:
        customers = [
            {"t": t, "c": f"cus_{t}", "sub": f"sub_{t}", "currency": self.catalog.currency(t), "at": START}
            for t in self.catalog.tenants
        ]
        items = [
            {"t": t, "s": s, "item": f"si_{t}_{s}", "meter": f"mtr_{s}", "name": self.catalog.meter(s), "at": START}
            for t in self.catalog.tenants
            for s in self.catalog.services
        ]
        self.write("INSERT INTO stripe_customers VALUES (:t, :c, :sub, :currency, false, :at)", customers)
        self.write("INSERT INTO stripe_items VALUES (:t, :s, :item, 'price', :meter, :name, 'hourly', :at)", items)

    def units(self, tenant: str, service: str, quantity: Decimal) -> Decimal:
        if self.catalog.services[service].bill_by == "quantity":
            return quantity * 10 ** self.catalog.services[service].quantity_decimals
        return quantity * PRICES[self.catalog.currency(tenant), service] * 1_000_000

    def send(
        self,
        keys: Iterable[tuple[str, str, datetime]] | None = None,
        *,
        state: str = "delivered",
        revision: int = 1,
        settled_at: datetime | None = None,
        parked: str | None = None,
        error: str | None = None,
    ) -> None:
        rows = []
        for tenant, service, of_hour in self.usage if keys is None else keys:
            if tenant in self.catalog.tenants:
                exact = self.units(tenant, service, self.usage[tenant, service, of_hour])
                at = settled_at or of_hour + timedelta(hours=1)
                rows.append(
                    {
                        "h": of_hour, "identifier": f"{tenant}-{service}-{of_hour:%Y%m%d%H}-{revision}", "t": tenant,
                        "s": service, "customer": f"cus_{tenant}", "meter": self.catalog.meter(service),
                        "revision": revision, "units": rounded(exact, 0), "exact": exact,
                        "start": self.start_of(tenant), "at": at, "state": state,
                        "settled_at": at if state == "delivered" else None, "parked": parked, "error": error,
                    }
                )  # fmt: skip
        self.write(
            "INSERT INTO usage_records (hour, identifier, tenant_id, service, customer_id, meter, backend,"
            " window_start, revision, units, value, exact_units, period_start, event_timestamp, payload,"
            " payload_sha256, planned_at, run_id, state, settled_at, parked, error) VALUES (:h, :identifier, :t,"
            " :s, :customer, :meter, 'hourly', :h, :revision, :units, :units, :exact, :start, :h, '{}', 'x', :at,"
            " 'r', :state, :settled_at, :parked, :error)",
            rows,
        )

    def totals(self) -> dict[tuple[str, str], Decimal]:
        """Whole units that Stripe should hold, by tenant and service."""
        totals: dict[tuple[str, str], Decimal] = {}
        for (tenant, service, _), quantity in self.usage.items():
            if tenant in self.catalog.tenants:
                totals[tenant, service] = totals.get((tenant, service), Decimal(0)) + self.units(
                    tenant, service, quantity
                )
        return totals

    def held(self, tenant: str, service: str, units: object, at: datetime | None = None) -> None:
        """What Stripe says it holds for the period, or for one hour."""
        self._held([(tenant, service, units, at)])

    def _held(self, read: Iterable[tuple[str, str, object, datetime | None]]) -> None:
        self.write(
            "INSERT INTO usage_summaries (tenant_id, service, customer_id, meter, period_start, hour, units, read_at,"
            " run_id) VALUES (:t, :s, :c, :m, :start, :hour, :units, :at, 'r')",
            [
                {
                    "t": tenant, "s": service, "c": f"cus_{tenant}", "m": self.catalog.meter(service),
                    "start": self.start_of(tenant), "hour": at, "units": units, "at": NOW,
                }
                for tenant, service, units, at in read
            ],
        )  # fmt: skip

    def hold(self) -> None:
        self._held((tenant, service, units, None) for (tenant, service), units in self.totals().items())

    def hold_hours(self, tenant: str, service: str, **but: object) -> None:
        """Stripe's hours as they were sent, but for those named ``h<number>``."""
        differing = {hour(int(name[1:])): Decimal(units) for name, units in but.items()}
        sent = {
            at: self.units(tenant, service, quantity)
            for (t, s, at), quantity in self.usage.items()
            if (t, s) == (tenant, service)
        }
        self._held((tenant, service, units, at) for at, units in {**sent, **differing}.items())

    def invoice(
        self,
        tenant: str,
        lines: dict[str, tuple[object, object]],
        *,
        status: str = "paid",
        currency: str | None = None,
        paid: object | None = None,
        finalized_at: datetime | None = FINAL,
        extra: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """An invoice with ``lines``: service → (units, amount). ``extra`` goes into a line's own object."""
        currency = currency or self.catalog.currency(tenant)
        total = sum((Decimal(amount) for _, amount in lines.values()), Decimal(0))
        settled = Decimal(paid) if paid is not None else (total if status == "paid" else Decimal(0))
        self.run(
            "INSERT INTO invoices (invoice_id, tenant_id, customer_id, number, status, currency, subtotal, total,"
            " amount_due, amount_paid, created, finalized_at, paid_at, object, as_of) VALUES (:id, :t, :c, :number,"
            " :status, :currency, :total, :total, :total, :paid, :at, :final, :final, '{}', :at)",
            id=f"in_{tenant}", t=tenant, c=f"cus_{tenant}", number=f"A-{tenant}", status=status, currency=currency,
            total=total, paid=settled, at=END, final=finalized_at,
        )  # fmt: skip
        period = self.catalog.tenants[tenant].period(PERIOD)
        for service, (units, amount) in lines.items():
            body = {"amount": int(Decimal(amount).scaleb(stripe_exponent(currency))), **(extra or {}).get(service, {})}
            self.run(
                "INSERT INTO invoice_lines (invoice_id, line_id, tenant_id, service, subscription_item_id, price_id,"
                " quantity, amount, currency, period_start, period_end, description, object) VALUES (:id, :line, :t,"
                " :s, :item, 'price', :units, :amount, :currency, :start, :end, '', CAST(:object AS jsonb))",
                id=f"in_{tenant}", line=f"il_{tenant}_{service}", t=tenant, s=service, item=f"si_{tenant}_{service}",
                units=units, amount=amount, currency=currency, start=period.start, end=period.end,
                object=json.dumps(body),
            )  # fmt: skip

    def lines(self, tenant: str) -> dict[str, tuple[Decimal, Decimal]]:
        """The invoice lines that are right for what was used."""
        right: dict[str, tuple[Decimal, Decimal]] = {}
        currency = self.catalog.currency(tenant)
        for (t, service), units in self.totals().items():
            if t == tenant:
                scale = self.units(t, service, Decimal(1))
                exact = units / scale * PRICES[currency, service]
                right[service] = (rounded(units, 0), invoice_amount(exact, currency))
        return right

    def bill(self) -> None:
        for tenant in sorted({t for t, _ in self.totals()}):
            self.invoice(tenant, self.lines(tenant))

    def clean(self) -> None:
        """The whole month as it should be."""
        self.land_usage()
        self.meter()
        self.rate()
        self.map()
        self.send()
        self.hold()
        self.bill()

    # --- looking ---------------------------------------------------------------------------------------------------

    def fingerprint(self, *tables: str) -> str:
        """Of every row of the tables, to see that nothing changed."""
        names = tables or ("breaks", "reconciliations", "reports", "usage_summaries", "audit_trail")
        rows = [str(row) for name in names for row in self.run(f"SELECT * FROM {name} ORDER BY 1")]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def small(month: Month) -> Month:
    """Usage of three tenants over a few hours, with cents that do not come out even."""
    for number in range(6):
        month.used("acme", "tokens", hour(number), 1001 + 7 * number)
        month.used("globex", "requests", hour(number), Decimal("3.25") + number)
        month.used("osaka", "tokens", hour(number), 333)
    month.used("acme", "requests", hour(2), 4)
    return month
