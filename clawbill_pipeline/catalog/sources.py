"""Usage sources as the catalogue names them: where raw logs lie and how they read. The readers are in usage/."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Part of every event's identity: never rename."
    )
    path: str = Field(description="Folder, relative to the catalogue or absolute.")


Patterns = str | tuple[str, ...]


class _Files(_Source):
    """Files below a folder, plain, gzip or zstd. ``.gz`` and ``.zst`` behind a name don't count for ``pattern``."""

    changed_files: Literal["flag", "read_again"] = Field(
        "flag",
        description="A file that was landed and has other bytes now: flag leaves it alone and says so; read_again "
        "reads it from its start, where events known by their id are duplicates (for logs rotated under one name).",
    )


class JsonLines(_Files):
    """Files of one JSON object a line: ``{event_id, tenant_id, service, quantity, timestamp, …dimensions}``."""

    kind: Literal["json_lines"]
    pattern: Patterns = Field("**/*.jsonl", description="Glob below path; it finds x.jsonl.gz and x.jsonl.zst as well.")


class CloudEvents(_Files):
    """CloudEvents 1.0, one a line, in batches, or one a file.

    ``subject`` is the tenant, ``type`` the service, ``data.quantity`` the quantity; dimensions are members of
    ``data`` or extension attributes. Events are the same if ``source`` and ``id`` are.
    """

    kind: Literal["cloudevents"]
    pattern: Patterns = Field("**/*.json*", description="Glob below path; it finds x.json.gz and x.json.zst as well.")


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
    """State of OpenClaw cells, ``<path>/<tenant>/agents/<agent>/…``: one cell a tenant, or one cell of ``tenant``."""

    kind: Literal["openclaw_fleet"]
    tenant: str | None = Field(None, description="Set it where path is one tenant's cell: <path>/agents/<agent>/….")
    services: tuple[OpenClawService, ...] = Field(
        OPENCLAW_SERVICES, min_length=1, description="What is metered; the rest of a usage line is left out."
    )


Source = Annotated[JsonLines | CloudEvents | OpenClawFleet, Field(discriminator="kind")]
