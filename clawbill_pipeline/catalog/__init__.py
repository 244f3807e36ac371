"""The billing catalogue: YAML to checked models of sources, services, rate cards, tenants and calendar.

No I/O but the file. Start reading at ``models.Catalog``; ``loading.load`` reads and checks a file.
"""

from clawbill_pipeline.catalog.customers import with_customers
from clawbill_pipeline.catalog.loading import load, parse
from clawbill_pipeline.catalog.models import (
    Calendar,
    Catalog,
    CatalogError,
    PricedService,
    RateCard,
    RateCardVersion,
    Service,
    Tenant,
    UnknownService,
    UnknownTenant,
)
from clawbill_pipeline.catalog.names import openclaw_service, split_openclaw_service
from clawbill_pipeline.catalog.periods import Period, hours_between

__all__ = [
    "Calendar",
    "Catalog",
    "CatalogError",
    "Period",
    "PricedService",
    "RateCard",
    "RateCardVersion",
    "Service",
    "Tenant",
    "UnknownService",
    "UnknownTenant",
    "hours_between",
    "load",
    "openclaw_service",
    "parse",
    "split_openclaw_service",
    "with_customers",
]
