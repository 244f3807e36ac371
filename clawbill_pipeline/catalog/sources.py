"""Usage sources as the catalogue names them: where raw logs lie and how they read. The readers are in usage/."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Name = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Part of every event's identity: never rename.")
]


class _Source(_Closed):
    name: Name
    path: str = Field(description="Folder, relative to the catalogue or absolute.")


#: The form of an address in an object store.
_ADDRESS = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]+(/.*)?")

Patterns = str | tuple[str, ...]


class _Files(_Source):
    """Files below a folder, plain, gzip or zstd. ``.gz`` and ``.zst`` behind a name don't count for ``pattern``.

    The folder may be in an object store: credentials and region are the environment's (docs/sources.md).
    """

    path: str = Field(
        description="Folder, relative to the catalogue or absolute; or s3://bucket/prefix, gs://… or az://container/…."
    )
    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s@?]+$",
        description="Of an object store: the server's address, such as http://minio:9000; by default AWS_ENDPOINT_URL, "
        "or the vendor's own.",
    )
    changed_files: Literal["flag", "read_again"] = Field(
        "flag",
        description="A file that was landed and has other bytes now: flag leaves it alone and says so; read_again "
        "reads it from its start, where events known by their id are duplicates (for logs rotated under one name).",
    )

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if "://" not in self.path:
            if self.endpoint is not None:
                raise ValueError("endpoint has a meaning only with a path in an object store, such as s3://bucket/logs")
        elif not _ADDRESS.fullmatch(self.path):
            raise ValueError(
                f"path {self.path!r} is no address of an object store; write s3://bucket/prefix, gs://bucket/prefix "
                "or az://container/prefix"
            )
        return self


class JsonLines(_Files):
    """Files of one JSON object a line: ``{event_id, tenant_id, service, quantity, timestamp, …dimensions}``."""

    kind: Literal["json_lines"]
    pattern: Patterns = Field("**/*.jsonl", description="Glob below path; it finds x.jsonl.gz and x.jsonl.zst as well.")
    unknown_fields: Literal["ignore", "quarantine"] = Field(
        "ignore", description="What becomes of a record with a member that is no part of usage and no dimension."
    )


class CloudEvents(_Files):
    """CloudEvents 1.0, one a line, in batches, or one a file.

    ``subject`` is the tenant, ``type`` the service, ``data.quantity`` the quantity; dimensions are members of
    ``data`` or extension attributes. Events are the same if ``source`` and ``id`` are.
    """

    kind: Literal["cloudevents"]
    pattern: Patterns = Field("**/*.json*", description="Glob below path; it finds x.json.gz and x.json.zst as well.")


class Value(_Closed):
    """Where a record says something: a ``field`` (``a.b`` is b in a), or a ``constant`` for all of them.

    Short for a field is its name alone.
    """

    field: str | None = None
    constant: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"field": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.field is None) == (self.constant is None):
            raise ValueError("give either field or constant")
        return self


class QuantityValue(Value):
    scale: Decimal = Field(Decimal(1), description="The quantity is the field times this, exactly: 0.001 for milli.")


class TimeValue(Value):
    format: str = Field(
        "iso", description="iso, or epoch (the unit is told by its size), or as strptime has it: %d/%b/%Y:%H:%M:%S %z."
    )
    time_zone: str = Field("UTC", description="Zone of times that name none; a time that comes twice is the first.")

    @property
    def is_plain(self) -> bool:
        return self.format == "iso" and self.time_zone == "UTC"

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is no IANA time zone; write for example UTC or America/New_York") from None
        return name


class Measure(_Closed):
    """One of the usages that a record bears."""

    service: Value
    quantity: QuantityValue
    skip_zero: bool = Field(True, description="A quantity of zero, or none at all, is no usage.")


class Mapping(_Closed):
    """How a record that was not made for clawbill reads as usage events."""

    event_id: Value | None = Field(None, description="Unique in the source; without it, an event's id is its place.")
    tenant_id: Value
    timestamp: TimeValue
    usage: tuple[Measure, ...] = Field(min_length=1)
    dimensions: dict[str, Value] = Field(default_factory=dict)


class Files(_Files):
    """Files of JSON lines, JSON arrays, CSV or Parquet with fields of their own, read through ``mapping``."""

    kind: Literal["files"]
    pattern: Patterns = Field(description="Glob below path, such as **/*.csv; it finds x.csv.gz and x.csv.zst as well.")
    format: Literal["auto", "json", "csv", "parquet"] = Field("auto", description="auto goes by the file's name.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the fields of CSV.")
    mapping: Mapping


class _LiteLlm(_Closed):
    tenant: str = Field("team_id", description="The field that is the tenant: team_id, organization_id, end_user, ….")
    event_id: str = Field("request_id", description="The field that is unique; id in callbacks' own payloads.")

    @property
    def mapping(self) -> Mapping:
        return Mapping.model_validate(
            {
                "event_id": self.event_id,
                "tenant_id": self.tenant,
                "timestamp": "startTime",
                "dimensions": {"provider": "custom_llm_provider", "model": "model"},
                "usage": [
                    {"service": {"constant": "tokens.input"}, "quantity": "prompt_tokens"},
                    {"service": {"constant": "tokens.output"}, "quantity": "completion_tokens"},
                ],
            }
        )


class LiteLlm(_LiteLlm, _Files):
    """Spend logs of LiteLLM, exported as JSON lines, JSON arrays or CSV: tokens.input and tokens.output.

    Their dimensions are provider (``custom_llm_provider``) and model. Prompt tokens count those read from a cache.
    """

    kind: Literal["litellm"]
    pattern: Patterns = Field("**/*.json*", description="Glob below path.")


class _Rule(_Closed):
    """Whose usage it is, by a regular expression on a part of it; without ``tenant``, by what its group holds."""

    pattern: str
    tenant: str | None = None

    @model_validator(mode="after")
    def _tells(self) -> Self:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        if self.tenant is None and groups != 1:
            raise ValueError("give a tenant, or a pattern with one group that holds it: ^/t/([a-z]+)/")
        return self


class TenantRule(_Rule):
    """Whose request it is."""

    by: Literal["host", "path", "user", "address"]


class CellRule(_Rule):
    """Whose usage of a gateway it is: by the cell's folder, the agent's id or the session's key."""

    by: Literal["cell", "agent", "session_key"]


