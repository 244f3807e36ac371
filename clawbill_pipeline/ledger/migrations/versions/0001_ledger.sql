-- The ledger as first released. History is never changed: triggers refuse it.

CREATE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The trigger's arguments are the columns that may move.
    IF TG_OP = 'UPDATE' AND to_jsonb(OLD) - TG_ARGV::text[] = to_jsonb(NEW) - TG_ARGV::text[] THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused; write a new revision instead', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TABLE ledger.alerts (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    route TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    topic TEXT NOT NULL,
    summary TEXT NOT NULL,
    raised_at TIMESTAMP WITH TIME ZONE NOT NULL,
    told_at TIMESTAMP WITH TIME ZONE,
    resolved_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT alerts_pkey PRIMARY KEY (id)
);

COMMENT ON COLUMN ledger.alerts.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.alerts.route IS 'Who is told, as CLAWBILL_ALERTS has it; never the address.';
COMMENT ON COLUMN ledger.alerts.kind IS 'break, source, parked, held or run.';
COMMENT ON COLUMN ledger.alerts.key IS 'Which one: the break''s id, the source, the tenant, the run.';
COMMENT ON COLUMN ledger.alerts.topic IS 'What is told in one message: matters of a kind, and of a period.';
COMMENT ON COLUMN ledger.alerts.summary IS 'The matter in a line.';
COMMENT ON COLUMN ledger.alerts.raised_at IS 'When it was found that somebody has to be told.';
COMMENT ON COLUMN ledger.alerts.told_at IS 'Null while no message got through.';
COMMENT ON COLUMN ledger.alerts.resolved_at IS 'When its end was told; null while it lasts.';

CREATE UNIQUE INDEX alerts_open_key ON ledger.alerts (route, kind, key) WHERE resolved_at IS NULL;

CREATE TABLE ledger.audit_trail (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    kind TEXT NOT NULL,
    tenant_id TEXT,
    subject TEXT NOT NULL,
    detail JSONB NOT NULL,
    CONSTRAINT audit_trail_pkey PRIMARY KEY (id)
);

COMMENT ON COLUMN ledger.audit_trail.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.audit_trail.kind IS 'For example usage_record.created.';
COMMENT ON COLUMN ledger.audit_trail.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.audit_trail.detail IS 'In words.';

CREATE INDEX audit_trail_kind_subject_idx ON ledger.audit_trail (kind, subject);

CREATE TABLE ledger.breaks (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    period TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    hour TIMESTAMP WITH TIME ZONE,
    step TEXT NOT NULL,
    cause TEXT NOT NULL,
    currency TEXT,
    quantity NUMERIC(38, 12) NOT NULL,
    amount NUMERIC(38, 12) NOT NULL,
    detail TEXT NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    last_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT breaks_pkey PRIMARY KEY (id)
);

COMMENT ON COLUMN ledger.breaks.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.breaks.period IS 'Month in which the billing period starts, YYYY-MM.';
COMMENT ON COLUMN ledger.breaks.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.breaks.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.breaks.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.breaks.step IS 'Which two steps differ, such as sent_held.';
COMMENT ON COLUMN ledger.breaks.currency IS 'ISO 4217 code.';
COMMENT ON COLUMN ledger.breaks.quantity IS 'In the service''s unit.';
COMMENT ON COLUMN ledger.breaks.amount IS 'In the currency''s major unit, exact.';
COMMENT ON COLUMN ledger.breaks.detail IS 'In words.';
COMMENT ON COLUMN ledger.breaks.first_seen IS 'When this difference was first found.';
COMMENT ON COLUMN ledger.breaks.last_seen IS 'When it was last found.';
COMMENT ON COLUMN ledger.breaks.closed_at IS 'When it was gone; null while it is open.';

CREATE UNIQUE INDEX breaks_open_key ON ledger.breaks (period, tenant_id, service, step, cause, hour) NULLS NOT DISTINCT WHERE closed_at IS NULL;

