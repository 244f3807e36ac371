"""Usage sources as the catalogue names them: where raw logs lie and how they read. The readers are in usage/."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Part of every event's identity: never rename.")
    path: str = Field(description="Folder, relative to the catalogue or absolute.")


class JsonLines(_Source):
    """Files of one JSON object a line: ``{event_id, tenant_id, service, quantity, timestamp, …dimensions}``."""

    kind: Literal["json_lines"]
    pattern: str = Field("**/*.jsonl", description="Glob below path.")


class CloudEvents(_Source):
    """Files of CloudEvents 1.0, one a line: ``subject`` is the tenant, ``type`` the service, ``data.quantity``."""

    kind: Literal["cloudevents"]
    pattern: str = Field("**/*.jsonl", description="Glob below path.")


class OpenClawFleet(_Source):
    """State of OpenClaw cells, ``<path>/<tenant>/agents/<agent>/…``: one cell a tenant."""

    kind: Literal["openclaw_fleet"]


Source = Annotated[JsonLines | CloudEvents | OpenClawFleet, Field(discriminator="kind")]
