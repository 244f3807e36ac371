"""The ledger's tables. Their constraints and triggers keep what the design promises; queries live with stations.

History is never changed: a table listed in ``APPEND_ONLY`` refuses UPDATE and DELETE, an outbox row
(``usage_records``) lets only its delivery state move. Quantities and amounts are ``NUMERIC(38, 12)``, amounts in
the currency's major unit. Tables that grow by the hour are range-partitioned by month on ``hour``.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

#: Not named like the role: "$user" is first in PostgreSQL's search path, and Dagster's tables stay in public.
SCHEMA = "ledger"
metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)

#: Delivery states of an outbox row, in the order in which a row can meet them.
OUTBOX_STATES = ("planned", "sending", "delivered", "rejected", "unknown")
STANDINGS = ("trialing", "current", "past_due", "overdue", "suspended", "cancelled")
METERING_REASONS = ("first", "late", "corrected")
RATING_REASONS = (*METERING_REASONS, "rerated")


def _at(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, Numeric(38, 12), nullable=nullable)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


# Station 1: what was read, which hours it touched, and what could not be read.
landings = Table(
    "landings",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("uri", Text, nullable=False, comment="File, database or address that was read."),
    Column("position", Text, nullable=False, comment="Where this landing ends in the uri; the next one goes on there."),
    Column("size", BigInteger, nullable=False, comment="Bytes or rows of the uri when it was read."),
    Column("sha256", Text, nullable=False, comment="Of what this landing read."),
    Column("lines", BigInteger, nullable=False, comment="Lines that should bear usage = events_lines + quarantined."),
    Column("event_lines", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False, comment="A line can bear several events."),
    Column("quarantined", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False, comment="Lines that bear no usage by their kind."),
    _at("landed_at"),
    Column("run_id", Text, nullable=False),
    UniqueConstraint("source", "uri", "position", "sha256"),
    Index(None, "source", "id"),
    CheckConstraint("lines = event_lines + quarantined", name="books"),
)

landed_hours = Table(
    "landed_hours",
    metadata,
    Column("landing_id", BigInteger, ForeignKey(landings.c.id), primary_key=True),
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("file", Text, nullable=False, comment="Parquet file, relative to the lake."),
    Column("sha256", Text, comment="Of the file; null where it was landed before this was kept."),
    Index(None, "hour", "landing_id"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("place", Text, nullable=False, comment="Line and byte offset, or row, within the uri."),
    Column("reason", Text, nullable=False, comment="A short code, such as not_a_number."),
    Column("field", Text, nullable=False),
    Column("detail", Text, nullable=False, comment="What is wrong and how to mend it."),
    Column("raw", Text, nullable=False, comment="The line, cut and with secrets masked."),
    Column("tenant_id", Text, comment="Where the line still tells it."),
    Column("landing_id", BigInteger, ForeignKey(landings.c.id)),
    _at("quarantined_at"),
    UniqueConstraint("source", "uri", "place", "reason", "field"),
)

# What others say was used, to compare with; nobody is billed by it.
usage_witnesses = Table(
    "usage_witnesses",
    metadata,
    Column("source", Text, primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column(
        "starts", DateTime(timezone=True), primary_key=True, comment="Start of the hour or UTC day that it speaks of."
    ),
    Column("ends", DateTime(timezone=True), primary_key=True, comment="Its end, exclusive."),
    Column("service", Text, primary_key=True),
    Column(
        "said_at", DateTime(timezone=True), primary_key=True, comment="When the witness said so; the newest counts."
    ),
    Column("uri", Text, nullable=False, comment="File of the answer, below the source's folder of witnesses."),
    _number("quantity"),
    Column("cost", Numeric(38, 12), comment="Provider's cost in USD as the witness has it; null where it says none."),
    Column("read_at", DateTime(timezone=True), nullable=False, comment="When it was read."),
    postgresql_partition_by="RANGE (starts)",
)

# Station 2: quantities.
metered_hours = Table(
    "metered_hours",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("landings", BigInteger, primary_key=True, comment="How many landings touch the hour and were counted."),
    Column("events", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("conflicts", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False, comment="New revisions written."),
    _at("metered_at"),
    Column("run_id", Text, nullable=False),
)

# Shards of hours; once all of an hour are there, the hour is in ``metered_hours``.
metered_shards = Table(
    "metered_shards",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("shards", Integer, primary_key=True, comment="How many the hour was shared out into."),
    Column(
        "layout",
        Text,
        primary_key=True,
        comment="Hash of who shares a customer: only shards of one layout are all tenants.",
    ),
    Column("shard", Integer, primary_key=True, comment="Which of them, from 1."),
    Column("landings", BigInteger, primary_key=True, comment="How many landings touch the hour and were counted."),
    Column(
        "recounts", BigInteger, primary_key=True, comment="How much of what hour_recounts asked it was metered with."
    ),
    Column("events", BigInteger, nullable=False, comment="Usage events of the shard's tenants."),
    Column("duplicates", BigInteger, nullable=False),
    Column("conflicts", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False, comment="New revisions written."),
    _at("metered_at"),
    Column("run_id", Text, nullable=False),
)

# What was far from usual in the hour that was the newest then: for alerts to tell.
unusual_volumes = Table(
    "unusual_volumes",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    _number("quantity"),
    Column(
        "usual",
        Numeric(38, 12),
        nullable=False,
        comment="What the tenant usually uses at that time, in the service's unit.",
    ),
    _at("found_at"),
)

# Hours that were metered for some tenants ahead of everybody else, since their invoice was about to go out.
metered_ahead = Table(
    "metered_ahead",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("landings", BigInteger, primary_key=True, comment="How many landings touch the hour and were counted."),
    Column("changed", BigInteger, nullable=False, comment="New revisions of the tenant's quantities."),
    _at("metered_at"),
    Column("run_id", Text, nullable=False),
)

# Where looking for late usage begins: the hours of all landings up to ``through`` are metered with them. As
# ``stripe_events_mark``, it only saves looking.
landings_mark = Table(
    "landings_mark",
    metadata,
    Column("through", BigInteger, primary_key=True, autoincrement=False),
    _at("marked_at"),
)

# What the events of a source that has a witness come to, copies told apart: why the witness says something else.
witnessed_usage = Table(
    "witnessed_usage",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("source", Text, primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("landings", BigInteger, primary_key=True, comment="How many landings touch the hour and were counted."),
    Column("quantity", Numeric(38, 12), nullable=False, comment="Of usage events, each counted once."),
    Column("cost", Numeric(38, 12), comment="Provider's cost of them in USD as their lines say it."),
    Column("forked", BigInteger, nullable=False, comment="Copies of them in other sessions."),
    Column("forked_quantity", Numeric(38, 12), nullable=False, comment="What the copies in other sessions come to."),
    Column("archived", BigInteger, nullable=False, comment="Copies of them in archives."),
    Column("archived_quantity", Numeric(38, 12), nullable=False, comment="What the copies in archives come to."),
    _at("metered_at"),
    Column("run_id", Text, nullable=False),
    postgresql_partition_by="RANGE (hour)",
)

# Values that count once a billing period; an earlier use that is learnt of later moves one.
unique_values = Table(
    "unique_values",
    metadata,
    Column("service", Text, primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("dimensions", Text, primary_key=True),
    Column("period_start", DateTime(timezone=True), primary_key=True),
    Column("value", Text, primary_key=True, comment="What was used, such as a user."),
    Column(
        "hour",
        DateTime(timezone=True),
        nullable=False,
        comment="UTC hour in which the period saw it first, as far as is known.",
    ),
    _at("window_start"),
)
hour_recounts = Table(
    "hour_recounts",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("asked", BigInteger, nullable=False, comment="How often another hour has changed what counts in this one."),
    Column("done", BigInteger, nullable=False, comment="How much of that the hour was metered with."),
    Index("hour_recounts_due_idx", "hour", postgresql_where=text("asked > done")),
)

metered_usage = Table(
    "metered_usage",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("dimensions", Text, primary_key=True, comment="Priced dimension values joined by /; empty for none."),
    Column("window_start", DateTime(timezone=True), primary_key=True, comment="The hour, or a period boundary in it."),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    _number("quantity"),
    Column("events", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    _at("metered_at"),
    Column("run_id", Text, nullable=False),
    _one_of("reason", METERING_REASONS),
    CheckConstraint("revision >= 1", name="revision"),
    CheckConstraint("window_start >= hour AND window_start < hour + interval '1 hour'", name="window_start"),
    postgresql_partition_by="RANGE (hour)",
)

# Station 3: amounts.
rated_usage = Table(
    "rated_usage",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("dimensions", Text, primary_key=True),
    Column("window_start", DateTime(timezone=True), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("metered_revision", Integer, nullable=False),
    Column("booking", BigInteger, Identity(always=True), nullable=False, comment="Order in which rows were booked."),
    Column("basis", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _number("quantity"),
    Column("amount", Numeric(38, 12), nullable=False, comment="Of the whole window at this revision, major unit."),
    Column("currency", Text, nullable=False),
    Column("asked_quantity", Numeric(38, 12), nullable=False, comment="Sent to OpenClaw: the hour's or the period's."),
    Column("answered_amount", Numeric(38, 12), nullable=False, comment="OpenClaw's amount for asked_quantity."),
    _at("period_start"),
    Column("answer", JSONB, nullable=False, comment="OpenClaw's whole answer, numbers as it wrote them."),
    Column("rate_card_version", Text, nullable=False),
    Column("latency_ms", Numeric(12, 3), nullable=False),
    _at("rated_at"),
    Column("run_id", Text, nullable=False),
    Column("unlimited_amount", Numeric(38, 12), comment="period_to_date: answered_amount before maximum and minimum."),
    Column("period_unlimited", Numeric(38, 12), comment="The period so far before them, over all terms it was rated."),
    Column("without_answer", JSONB, comment="For the period without this row, where asked anew: terms had changed."),
    Column("period_amount", Numeric(38, 12), comment="What is booked for the period with this row: the windows' sum."),
    _one_of("reason", RATING_REASONS),
    _one_of("basis", ("hourly", "period_to_date")),
    CheckConstraint("revision >= 1 AND metered_revision >= 1", name="revision"),
    Index(None, "tenant_id", "service", "period_start", "booking"),
    postgresql_partition_by="RANGE (hour)",
)

rating_failures = Table(
    "rating_failures",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("dimensions", Text, primary_key=True),
    Column("window_start", DateTime(timezone=True), primary_key=True),
    Column("metered_revision", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False, comment="retry: may work later; refused: OpenClaw's final no; unmapped."),
    Column("error", Text, nullable=False),
    Column("answer", Text),
    Column("attempts", Integer, nullable=False),
    _at("next_attempt_at", nullable=True),
    _at("failed_at"),
    Column("run_id", Text, nullable=False),
    _one_of("kind", ("retry", "refused", "unmapped")),
)

# Station 4: who is who at Stripe, and the outbox.
stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("subscription_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("livemode", Boolean, nullable=False),
    _at("mapped_at"),
    Column(
        "payer_id",
        Text,
        ForeignKey("ledger.stripe_customers.tenant_id"),
        comment="The tenant of the same customer whose bill shows this one's usage; null for a bill of its own.",
    ),
    Index("stripe_customers_payer_key", "customer_id", unique=True, postgresql_where=text("payer_id IS NULL")),
    Index(None, "customer_id"),
)

stripe_items = Table(
    "stripe_items",
    metadata,
    Column("tenant_id", Text, ForeignKey(stripe_customers.c.tenant_id), primary_key=True),
    Column("service", Text, primary_key=True),
    Column("subscription_item_id", Text, nullable=False),
    Column("price_id", Text, nullable=False),
    Column("meter_id", Text, nullable=False),
    Column("meter", Text, nullable=False, comment="Meter event name."),
    Column("backend", Text, nullable=False),
    _at("mapped_at"),
    Index(None, "meter"),
    Index(None, "subscription_item_id"),
)

# Read it through the view usage_record_parts where it matters whose usage a record is: tenants can share a customer.
usage_records = Table(
    "usage_records",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("identifier", Text, primary_key=True, comment="Stripe's event identifier and the idempotency key."),
    Column("tenant_id", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("window_start", DateTime(timezone=True), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("units", Numeric(38, 0), nullable=False, comment="Whole units of the window at this revision."),
    Column("value", Numeric(38, 0), nullable=False, comment="What is sent: the units, or a signed difference."),
    Column("exact_units", Numeric(38, 12), nullable=False, comment="Before rounding to whole units."),
    Column("period_start", DateTime(timezone=True), nullable=False),
    Column("event_timestamp", DateTime(timezone=True), nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("payload_sha256", Text, nullable=False),
    _at("planned_at"),
    Column("run_id", Text, nullable=False),
    # What may move:
    Column("state", Text, nullable=False, server_default="planned"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    _at("first_sent_at", nullable=True),
    _at("settled_at", nullable=True),
    _at("next_attempt_at", nullable=True),
    Column("parked", Text, comment="Why this row waits for a person; null for a row that flows."),
    Column("error", Text),
    Column("answer", JSONB),
    Column(
        "parts",
        JSONB,
        comment="Exact units by tenant, as decimal strings, where tenants share the customer; null if all is "
        "tenant_id's.",
    ),
    UniqueConstraint("hour", "customer_id", "meter", "window_start", "revision"),
    _one_of("state", OUTBOX_STATES),
    CheckConstraint("revision >= 1", name="revision"),
    CheckConstraint("length(identifier) <= 100", name="identifier"),
    CheckConstraint("(state = 'delivered') <= (settled_at IS NOT NULL)", name="settled"),
    Index(None, "state", postgresql_where=text("state <> 'delivered'")),
    Index(None, "customer_id", "meter", "period_start"),
    Index(None, "tenant_id", "service", "window_start"),
    Index(None, "customer_id", "meter", "window_start", postgresql_where=text("state <> 'delivered'")),
    postgresql_partition_by="RANGE (hour)",
)
#: The only columns of ``usage_records`` that an UPDATE may change.
OUTBOX_MOVES = ("state", "attempts", "first_sent_at", "settled_at", "next_attempt_at", "parked", "error", "answer")

# What became of usage records, by us: an entry a delivery, and one for everything that a person does with a record.
usage_record_trail = Table(
    "usage_record_trail",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True, comment="Of the usage record."),
    Column("identifier", Text, primary_key=True, comment="Of the usage record."),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _at("at"),
    Column("kind", Text, nullable=False, comment="For example usage_record.created."),
    Column("tenant_id", Text, nullable=False),
    Column("detail", JSONB, nullable=False, comment="What the record itself doesn't say: who, why, which run."),
    postgresql_partition_by="RANGE (hour)",
)

# What rounding goes on from: kept as records are planned, so that planning an hour never sums a whole period.
planned_totals = Table(
    "planned_totals",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("period_start", DateTime(timezone=True), primary_key=True),
    Column("exact_units", Numeric(38, 12), nullable=False, comment="Of the newest revisions of the period's windows."),
    Column("units", Numeric(38, 0), nullable=False, comment="The same in whole units: the exact ones, rounded once."),
    postgresql_with={"fillfactor": 80},
)

# What people decided, what Stripe told, what was made there: as much as people do. What is a row an hour is not here.
audit_trail = Table(
    "audit_trail",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _at("at"),
    Column("kind", Text, nullable=False, comment="For example close.hold."),
    Column("tenant_id", Text),
    Column("subject", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Index(None, "kind", "subject"),
)

# Station 5: what Stripe says.
stripe_events = Table(
    "stripe_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("object_id", Text),
    Column("api_version", Text),
    Column("livemode", Boolean, nullable=False),
    _at("created"),
    Column("body", Text, nullable=False, comment="Raw, as it was signed."),
    Column("headers", JSONB, nullable=False),
    Column("via", Text, nullable=False),
    _at("received_at"),
    _one_of("via", ("webhook", "sweep")),
    Index(None, "object_id"),
)

stripe_events_handled = Table(
    "stripe_events_handled",
    metadata,
    Column("inbox_id", BigInteger, ForeignKey(stripe_events.c.id), primary_key=True, autoincrement=False),
    Column("outcome", Text, nullable=False, comment="applied, older, unhandled (no handler) or failed."),
    Column("detail", Text, nullable=False),
    _at("handled_at"),
    Column("run_id", Text, nullable=False),
    _one_of("outcome", ("applied", "older", "unhandled", "failed")),
    Index("stripe_events_handled_failed_idx", "inbox_id", postgresql_where=text("outcome = 'failed'")),
)

# Where looking for work begins: every event up to ``through`` was handled. It only saves looking; never more than true.
stripe_events_mark = Table(
    "stripe_events_mark",
    metadata,
    Column("through", BigInteger, primary_key=True, autoincrement=False),
    _at("marked_at"),
)

invoices = Table(
    "invoices",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("tenant_id", Text, comment="Null for a customer that no tenant is mapped to."),
    Column("customer_id", Text, nullable=False),
    Column("subscription_id", Text),
    Column("number", Text),
    Column("status", Text, nullable=False),
    Column("billing_reason", Text),
    Column("currency", Text, nullable=False),
    _number("subtotal"),
    _number("total"),
    _number("amount_due"),
    _number("amount_paid"),
    _at("created"),
    _at("finalized_at", nullable=True),
    _at("paid_at", nullable=True),
    Column("object", JSONB, nullable=False, comment="Stripe's newest object, without its lines."),
    _at("as_of"),
    Index(None, "tenant_id"),
    Index(None, "customer_id"),
    Index("invoices_draft_idx", "created", postgresql_where=text("status = 'draft'")),
    Index("invoices_unmapped_idx", "invoice_id", postgresql_where=text("tenant_id IS NULL")),
)

invoice_lines = Table(
    "invoice_lines",
    metadata,
    Column("invoice_id", Text, ForeignKey(invoices.c.invoice_id), primary_key=True),
    Column("line_id", Text, primary_key=True),
    Column("tenant_id", Text),
    Column("service", Text, comment="Null for a line that no service is mapped to."),
    Column("subscription_item_id", Text),
    Column("price_id", Text),
    Column("quantity", Numeric(38, 12), comment="Stripe's quantity_decimal."),
    _number("amount"),
    Column("currency", Text, nullable=False),
    _at("period_start"),
    _at("period_end"),
    Column("description", Text),
    Column("object", JSONB, nullable=False),
    Index(None, "tenant_id", "service", "period_start"),
    Index("invoice_lines_unmapped_idx", "invoice_id", postgresql_where=text("tenant_id IS NULL OR service IS NULL")),
)

tenant_standing = Table(
    "tenant_standing",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("standing", Text, nullable=False),
    _at("since"),
    Column("cause", Text, nullable=False, comment="The Stripe event that moved it."),
    _at("recorded_at"),
    # What may move: the report to OpenClaw.
    _at("reported_at", nullable=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("error", Text),
    _one_of("standing", STANDINGS),
    UniqueConstraint("tenant_id", "cause"),
    Index(None, "tenant_id", "id"),
)
STANDING_MOVES = ("reported_at", "attempts", "error")

# Station 6: what was compared and what does not agree.
usage_summaries = Table(
    "usage_summaries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("meter", Text, nullable=False),
    _at("period_start"),
    _at("hour", nullable=True),
    Column("units", Numeric(38, 12), nullable=False, comment="What Stripe says it holds; hour is null for the period."),
    _at("read_at"),
    Column("run_id", Text, nullable=False),
    Index(None, "tenant_id", "service", "period_start", "hour", "id"),
)

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("period", Text, nullable=False, comment="Month in which the billing periods start, YYYY-MM."),
    Column(
        "sha256", Text, nullable=False, comment="Of the waterfall and the open breaks: the same data, the same row."
    ),
    Column("waterfall", JSONB, nullable=False),
    Column("open_breaks", BigInteger, nullable=False),
    _at("as_of"),
    Column("run_id", Text, nullable=False),
    Column("costs", JSONB, comment="Unit costs of providers as the catalogue had them; null where it had none."),
    Index(None, "period", "id"),
)

breaks = Table(
    "breaks",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("period", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("service", Text, nullable=False),
    _at("hour", nullable=True),
    Column("step", Text, nullable=False, comment="Which two steps differ, such as sent_held."),
    Column("cause", Text, nullable=False),
    Column("currency", Text),
    _number("quantity"),
    _number("amount"),
    Column("detail", Text, nullable=False),
    _at("first_seen"),
    _at("last_seen"),
    _at("closed_at", nullable=True),
    Index(
        "breaks_open_key",
        "period",
        "tenant_id",
        "service",
        "step",
        "cause",
        "hour",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=text("closed_at IS NULL"),
    ),
)

reports = Table(
    "reports",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("period", Text, nullable=False),
    Column("name", Text, nullable=False, comment="File name below the reports folder of the period."),
    Column("sha256", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("reconciliation_id", BigInteger, ForeignKey(reconciliations.c.id), nullable=False),
    _at("made_at"),
    UniqueConstraint("period", "name", "sha256"),
)

# Months of the partitioned tables that have moved into the lake, and back.
archived_months = Table(
    "archived_months",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("table_name", Text, nullable=False),
    Column("month", Date, nullable=False, comment="First day of the UTC month."),
    Column("action", Text, nullable=False, comment="The newest one says where the month's rows are."),
    Column("file", Text, nullable=False, comment="Relative to the lake."),
    Column("rows", BigInteger, nullable=False),
    Column("digest", Numeric, nullable=False, comment="Sum over the hashes of the rows."),
    Column("sha256", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    _at("at"),
    Column("by_whom", Text, nullable=False, comment="Who moved it."),
    Index(None, "table_name", "month"),
    _one_of("action", ("archived", "restored")),
)

# Who was told of what: a matter is told to a route once, and once more when it is over.
alerts = Table(
    "alerts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("route", Text, nullable=False, comment="Who is told, as CLAWBILL_ALERTS has it; never the address."),
    Column("kind", Text, nullable=False, comment="break, source, parked, held or run."),
    Column("key", Text, nullable=False, comment="Which one: the break's id, the source, the tenant, the run."),
    Column("topic", Text, nullable=False, comment="What is told in one message: matters of a kind, and of a period."),
    Column("summary", Text, nullable=False, comment="The matter in a line."),
    _at("raised_at"),
    Column("told_at", DateTime(timezone=True), comment="Null while no message got through."),
    Column("resolved_at", DateTime(timezone=True), comment="When its end was told; null while it lasts."),
    Index("alerts_open_key", "route", "kind", "key", unique=True, postgresql_where=text("resolved_at IS NULL")),
)

# Usage posted over HTTP: who may post, and what was posted. It is landed as files are, and may go once it was.
ingest_tokens = Table(
    "ingest_tokens",
    metadata,
    Column("name", Text, primary_key=True, comment="Its name, which is part of the token."),
    Column("sha256", Text, nullable=False, comment="Of the whole token; the token itself is nowhere."),
    Column("tenants", ARRAY(Text), comment="Whose usage it may bring; null for everybody's."),
    Column("services", ARRAY(Text), comment="Of which services; null for all."),
    _at("made_at"),
    Column("made_by", Text, nullable=False, comment="Who ran the command."),
    Column("revoked_at", DateTime(timezone=True), comment="Since when it opens nothing any more."),
)
TOKEN_MOVES = ("revoked_at",)

ingest_requests = Table(
    "ingest_requests",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("sha256", Text, nullable=False, comment="Of what was posted: the same request again is no new row."),
    Column("token", Text, nullable=False, comment="Name of the token that it came with."),
    Column("events", Integer, nullable=False, comment="Usage events in it, readable ones and others."),
    Column("body", LargeBinary, nullable=False, comment="One CloudEvent or an array of them, JSON, zstd."),
    Column("received_at", DateTime(timezone=True), nullable=False, comment="When it was posted."),
    UniqueConstraint("source", "sha256"),
    Index(None, "received_at"),
)

# What processes of every kind count together, for /metrics.
tallies = Table(
    "tallies",
    metadata,
    Column("name", Text, primary_key=True, comment="What is counted."),
    Column("label", Text, primary_key=True, comment="Of which kind."),
    Column("count", Numeric(38, 12), nullable=False, comment="How often, or how much, since the ledger began."),
)

#: What a column means wherever it stands, unless the table says more.
_COMMON = {
    "id": "Number in the order of writing.",
    "hour": "UTC hour, half-open, of the usage's own time.",
    "tenant_id": "Tenant by its id in the catalogue.",
    "service": "Service by its name in the catalogue.",
    "dimensions": "Priced dimension values joined by /; empty for none.",
    "window_start": "The hour, or a period boundary in it.",
    "revision": "1 for the first; the highest one counts, the others are history.",
    "metered_revision": "The revision of metered_usage that was rated.",
    "quantity": "In the service's unit.",
    "events": "Usage events.",
    "reason": "Why this revision was written.",
    "currency": "ISO 4217 code.",
    "amount": "In the currency's major unit, exact.",
    "basis": "hourly, or period_to_date for tiers that span the period.",
    "period": "Month in which the billing period starts, YYYY-MM.",
    "period_start": "Start of the billing period.",
    "period_end": "End of the billing period, exclusive.",
    "run_id": "Dagster run that wrote the row.",
    "source": "Source by its name in the catalogue.",
    "customer_id": "Stripe customer.",
    "subscription_id": "Stripe subscription.",
    "subscription_item_id": "Stripe subscription item.",
    "price_id": "Stripe price.",
    "meter_id": "Stripe meter.",
    "meter": "Stripe meter, by its event name.",
    "backend": "How usage reaches this meter.",
    "state": "Delivery state: planned, sending, delivered, rejected or unknown.",
    "attempts": "Attempts so far.",
    "error": "What went wrong the last time.",
    "livemode": "Whether real money is moved.",
    "invoice_id": "Stripe invoice.",
    "line_id": "Stripe invoice line.",
    "status": "Stripe's status of the invoice.",
    "total": "In the currency's major unit.",
    "subtotal": "Before discounts, tax and credit; in the currency's major unit.",
    "amount_due": "In the currency's major unit.",
    "amount_paid": "In the currency's major unit.",
    "units": "Whole units as Stripe counts them.",
    "read_at": "When Stripe was asked.",
    "rated_at": "When OpenClaw answered.",
    "metered_at": "When it was counted.",
    "planned_at": "When the intent was committed.",
    "mapped_at": "When the ledger learned it.",
    "rate_card_version": "The version of the rate card, as OpenClaw named it.",
    "latency_ms": "How long OpenClaw took.",
    "standing": "trialing, current, past_due, overdue, suspended or cancelled.",
    "since": "When this standing began.",
    "first_seen": "When this difference was first found.",
    "last_seen": "When it was last found.",
    "closed_at": "When it was gone; null while it is open.",
    "detail": "In words.",
    "sha256": "Of the content.",
    "bytes": "Size.",
    "made_at": "When it was written.",
    "raised_at": "When it was found that somebody has to be told.",
    "description": "Stripe's text of the line.",
}
for _table in metadata.tables.values():
    for _column in _table.columns:
        _column.comment = _column.comment or _COMMON.get(_column.name)

#: By UTC months of their hour, and archived by them: what grows by the hour with tenants and services.
PARTITIONED = (metered_usage, rated_usage, usage_records, usage_record_trail, witnessed_usage, usage_witnesses)
APPEND_ONLY = (
    landings, landed_hours, landings_mark, quarantine, usage_witnesses, witnessed_usage, metered_hours,
    metered_shards, metered_ahead, unusual_volumes,
    metered_usage, rated_usage, usage_record_trail, audit_trail,
    stripe_events, stripe_events_handled, stripe_events_mark, usage_summaries, reconciliations, reports,
    archived_months,
)  # fmt: skip
#: Rows stay; only the named columns may change.
GUARDED = {usage_records: OUTBOX_MOVES, tenant_standing: STANDING_MOVES, ingest_tokens: TOKEN_MOVES}