CREATE TABLE ledger.invoices (
    invoice_id TEXT NOT NULL,
    tenant_id TEXT,
    customer_id TEXT NOT NULL,
    subscription_id TEXT,
    number TEXT,
    status TEXT NOT NULL,
    billing_reason TEXT,
    currency TEXT NOT NULL,
    subtotal NUMERIC(38, 12) NOT NULL,
    total NUMERIC(38, 12) NOT NULL,
    amount_due NUMERIC(38, 12) NOT NULL,
    amount_paid NUMERIC(38, 12) NOT NULL,
    created TIMESTAMP WITH TIME ZONE NOT NULL,
    finalized_at TIMESTAMP WITH TIME ZONE,
    paid_at TIMESTAMP WITH TIME ZONE,
    object JSONB NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT invoices_pkey PRIMARY KEY (invoice_id)
);

COMMENT ON COLUMN ledger.invoices.invoice_id IS 'Stripe invoice.';
COMMENT ON COLUMN ledger.invoices.tenant_id IS 'Null for a customer that no tenant is mapped to.';
COMMENT ON COLUMN ledger.invoices.customer_id IS 'Stripe customer.';
COMMENT ON COLUMN ledger.invoices.subscription_id IS 'Stripe subscription.';
COMMENT ON COLUMN ledger.invoices.status IS 'Stripe''s status of the invoice.';
COMMENT ON COLUMN ledger.invoices.currency IS 'ISO 4217 code.';
COMMENT ON COLUMN ledger.invoices.subtotal IS 'Before discounts, tax and credit; in the currency''s major unit.';
COMMENT ON COLUMN ledger.invoices.total IS 'In the currency''s major unit.';
COMMENT ON COLUMN ledger.invoices.amount_due IS 'In the currency''s major unit.';
COMMENT ON COLUMN ledger.invoices.amount_paid IS 'In the currency''s major unit.';
COMMENT ON COLUMN ledger.invoices.object IS 'Stripe''s newest object, without its lines.';

CREATE INDEX invoices_customer_id_idx ON ledger.invoices (customer_id);
CREATE INDEX invoices_tenant_id_idx ON ledger.invoices (tenant_id);

CREATE TABLE ledger.landings (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    source TEXT NOT NULL,
    uri TEXT NOT NULL,
    position TEXT NOT NULL,
    size BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    lines BIGINT NOT NULL,
    event_lines BIGINT NOT NULL,
    events BIGINT NOT NULL,
    quarantined BIGINT NOT NULL,
    skipped BIGINT NOT NULL,
    landed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT landings_pkey PRIMARY KEY (id),
    CONSTRAINT landings_source_uri_position_sha256_key UNIQUE (source, uri, position, sha256),
    CONSTRAINT landings_books_check CHECK (lines = event_lines + quarantined)
);

COMMENT ON COLUMN ledger.landings.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.landings.source IS 'Source by its name in the catalogue.';
COMMENT ON COLUMN ledger.landings.uri IS 'File, database or address that was read.';
COMMENT ON COLUMN ledger.landings.position IS 'Where this landing ends in the uri; the next one goes on there.';
COMMENT ON COLUMN ledger.landings.size IS 'Bytes or rows of the uri when it was read.';
COMMENT ON COLUMN ledger.landings.sha256 IS 'Of what this landing read.';
COMMENT ON COLUMN ledger.landings.lines IS 'Lines that should bear usage = events_lines + quarantined.';
COMMENT ON COLUMN ledger.landings.events IS 'A line can bear several events.';
COMMENT ON COLUMN ledger.landings.skipped IS 'Lines that bear no usage by their kind.';
COMMENT ON COLUMN ledger.landings.run_id IS 'Dagster run that wrote the row.';