class AccessLog(_Files):
    """Access logs in the combined format of nginx and Apache: a request each, and the bytes that were sent.

    A file is known by its first line: what rotation renames or compresses is not billed twice, and a new file under
    the old name is read. Dimensions are host, method and status.
    """

    kind: Literal["access_log"]
    changed_files: Literal["flag", "read_again"] = "read_again"
    pattern: Patterns = Field("**/*access*log*", description="Glob below path, rotated files included.")
    requests: str | None = Field("requests", description="The service that counts requests; null for none.")
    bytes: str | None = Field("bytes", description="The service that counts bytes; null for none.")
    tenants: tuple[TenantRule, ...] = Field(min_length=1, description="The first rule that fits decides.")
    unmatched: Literal["quarantine", "skip"] = Field("quarantine", description="What becomes of nobody's requests.")


class SqlTable(_Closed):
    """A table or view of any database that SQLAlchemy knows, read in the order of a column that only grows.

    The address is in the environment, since it holds a password. Rows are read from a while before the last one on,
    for transactions that commit late; those that were read before are duplicates by their event id.
    """

    kind: Literal["sql_table"]
    name: Name
    url_env: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="The variable that holds the database's URL.")
    table: str = Field(description="Name, with its schema where it has one: public.spend_logs.")
    order_by: str = Field(description="A column of whole numbers or times that only grows, with an index.")
    overlap: int = Field(3600, ge=0, description="How far before the last row reading begins: seconds, or numbers.")
    mapping: Mapping

    @model_validator(mode="after")
    def _known_again(self) -> Self:
        if self.mapping.event_id is None:
            raise ValueError("mapping: rows are read more than once, so event_id must name a column that is unique")
        return self


