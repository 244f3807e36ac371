"""docs/stripe.md lists the permissions that a restricted key needs: of every resource that the code calls."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The SDK's resource → the permission as Stripe's dashboard names it.
PERMISSIONS = {
    "products": "Products",
    "prices": "Prices",
    "customers": "Customers",
    "subscriptions": "Subscriptions",
    "subscription_items": "Subscriptions",
    "billing.meters": "Billing meters",
    "billing.meters.event_summaries": "Billing meters",
    "billing.meter_events": "Billing meter events",
    "billing.meter_event_session": "Billing meter events",
    "billing.meter_event_stream": "Billing meter events",
    "events": "Events",
    "core.events": "Events",
    "invoices": "Invoices",
    "invoices.line_items": "Invoices",
    "invoice_items": "Invoices",
    "credit_notes": "Credit notes",
    "billing_portal.sessions": "Customer portal",
}
_CALL = re.compile(
    r"\b(?:v1|v2|client|_client|stripe|api\.client\(\)\.v[12])\."
    r"((?:(?!v1|v2)[a-z_]+\.)+)(?:list|retrieve|create|update|delete|void_credit_note|deactivate)(?:_async)?\b"
)


def _called() -> set[str]:
    package = ROOT / "clawbill_pipeline"
    files = [file for file in package.rglob("*.py") if "sandbox" not in file.relative_to(package).parts]
    return {found.rstrip(".") for file in files for found in _CALL.findall(file.read_text(encoding="utf-8"))}


def test_every_resource_that_is_called_has_its_permission_in_the_docs() -> None:
    called = {name for name in _called() if name in PERMISSIONS}
    assert called >= {"products", "prices", "customers", "subscriptions", "billing.meters", "invoices"}
    table = (ROOT / "docs" / "stripe.md").read_text(encoding="utf-8")
    listed = {
        name.strip() for row in re.findall(r"^\| ([^|]+) \| (?:read|write) \|", table, re.M) for name in row.split(",")
    }
    assert {PERMISSIONS[name] for name in called} <= listed
    assert listed <= set(PERMISSIONS.values()) | {"Billing meter events"}
    unknown = {name for name in _called() - called if not name.startswith(("audit", "checkpoint", "_", "resource"))}
    assert unknown == set(), "a resource of Stripe's that this test, and maybe the docs, don't know"