CREATE TABLE ledger.metered_hours (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    landings BIGINT NOT NULL,
    events BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    conflicts BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    metered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT metered_hours_pkey PRIMARY KEY (hour, landings)
);

COMMENT ON COLUMN ledger.metered_hours.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.metered_hours.landings IS 'How many landings touch the hour and were counted.';
COMMENT ON COLUMN ledger.metered_hours.events IS 'Usage events.';
COMMENT ON COLUMN ledger.metered_hours.changed IS 'New revisions written.';
COMMENT ON COLUMN ledger.metered_hours.metered_at IS 'When it was counted.';
COMMENT ON COLUMN ledger.metered_hours.run_id IS 'Dagster run that wrote the row.';

CREATE TABLE ledger.metered_usage (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    revision INTEGER NOT NULL,
    quantity NUMERIC(38, 12) NOT NULL,
    events BIGINT NOT NULL,
    reason TEXT NOT NULL,
    metered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT metered_usage_pkey PRIMARY KEY (hour, tenant_id, service, dimensions, window_start, revision),
    CONSTRAINT metered_usage_reason_check CHECK (reason IN ('first', 'late', 'corrected')),
    CONSTRAINT metered_usage_revision_check CHECK (revision >= 1),
    CONSTRAINT metered_usage_window_start_check CHECK (window_start >= hour AND window_start < hour + interval '1 hour')
)
 PARTITION BY RANGE (hour);

COMMENT ON COLUMN ledger.metered_usage.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.metered_usage.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.metered_usage.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.metered_usage.dimensions IS 'Priced dimension values joined by /; empty for none.';
COMMENT ON COLUMN ledger.metered_usage.window_start IS 'The hour, or a period boundary in it.';
COMMENT ON COLUMN ledger.metered_usage.revision IS '1 for the first; the highest one counts, the others are history.';
COMMENT ON COLUMN ledger.metered_usage.quantity IS 'In the service''s unit.';
COMMENT ON COLUMN ledger.metered_usage.events IS 'Usage events.';
COMMENT ON COLUMN ledger.metered_usage.reason IS 'Why this revision was written.';
COMMENT ON COLUMN ledger.metered_usage.metered_at IS 'When it was counted.';
COMMENT ON COLUMN ledger.metered_usage.run_id IS 'Dagster run that wrote the row.';

CREATE TABLE ledger.rated_usage (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    revision INTEGER NOT NULL,
    metered_revision INTEGER NOT NULL,
    booking BIGINT GENERATED ALWAYS AS IDENTITY,
    basis TEXT NOT NULL,
    reason TEXT NOT NULL,
    quantity NUMERIC(38, 12) NOT NULL,
    amount NUMERIC(38, 12) NOT NULL,
    currency TEXT NOT NULL,
    asked_quantity NUMERIC(38, 12) NOT NULL,
    answered_amount NUMERIC(38, 12) NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    answer JSONB NOT NULL,
    rate_card_version TEXT NOT NULL,
    latency_ms NUMERIC(12, 3) NOT NULL,
    rated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT rated_usage_pkey PRIMARY KEY (hour, tenant_id, service, dimensions, window_start, revision),
    CONSTRAINT rated_usage_reason_check CHECK (reason IN ('first', 'late', 'corrected', 'rerated')),
    CONSTRAINT rated_usage_basis_check CHECK (basis IN ('hourly', 'period_to_date')),
    CONSTRAINT rated_usage_revision_check CHECK (revision >= 1 AND metered_revision >= 1)
)
 PARTITION BY RANGE (hour);