class LiteLlmTable(_LiteLlm):
    """The spend logs where LiteLLM's proxy keeps them, in its own database: as ``litellm``, read as ``sql_table``."""

    kind: Literal["litellm_table"]
    name: Name
    url_env: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="The variable that holds the database's URL.")
    table: str = Field("LiteLLM_SpendLogs", description="Name, with its schema where it has one.")
    overlap: int = Field(
        3600, ge=0, description="Seconds before the last row from which reading begins: rows come when requests end."
    )

    @property
    def rows(self) -> SqlTable:
        """The table as any other."""
        return SqlTable(
            kind="sql_table",
            name=self.name,
            url_env=self.url_env,
            table=self.table,
            order_by="startTime",
            overlap=self.overlap,
            mapping=self.mapping,
        )


class Http(_Closed):
    """What senders post to ``/usage`` of the web app: CloudEvents as in ``cloudevents``; see docs/ingest.md.

    A posted request stays in the ledger until its events are in the lake, and ``keep_days`` longer.
    """

    kind: Literal["http"]
    name: Name
    keep_days: int = Field(
        30,
        ge=0,
        le=3650,
        description="How long a request is kept once it was landed. One with an event in quarantine stays.",
    )


#: What a line of an OpenClaw transcript that bears usage becomes.
OpenClawService = Literal["tokens.input", "tokens.output", "tokens.cache_read", "tokens.cache_write", "messages"]
OPENCLAW_SERVICES: tuple[OpenClawService, ...] = (
    "tokens.input",
    "tokens.output",
    "tokens.cache_read",
    "tokens.cache_write",
    "messages",
)


class OpenClawFleet(_Source):
    """State of OpenClaw cells, ``<path>/<tenant>/agents/<agent>/…``: one cell a tenant, or one cell of ``tenant``.

    Where tenants share cells, ``tenants`` tells them apart; ``path`` may then be one cell or a folder of cells.
    """

    kind: Literal["openclaw_fleet"]
    tenant: str | None = Field(None, description="Set it where path is one tenant's cell: <path>/agents/<agent>/….")
    tenants: tuple[CellRule, ...] = Field(
        (), description="Where cells are shared: the first rule that fits decides; what none fits goes to quarantine."
    )
    services: tuple[OpenClawService, ...] = Field(
        OPENCLAW_SERVICES, min_length=1, description="What is metered; the rest of a usage line is left out."
    )
    witnesses: str | None = Field(
        None,
        description="Folder of what gateways answered to usage.cost and sessions.usage, <answer>_<tenant>.json: to "
        "compare with, never to bill by.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.tenant is not None and self.tenants:
            raise ValueError("give either tenant or tenants: one for all, or rules that tell them apart")
        if "://" in self.path:
            raise ValueError("cells are read where they live: path must be a folder, since SQLite needs files")
        return self


class ClawRouter(_Closed):
    """Usage that an OpenClaw ClawRouter keeps for 30 days (``clawrouter.usage.v1``), asked for over HTTP.

    Dimensions are provider, model, capability and agent. The gateway offers its newest events only (100 in 2026):
    land more often than so many come, since what it does not offer any more is told, and can't be had.
    """

    kind: Literal["clawrouter"]
    name: Name
    url: str = Field(
        pattern=r"^https?://[^\s@?#]+$", description="The gateway's address, such as https://router.example.com."
    )
    token_env: str = Field(
        "CLAWROUTER_ADMIN_TOKEN", pattern=r"^[A-Z][A-Z0-9_]*$", description="The variable that holds the admin token."
    )
    headers_env: dict[str, str] = Field(
        default_factory=dict,
        description="More headers by the variables that hold them, such as CF-Access-Client-Id and "
        "CF-Access-Client-Secret of Cloudflare Access.",
    )
    tenant: str = Field("tenant_id", description="The field that is the tenant: tenant_id, policy_id, project_id, ….")
    page_by: str | None = Field(
        "before",
        description="The query parameter that asks for events older than an id; one that is not known does no harm. "
        "null: never ask for more than the first page.",
    )
    overlap: int = Field(
        600,
        ge=0,
        description="Seconds before the last event that are read again: events may come late, and those that were read "
        "before are duplicates.",
    )
    services: tuple[OpenClawService, ...] = Field(
        OPENCLAW_SERVICES, min_length=1, description="What is metered; the rest of an event is left out."
    )


Source = Annotated[
    JsonLines | CloudEvents | Files | LiteLlm | AccessLog | SqlTable | LiteLlmTable | ClawRouter | Http | OpenClawFleet,
    Field(discriminator="kind"),
]
