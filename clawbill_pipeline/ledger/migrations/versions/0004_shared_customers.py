"""Tenants that share a Stripe customer, and the running totals that planning rounds by."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

_NEVER_MOVE = (
    "hour, identifier, tenant_id, service, customer_id, meter, backend, window_start, revision, units, value, "
    "exact_units, parts, period_start, event_timestamp, payload, payload_sha256, planned_at, run_id"
)
_MAY_MOVE = "'state', 'attempts', 'first_sent_at', 'settled_at', 'next_attempt_at', 'parked', 'error', 'answer'"


def upgrade() -> None:
    for statement in (_CUSTOMERS, _PARTS, _TOTALS):
        op.execute(statement)


_CUSTOMERS = """
ALTER TABLE ledger.stripe_customers DROP CONSTRAINT stripe_customers_customer_id_key;
ALTER TABLE ledger.stripe_customers ADD COLUMN payer_id TEXT
    CONSTRAINT stripe_customers_payer_id_fkey REFERENCES ledger.stripe_customers (tenant_id);
COMMENT ON COLUMN ledger.stripe_customers.payer_id IS
    'The tenant of the same customer whose bill shows this one''s usage; null for a bill of its own.';
CREATE UNIQUE INDEX stripe_customers_payer_key ON ledger.stripe_customers (customer_id) WHERE payer_id IS NULL;
CREATE INDEX stripe_customers_customer_id_idx ON ledger.stripe_customers (customer_id);
ALTER TABLE ledger.stripe_items DROP CONSTRAINT stripe_items_subscription_item_id_key;
CREATE INDEX stripe_items_subscription_item_id_idx ON ledger.stripe_items (subscription_item_id);
"""

_PARTS = f"""
ALTER TABLE ledger.usage_records ADD COLUMN parts JSONB;
COMMENT ON COLUMN ledger.usage_records.parts IS
    'Exact units by tenant, as decimal strings, where tenants share the customer; null if all is tenant_id''s.';
DROP TRIGGER append_only ON ledger.usage_records;
CREATE TRIGGER append_only BEFORE UPDATE OF {_NEVER_MOVE} OR DELETE ON ledger.usage_records
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change({_MAY_MOVE});

CREATE VIEW ledger.usage_record_parts AS
SELECT r.hour, r.identifier, coalesce(part.tenant_id, r.tenant_id) AS tenant_id, r.tenant_id AS payer_id, r.service,
    r.customer_id, r.meter, r.backend, r.window_start, r.revision, r.period_start, r.state, r.parked, r.error,
    r.settled_at, r.value,
    CAST(CASE
        WHEN part.tenant_id IS NULL THEN r.units
        WHEN part.tenant_id = r.tenant_id THEN r.units - r.exact_units + part.exact_units
        ELSE part.exact_units
    END AS NUMERIC(38, 12)) AS units,
    coalesce(part.exact_units, r.exact_units) AS exact_units, r.units AS shared_units
FROM ledger.usage_records r
LEFT JOIN LATERAL (
    SELECT key AS tenant_id, CAST(value AS NUMERIC(38, 12)) AS exact_units FROM jsonb_each_text(r.parts)
) part ON true;
COMMENT ON VIEW ledger.usage_record_parts IS
    'usage_records by the tenants whose usage they are: a row a tenant where tenants share a customer. The rounding to '
    'whole units is the payer''s, so that the units of a record''s tenants sum to the record''s.';
"""  # noqa: S608 -- own text

_TOTALS = """
CREATE TABLE ledger.planned_totals (
    customer_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    exact_units NUMERIC(38, 12) NOT NULL,
    units NUMERIC(38, 0) NOT NULL,
    CONSTRAINT planned_totals_pkey PRIMARY KEY (customer_id, meter, period_start)
) WITH (fillfactor = 80);
COMMENT ON COLUMN ledger.planned_totals.customer_id IS 'Stripe customer.';
COMMENT ON COLUMN ledger.planned_totals.meter IS 'Stripe meter, by its event name.';
COMMENT ON COLUMN ledger.planned_totals.period_start IS 'Start of the billing period.';
COMMENT ON COLUMN ledger.planned_totals.exact_units IS 'Of the newest revisions of the period''s windows.';
COMMENT ON COLUMN ledger.planned_totals.units IS 'The same in whole units: the exact ones, rounded once.';

INSERT INTO ledger.planned_totals
SELECT customer_id, meter, period_start, sum(exact_units), sum(units) FROM (
    SELECT DISTINCT ON (hour, customer_id, meter, window_start) customer_id, meter, period_start, exact_units, units
    FROM ledger.usage_records ORDER BY hour, customer_id, meter, window_start, revision DESC
) newest
GROUP BY customer_id, meter, period_start;
"""