COMMENT ON COLUMN ledger.rated_usage.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.rated_usage.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.rated_usage.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.rated_usage.dimensions IS 'Priced dimension values joined by /; empty for none.';
COMMENT ON COLUMN ledger.rated_usage.window_start IS 'The hour, or a period boundary in it.';
COMMENT ON COLUMN ledger.rated_usage.revision IS '1 for the first; the highest one counts, the others are history.';
COMMENT ON COLUMN ledger.rated_usage.metered_revision IS 'The revision of metered_usage that was rated.';
COMMENT ON COLUMN ledger.rated_usage.booking IS 'Order in which rows were booked.';
COMMENT ON COLUMN ledger.rated_usage.basis IS 'hourly, or period_to_date for tiers that span the period.';
COMMENT ON COLUMN ledger.rated_usage.reason IS 'Why this revision was written.';
COMMENT ON COLUMN ledger.rated_usage.quantity IS 'In the service''s unit.';
COMMENT ON COLUMN ledger.rated_usage.amount IS 'Of the whole window at this revision, major unit.';
COMMENT ON COLUMN ledger.rated_usage.currency IS 'ISO 4217 code.';
COMMENT ON COLUMN ledger.rated_usage.asked_quantity IS 'Sent to OpenClaw: the hour''s or the period''s.';
COMMENT ON COLUMN ledger.rated_usage.answered_amount IS 'OpenClaw''s amount for asked_quantity.';
COMMENT ON COLUMN ledger.rated_usage.period_start IS 'Start of the billing period.';
COMMENT ON COLUMN ledger.rated_usage.answer IS 'OpenClaw''s whole answer, numbers as it wrote them.';
COMMENT ON COLUMN ledger.rated_usage.rate_card_version IS 'The version of the rate card, as OpenClaw named it.';
COMMENT ON COLUMN ledger.rated_usage.latency_ms IS 'How long OpenClaw took.';
COMMENT ON COLUMN ledger.rated_usage.rated_at IS 'When OpenClaw answered.';
COMMENT ON COLUMN ledger.rated_usage.run_id IS 'Dagster run that wrote the row.';

CREATE INDEX rated_usage_tenant_id_service_period_start_idx ON ledger.rated_usage (tenant_id, service, period_start);

CREATE TABLE ledger.rating_failures (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    metered_revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    answer TEXT,
    attempts INTEGER NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    failed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT rating_failures_pkey PRIMARY KEY (hour, tenant_id, service, dimensions, window_start, metered_revision),
    CONSTRAINT rating_failures_kind_check CHECK (kind IN ('retry', 'refused', 'unmapped'))
);

COMMENT ON COLUMN ledger.rating_failures.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.rating_failures.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.rating_failures.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.rating_failures.dimensions IS 'Priced dimension values joined by /; empty for none.';
COMMENT ON COLUMN ledger.rating_failures.window_start IS 'The hour, or a period boundary in it.';
COMMENT ON COLUMN ledger.rating_failures.metered_revision IS 'The revision of metered_usage that was rated.';
COMMENT ON COLUMN ledger.rating_failures.kind IS 'retry: may work later; refused: OpenClaw''s final no; unmapped.';
COMMENT ON COLUMN ledger.rating_failures.error IS 'What went wrong the last time.';
COMMENT ON COLUMN ledger.rating_failures.attempts IS 'Attempts so far.';
COMMENT ON COLUMN ledger.rating_failures.run_id IS 'Dagster run that wrote the row.';

CREATE TABLE ledger.reconciliations (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    period TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    waterfall JSONB NOT NULL,
    open_breaks BIGINT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT reconciliations_pkey PRIMARY KEY (id)
);

COMMENT ON COLUMN ledger.reconciliations.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.reconciliations.period IS 'Month in which the billing periods start, YYYY-MM.';
COMMENT ON COLUMN ledger.reconciliations.sha256 IS 'Of the waterfall and the open breaks: the same data, the same row.';
COMMENT ON COLUMN ledger.reconciliations.run_id IS 'Dagster run that wrote the row.';

CREATE INDEX reconciliations_period_id_idx ON ledger.reconciliations (period, id);

CREATE TABLE ledger.stripe_customers (
    tenant_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    subscription_id TEXT NOT NULL,
    currency TEXT NOT NULL,
    livemode BOOLEAN NOT NULL,
    mapped_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT stripe_customers_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT stripe_customers_customer_id_key UNIQUE (customer_id)
);

