"""What the environment says: addresses, keys and folders. Read once, passed on; secrets never show in a repr.

Names fixed by the outside: STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, OPENCLAW_URL, OPENCLAW_TOKEN. Our own begin
with CLAWBILL_ and are listed in .env.example.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from clawbill_pipeline.object_store import is_address

#: The catalogue that comes with the package, to start from.
STARTER = Path(__file__).parent / "catalog" / "starter.yaml"


class SettingsError(ValueError):
    """A setting is missing or contradicts another one; the message names it and says what to set."""


class Settings(BaseModel):
    """All settings. Fields are None where the environment says nothing and nothing sensible can be assumed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Path = Field(Path(".clawbill"), description="CLAWBILL_STATE: the folder for all that is kept on disk.")
    catalog: Path | None = Field(None, description="CLAWBILL_CATALOG: the catalogue file.")
    database_url: SecretStr | None = Field(None, description="CLAWBILL_DATABASE_URL: PostgreSQL for the ledger.")
    lake: Path | str | None = Field(
        None, description="CLAWBILL_LAKE: folder of the lake, or s3://bucket/prefix; default <state>/lake."
    )
    reports: Path | str | None = Field(
        None,
        description="CLAWBILL_REPORTS: folder of the reports, or s3://bucket/prefix; default <state>/reports, or "
        "reports in the lake where that is in an object store.",
    )
    memory_limit: str | None = Field(
        None,
        description="CLAWBILL_MEMORY_LIMIT: what DuckDB may take of a worker's memory, such as 1GB; "
        "default four fifths of the machine's.",
    )
    openclaw_url: str | None = Field(None, description="OPENCLAW_URL")
    openclaw_token: SecretStr | None = Field(None, description="OPENCLAW_TOKEN")
    openclaw_status_path: str = Field(
        "/tenants/{tenant_id}/status", description="CLAWBILL_OPENCLAW_STATUS_PATH: where a tenant's status is put."
    )
    stripe_key: SecretStr | None = Field(None, description="STRIPE_SECRET_KEY")
    stripe_webhook_secrets: tuple[SecretStr, ...] = Field(
        (), description="STRIPE_WEBHOOK_SECRET: signing secret; several, separated by commas, while one is rotated."
    )
    stripe_api_base: str | None = Field(None, description="CLAWBILL_STRIPE_API_BASE: a stand-in instead of Stripe.")
    web_url: str | None = Field(None, description="CLAWBILL_WEB_URL: address of the web app in links.")
    portal_token: SecretStr | None = Field(
        None, description="CLAWBILL_PORTAL_TOKEN: what the host's application shows to get a customer portal's address."
    )
    users: Path | None = Field(None, description="CLAWBILL_USERS: the users file; default <state>/users.yaml.")
    proxy_user_header: str | None = Field(
        None, description="CLAWBILL_PROXY_USER_HEADER: where an authenticating proxy puts the user's name."
    )
    proxy_addresses: tuple[IPv4Network | IPv6Network, ...] = Field(
        (ip_network("127.0.0.0/8"), ip_network("::1/128")),
        description="CLAWBILL_PROXY_ADDRESSES: where that proxy connects from; networks, separated by commas.",
    )
    alerts: SecretStr | None = Field(
        None, description="CLAWBILL_ALERTS: who is told of breaks, failed runs and the like; see docs/alerts.md."
    )
    metrics_token: SecretStr | None = Field(
        None, description="CLAWBILL_METRICS_TOKEN: what Prometheus shows at /metrics; without it, this machine alone."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="CLAWBILL_LOG_FORMAT: json writes one object a line, with run, tenant and hour."
    )
    clock: Path | None = Field(None, description="CLAWBILL_CLOCK: a file with the time to live at (demonstrations).")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """The settings in ``env`` (the process's own by default). An empty variable counts as not set."""
        env = os.environ if env is None else env
        secrets = [part.strip() for part in env.get("STRIPE_WEBHOOK_SECRET", "").split(",")]
        named = {
            "state": env.get("CLAWBILL_STATE"),
            "catalog": env.get("CLAWBILL_CATALOG"),
            "database_url": env.get("CLAWBILL_DATABASE_URL"),
            "lake": _place(env.get("CLAWBILL_LAKE")),
            "memory_limit": _memory(env.get("CLAWBILL_MEMORY_LIMIT")),
            "reports": _place(env.get("CLAWBILL_REPORTS")),
            "openclaw_url": env.get("OPENCLAW_URL"),
            "openclaw_token": env.get("OPENCLAW_TOKEN"),
            "openclaw_status_path": env.get("CLAWBILL_OPENCLAW_STATUS_PATH"),
            "stripe_key": env.get("STRIPE_SECRET_KEY"),
            "stripe_api_base": env.get("CLAWBILL_STRIPE_API_BASE"),
            "web_url": env.get("CLAWBILL_WEB_URL"),
            "portal_token": env.get("CLAWBILL_PORTAL_TOKEN"),
            "users": env.get("CLAWBILL_USERS"),
            "proxy_user_header": env.get("CLAWBILL_PROXY_USER_HEADER"),
            "proxy_addresses": _networks(env.get("CLAWBILL_PROXY_ADDRESSES", "")),
            "alerts": env.get("CLAWBILL_ALERTS"),
            "metrics_token": env.get("CLAWBILL_METRICS_TOKEN"),
            "log_format": _log_format(env.get("CLAWBILL_LOG_FORMAT")),
            "clock": env.get("CLAWBILL_CLOCK"),
        }
        values: dict[str, object] = {name: value for name, value in named.items() if value}
        return cls.model_validate(values | {"stripe_webhook_secrets": [secret for secret in secrets if secret]})

    @property
    def catalog_file(self) -> Path:
        """CLAWBILL_CATALOG, else ``catalog.yaml`` of the state folder, else the starter catalogue of the package, so
        that definitions load on a machine where nothing is set up yet."""
        own = self.catalog or self.state / "catalog.yaml"
        return own if self.catalog or own.exists() else STARTER

    @property
    def lake_root(self) -> Path | str:
        """A folder, or an address in an object store."""
        return self.lake or self.state / "lake"

    @property
    def reports_root(self) -> Path | str:
        """A folder, or an address in an object store: whoever has the lake there has more machines than one."""
        if self.reports is None and isinstance(self.lake, str):
            return f"{self.lake.rstrip('/')}/reports"
        return self.reports or self.state / "reports"

    @property
    def users_file(self) -> Path:
        return self.users or self.state / "users.yaml"

    def need_database(self) -> str:
        """The ledger's URL. Raises SettingsError where none is set."""
        if self.database_url is None:
            raise SettingsError(
                "no database: set CLAWBILL_DATABASE_URL to a PostgreSQL URL, or run `clawbill up`, which starts one"
            )
        return self.database_url.get_secret_value()

    def need_openclaw(self) -> tuple[str, SecretStr]:
        """OpenClaw's address and token. Raises SettingsError where one is missing."""
        if not self.openclaw_url or not self.openclaw_token:
            raise SettingsError("OpenClaw is not configured: set OPENCLAW_URL and OPENCLAW_TOKEN")
        return self.openclaw_url.rstrip("/"), self.openclaw_token

    def need_stripe(self, *, live_allowed: bool) -> SecretStr:
        """Stripe's key. Raises SettingsError where it is missing, or live while the catalogue says ``live: false``."""
        if self.stripe_key is None:
            raise SettingsError("Stripe is not configured: set STRIPE_SECRET_KEY")
        refuse_live(self.stripe_key, live_allowed=live_allowed)
        return self.stripe_key