COMMENT ON COLUMN ledger.stripe_customers.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.stripe_customers.customer_id IS 'Stripe customer.';
COMMENT ON COLUMN ledger.stripe_customers.subscription_id IS 'Stripe subscription.';
COMMENT ON COLUMN ledger.stripe_customers.currency IS 'ISO 4217 code.';
COMMENT ON COLUMN ledger.stripe_customers.livemode IS 'Whether real money is moved.';
COMMENT ON COLUMN ledger.stripe_customers.mapped_at IS 'When the ledger learned it.';

CREATE TABLE ledger.stripe_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    object_id TEXT,
    api_version TEXT,
    livemode BOOLEAN NOT NULL,
    created TIMESTAMP WITH TIME ZONE NOT NULL,
    body TEXT NOT NULL,
    headers JSONB NOT NULL,
    via TEXT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT stripe_events_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_events_via_check CHECK (via IN ('webhook', 'sweep')),
    CONSTRAINT stripe_events_event_id_key UNIQUE (event_id)
);

COMMENT ON COLUMN ledger.stripe_events.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.stripe_events.livemode IS 'Whether real money is moved.';
COMMENT ON COLUMN ledger.stripe_events.body IS 'Raw, as it was signed.';

CREATE INDEX stripe_events_object_id_idx ON ledger.stripe_events (object_id);

CREATE TABLE ledger.tenant_standing (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant_id TEXT NOT NULL,
    standing TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    cause TEXT NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    reported_at TIMESTAMP WITH TIME ZONE,
    attempts INTEGER DEFAULT 0 NOT NULL,
    error TEXT,
    CONSTRAINT tenant_standing_pkey PRIMARY KEY (id),
    CONSTRAINT tenant_standing_standing_check CHECK (standing IN ('trialing', 'current', 'past_due', 'overdue', 'suspended', 'cancelled')),
    CONSTRAINT tenant_standing_tenant_id_cause_key UNIQUE (tenant_id, cause)
);

COMMENT ON COLUMN ledger.tenant_standing.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.tenant_standing.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.tenant_standing.standing IS 'trialing, current, past_due, overdue, suspended or cancelled.';
COMMENT ON COLUMN ledger.tenant_standing.since IS 'When this standing began.';
COMMENT ON COLUMN ledger.tenant_standing.cause IS 'The Stripe event that moved it.';
COMMENT ON COLUMN ledger.tenant_standing.attempts IS 'Attempts so far.';
COMMENT ON COLUMN ledger.tenant_standing.error IS 'What went wrong the last time.';

CREATE INDEX tenant_standing_tenant_id_id_idx ON ledger.tenant_standing (tenant_id, id);

CREATE TABLE ledger.usage_records (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    identifier TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    backend TEXT NOT NULL,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    revision INTEGER NOT NULL,
    units NUMERIC(38, 0) NOT NULL,
    value NUMERIC(38, 0) NOT NULL,
    exact_units NUMERIC(38, 12) NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    event_timestamp TIMESTAMP WITH TIME ZONE NOT NULL,
    payload JSONB NOT NULL,
    payload_sha256 TEXT NOT NULL,
    planned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    state TEXT DEFAULT 'planned' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    first_sent_at TIMESTAMP WITH TIME ZONE,
    settled_at TIMESTAMP WITH TIME ZONE,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    parked TEXT,
    error TEXT,
    answer JSONB,
    CONSTRAINT usage_records_pkey PRIMARY KEY (hour, identifier),
    CONSTRAINT usage_records_hour_customer_id_meter_window_start_revision_key UNIQUE (hour, customer_id, meter, window_start, revision),
    CONSTRAINT usage_records_state_check CHECK (state IN ('planned', 'sending', 'delivered', 'rejected', 'unknown')),
    CONSTRAINT usage_records_revision_check CHECK (revision >= 1),
    CONSTRAINT usage_records_identifier_check CHECK (length(identifier) <= 100),
    CONSTRAINT usage_records_settled_check CHECK ((state = 'delivered') <= (settled_at IS NOT NULL))
)
 PARTITION BY RANGE (hour);

COMMENT ON COLUMN ledger.usage_records.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.usage_records.identifier IS 'Stripe''s event identifier and the idempotency key.';
COMMENT ON COLUMN ledger.usage_records.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.usage_records.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.usage_records.customer_id IS 'Stripe customer.';
COMMENT ON COLUMN ledger.usage_records.meter IS 'Stripe meter, by its event name.';
COMMENT ON COLUMN ledger.usage_records.backend IS 'How usage reaches this meter.';
COMMENT ON COLUMN ledger.usage_records.window_start IS 'The hour, or a period boundary in it.';
COMMENT ON COLUMN ledger.usage_records.revision IS '1 for the first; the highest one counts, the others are history.';
COMMENT ON COLUMN ledger.usage_records.units IS 'Whole units of the window at this revision.';
COMMENT ON COLUMN ledger.usage_records.value IS 'What is sent: the units, or a signed difference.';
COMMENT ON COLUMN ledger.usage_records.exact_units IS 'Before rounding to whole units.';
COMMENT ON COLUMN ledger.usage_records.period_start IS 'Start of the billing period.';
COMMENT ON COLUMN ledger.usage_records.planned_at IS 'When the intent was committed.';
COMMENT ON COLUMN ledger.usage_records.run_id IS 'Dagster run that wrote the row.';
COMMENT ON COLUMN ledger.usage_records.state IS 'Delivery state: planned, sending, delivered, rejected or unknown.';
COMMENT ON COLUMN ledger.usage_records.attempts IS 'Attempts so far.';
COMMENT ON COLUMN ledger.usage_records.parked IS 'Why this row waits for a person; null for a row that flows.';
COMMENT ON COLUMN ledger.usage_records.error IS 'What went wrong the last time.';

CREATE INDEX usage_records_customer_id_meter_period_start_idx ON ledger.usage_records (customer_id, meter, period_start);
CREATE INDEX usage_records_customer_id_meter_window_start_idx ON ledger.usage_records (customer_id, meter, window_start) WHERE state <> 'delivered';
CREATE INDEX usage_records_state_idx ON ledger.usage_records (state) WHERE state <> 'delivered';

CREATE TABLE ledger.usage_summaries (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    hour TIMESTAMP WITH TIME ZONE,
    units NUMERIC(38, 12) NOT NULL,
    read_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT usage_summaries_pkey PRIMARY KEY (id)
);

COMMENT ON COLUMN ledger.usage_summaries.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.usage_summaries.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.usage_summaries.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.usage_summaries.customer_id IS 'Stripe customer.';
COMMENT ON COLUMN ledger.usage_summaries.meter IS 'Stripe meter, by its event name.';
COMMENT ON COLUMN ledger.usage_summaries.period_start IS 'Start of the billing period.';
COMMENT ON COLUMN ledger.usage_summaries.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.usage_summaries.units IS 'What Stripe says it holds; hour is null for the period.';
COMMENT ON COLUMN ledger.usage_summaries.read_at IS 'When Stripe was asked.';
COMMENT ON COLUMN ledger.usage_summaries.run_id IS 'Dagster run that wrote the row.';

CREATE INDEX usage_summaries_tenant_id_service_period_start_hour_id_idx ON ledger.usage_summaries (tenant_id, service, period_start, hour, id);