def _log_format(text: str | None) -> str | None:
    if text and text not in ("text", "json"):
        raise SettingsError(f"CLAWBILL_LOG_FORMAT is {text!r}; write text or json")
    return text


def _place(text: str | None) -> Path | str | None:
    """A folder, or an address in an object store as it is."""
    if not text or is_address(text):
        return text
    return Path(text)


def _memory(text: str | None) -> str | None:
    if text and not re.fullmatch(r"[1-9]\d*(\.\d+)? ?[KMGT]i?B", text):
        raise SettingsError(f"CLAWBILL_MEMORY_LIMIT: {text!r} is no amount of memory; write 1GB or 512MB")
    return text


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise SettingsError(f"CLAWBILL_PROXY_ADDRESSES: {error}; write networks such as 10.0.0.0/24") from None


def is_live(key: SecretStr) -> bool:
    """Whether a Stripe key moves real money."""
    return key.get_secret_value().startswith(("sk_live_", "rk_live_"))


def refuse_live(key: SecretStr, *, live_allowed: bool) -> None:
    """Raises SettingsError for a live key unless the catalogue allows it."""
    if is_live(key) and not live_allowed:
        raise SettingsError(
            "STRIPE_SECRET_KEY is a live key, and the catalogue does not say `live: true`; "
            "use a test key, or say so in the catalogue when real customers shall be billed"
        )