CREATE TABLE ledger.invoice_lines (
    invoice_id TEXT NOT NULL,
    line_id TEXT NOT NULL,
    tenant_id TEXT,
    service TEXT,
    subscription_item_id TEXT,
    price_id TEXT,
    quantity NUMERIC(38, 12),
    amount NUMERIC(38, 12) NOT NULL,
    currency TEXT NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    description TEXT,
    object JSONB NOT NULL,
    CONSTRAINT invoice_lines_pkey PRIMARY KEY (invoice_id, line_id),
    CONSTRAINT invoice_lines_invoice_id_fkey FOREIGN KEY(invoice_id) REFERENCES ledger.invoices (invoice_id)
);

COMMENT ON COLUMN ledger.invoice_lines.invoice_id IS 'Stripe invoice.';
COMMENT ON COLUMN ledger.invoice_lines.line_id IS 'Stripe invoice line.';
COMMENT ON COLUMN ledger.invoice_lines.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.invoice_lines.service IS 'Null for a line that no service is mapped to.';
COMMENT ON COLUMN ledger.invoice_lines.subscription_item_id IS 'Stripe subscription item.';
COMMENT ON COLUMN ledger.invoice_lines.price_id IS 'Stripe price.';
COMMENT ON COLUMN ledger.invoice_lines.quantity IS 'Stripe''s quantity_decimal.';
COMMENT ON COLUMN ledger.invoice_lines.amount IS 'In the currency''s major unit, exact.';
COMMENT ON COLUMN ledger.invoice_lines.currency IS 'ISO 4217 code.';
COMMENT ON COLUMN ledger.invoice_lines.period_start IS 'Start of the billing period.';
COMMENT ON COLUMN ledger.invoice_lines.period_end IS 'End of the billing period, exclusive.';
COMMENT ON COLUMN ledger.invoice_lines.description IS 'Stripe''s text of the line.';

CREATE INDEX invoice_lines_tenant_id_service_period_start_idx ON ledger.invoice_lines (tenant_id, service, period_start);

CREATE TABLE ledger.landed_hours (
    landing_id BIGINT NOT NULL,
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    events BIGINT NOT NULL,
    file TEXT NOT NULL,
    CONSTRAINT landed_hours_pkey PRIMARY KEY (landing_id, hour),
    CONSTRAINT landed_hours_landing_id_fkey FOREIGN KEY(landing_id) REFERENCES ledger.landings (id)
);

COMMENT ON COLUMN ledger.landed_hours.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.landed_hours.events IS 'Usage events.';
COMMENT ON COLUMN ledger.landed_hours.file IS 'Parquet file, relative to the lake.';

CREATE INDEX landed_hours_hour_landing_id_idx ON ledger.landed_hours (hour, landing_id);

CREATE TABLE ledger.quarantine (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    source TEXT NOT NULL,
    uri TEXT NOT NULL,
    place TEXT NOT NULL,
    reason TEXT NOT NULL,
    field TEXT NOT NULL,
    detail TEXT NOT NULL,
    raw TEXT NOT NULL,
    tenant_id TEXT,
    landing_id BIGINT,
    quarantined_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT quarantine_pkey PRIMARY KEY (id),
    CONSTRAINT quarantine_source_uri_place_reason_field_key UNIQUE (source, uri, place, reason, field),
    CONSTRAINT quarantine_landing_id_fkey FOREIGN KEY(landing_id) REFERENCES ledger.landings (id)
);

COMMENT ON COLUMN ledger.quarantine.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.quarantine.source IS 'Source by its name in the catalogue.';
COMMENT ON COLUMN ledger.quarantine.place IS 'Line and byte offset, or row, within the uri.';
COMMENT ON COLUMN ledger.quarantine.reason IS 'A short code, such as not_a_number.';
COMMENT ON COLUMN ledger.quarantine.detail IS 'What is wrong and how to mend it.';
COMMENT ON COLUMN ledger.quarantine.raw IS 'The line, cut and with secrets masked.';
COMMENT ON COLUMN ledger.quarantine.tenant_id IS 'Where the line still tells it.';

CREATE TABLE ledger.reports (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    period TEXT NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    reconciliation_id BIGINT NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT reports_pkey PRIMARY KEY (id),
    CONSTRAINT reports_period_name_sha256_key UNIQUE (period, name, sha256),
    CONSTRAINT reports_reconciliation_id_fkey FOREIGN KEY(reconciliation_id) REFERENCES ledger.reconciliations (id)
);

COMMENT ON COLUMN ledger.reports.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.reports.period IS 'Month in which the billing period starts, YYYY-MM.';
COMMENT ON COLUMN ledger.reports.name IS 'File name below the reports folder of the period.';
COMMENT ON COLUMN ledger.reports.sha256 IS 'Of the content.';
COMMENT ON COLUMN ledger.reports.bytes IS 'Size.';
COMMENT ON COLUMN ledger.reports.made_at IS 'When it was written.';

CREATE TABLE ledger.stripe_events_handled (
    inbox_id BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    handled_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT stripe_events_handled_pkey PRIMARY KEY (inbox_id),
    CONSTRAINT stripe_events_handled_outcome_check CHECK (outcome IN ('applied', 'older', 'unhandled', 'failed')),
    CONSTRAINT stripe_events_handled_inbox_id_fkey FOREIGN KEY(inbox_id) REFERENCES ledger.stripe_events (id)
);

COMMENT ON COLUMN ledger.stripe_events_handled.outcome IS 'applied, older, unhandled (no handler) or failed.';
COMMENT ON COLUMN ledger.stripe_events_handled.detail IS 'In words.';
COMMENT ON COLUMN ledger.stripe_events_handled.run_id IS 'Dagster run that wrote the row.';

CREATE TABLE ledger.stripe_items (
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    subscription_item_id TEXT NOT NULL,
    price_id TEXT NOT NULL,
    meter_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    backend TEXT NOT NULL,
    mapped_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT stripe_items_pkey PRIMARY KEY (tenant_id, service),
    CONSTRAINT stripe_items_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES ledger.stripe_customers (tenant_id),
    CONSTRAINT stripe_items_subscription_item_id_key UNIQUE (subscription_item_id)
);

COMMENT ON COLUMN ledger.stripe_items.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.stripe_items.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.stripe_items.subscription_item_id IS 'Stripe subscription item.';
COMMENT ON COLUMN ledger.stripe_items.price_id IS 'Stripe price.';
COMMENT ON COLUMN ledger.stripe_items.meter_id IS 'Stripe meter.';
COMMENT ON COLUMN ledger.stripe_items.meter IS 'Meter event name.';
COMMENT ON COLUMN ledger.stripe_items.backend IS 'How usage reaches this meter.';
COMMENT ON COLUMN ledger.stripe_items.mapped_at IS 'When the ledger learned it.';

CREATE INDEX stripe_items_meter_idx ON ledger.stripe_items (meter);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.landings
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.landings
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.landed_hours
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.landed_hours
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.quarantine
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.quarantine
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.metered_hours
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.metered_hours
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.metered_usage
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.metered_usage
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.rated_usage
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.rated_usage
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.audit_trail
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.audit_trail
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.stripe_events
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.stripe_events
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.stripe_events_handled
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.stripe_events_handled
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.usage_summaries
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.usage_summaries
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.reconciliations
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.reconciliations
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.reports
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.reports
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OF hour, identifier, tenant_id, service, customer_id, meter, backend, window_start, revision, units, value, exact_units, period_start, event_timestamp, payload, payload_sha256, planned_at, run_id OR DELETE ON ledger.usage_records
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change('state', 'attempts', 'first_sent_at', 'settled_at', 'next_attempt_at', 'parked', 'error', 'answer');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.usage_records
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OF id, tenant_id, standing, since, cause, recorded_at OR DELETE ON ledger.tenant_standing
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change('reported_at', 'attempts', 'error');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.tenant_standing
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
