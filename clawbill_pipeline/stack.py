"""What a machine needs to run clawbill, brought up part by part and taken down in order. Used by `up` and `demo`.

PostgreSQL (embedded unless a URL is given), the stand-ins for OpenClaw and Stripe where no real keys are set, the
web app, Dagster. What runs, and with which environment, is decided here once; the commands only choose the parts.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from clawbill_pipeline import processes
from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.disk import blamed
from clawbill_pipeline.ledger import embedded, migrate
from clawbill_pipeline.processes import Child
from clawbill_pipeline.settings import Settings

HOST = "127.0.0.1"
#: Key of the stand-in's account: fixed, so that its ids, and with them the demo's reports, are the same everywhere.
SANDBOX_KEY = "sk_test_clawbill"


class Stack:
    """The running parts under one state folder. ``env`` is what every further part and every run is started with."""

    def __init__(self, state: Path, env: dict[str, str] | None = None) -> None:
        self.state = state.resolve()
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.env = dict(os.environ if env is None else env)
        self.env |= {"CLAWBILL_STATE": str(self.state), "PYTHONUNBUFFERED": "1"}
        self.children: list[Child] = []
        self._stripe = ""
        self._server: embedded.Server | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        why = blamed(self.state, error) if isinstance(error, Exception) else None
        # The last part started is the first to end; PostgreSQL was first and ends last.
        self._closing.close()
        if why is not None and why is not error:
            raise why from error

    @property
    def settings(self) -> Settings:
        return Settings.from_env(self.env)

    def database(self) -> None:
        """The ledger's database, migrated: CLAWBILL_DATABASE_URL, or the embedded server in the state folder."""
        url = self.env.get("CLAWBILL_DATABASE_URL")
        if not url:
            self._server = self._closing.enter_context(embedded.serving(self.state / "postgres"))
            url = self._server.url()
        migrate(url)
        self.env["CLAWBILL_DATABASE_URL"] = url

    def check(self) -> None:
        """Raises ProcessError or EmbeddedServerError if a part has ended by itself."""
        for child in self.children:
            child.check()
        if self._server is not None:
            embedded.check(self._server.folder)

    def openclaw(self, catalog: Path, now: int | None = None) -> str:
        """The stand-in for OpenClaw's rating engine; returns its address."""
        self.env["OPENCLAW_TOKEN"] = self._secret("openclaw_token", lambda: secrets.token_urlsafe(24))
        folder = self.state / "sandbox" / "openclaw"
        command = ["--state", str(folder), "--catalog", str(catalog), *(["--now", str(now)] if now else [])]
        self.env["OPENCLAW_URL"] = self._serve("openclaw", "clawbill_pipeline.sandbox.openclaw", command)
        return self.env["OPENCLAW_URL"]

    def stripe(self, now: int | None = None) -> str:
        """The stand-in for Stripe, with an account of its own; returns its address."""
        self.env["STRIPE_SECRET_KEY"] = SANDBOX_KEY
        self.env["STRIPE_WEBHOOK_SECRET"] = self._secret("webhook", lambda: "whsec_" + secrets.token_hex(24))
        folder = self.state / "sandbox" / "stripe"
        command = ["--state", str(folder), *(["--now", str(now)] if now else [])]
        self._stripe = self._serve("stripe", "clawbill_pipeline.sandbox.stripe", command)
        self.env["CLAWBILL_STRIPE_API_BASE"] = self._stripe
        return self._stripe

    def web(self, port: int = 0) -> str:
        """The web app (webhook, health, reports); returns its address. A Stripe stand-in sends its events there."""
        self.env["CLAWBILL_WEB_URL"] = self._serve("web", "clawbill_pipeline.web", [], port)
        if self._stripe:
            self._send_webhooks_to(self.env["CLAWBILL_WEB_URL"] + "/stripe/webhook")
        return self.env["CLAWBILL_WEB_URL"]

    def dagster_home(self) -> Path:
        """A DAGSTER_HOME in the state folder, with our dagster.yaml and workspace."""
        home = self.state / "dagster"
        home.mkdir(exist_ok=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copyfile(shipped(name), home / name)
        self.env["DAGSTER_HOME"] = str(home)
        return home

    def dagster(self, port: int) -> str:
        """Dagster's webserver and daemon; returns the webserver's address, which answers."""
        home = self.dagster_home()
        workspace = ["-w", str(home / "workspace.yaml")]
        bin_folder = Path(sys.executable).parent
        address = f"http://{HOST}:{port}"
        webserver = self._start(
            "dagster-webserver", [str(bin_folder / "dagster-webserver"), "-h", HOST, "-p", str(port), *workspace]
        )
        self._start("dagster-daemon", [str(bin_folder / "dagster-daemon"), "run", *workspace])
        webserver.wait_until(lambda: answers(f"{address}/server_info"), patience=120)
        return address

    def _send_webhooks_to(self, url: str) -> None:
        """Makes ``url`` the one place that the stand-in sends its events to; an earlier start had another port."""
        headers = {"Authorization": f"Bearer {SANDBOX_KEY}"}
        with httpx.Client(base_url=self._stripe, headers=headers, timeout=30, trust_env=False) as http:
            known = http.get("/v1/webhook_endpoints", params={"limit": 100}).raise_for_status().json()["data"]
            for endpoint in known:
                if endpoint["url"] != url:
                    http.delete(f"/v1/webhook_endpoints/{endpoint['id']}").raise_for_status()
        sandbox_call(self._stripe, "/_sandbox/webhooks", {"url": url, "secret": self.env["STRIPE_WEBHOOK_SECRET"]})

    def _serve(self, name: str, module: str, arguments: list[str], port: int = 0) -> str:
        child, port = processes.start_serving(
            name,
            [sys.executable, "-m", module, "--host", HOST, "--port", str(port), *arguments],
            env=self.env,
            log=self.state / "logs" / f"{name}.log",
            port_file=self.state / "run" / f"{name}.port",
        )
        self._own(child)
        return f"http://{HOST}:{port}"

    def _start(self, name: str, command: list[str]) -> Child:
        child = processes.start(name, command, env=self.env, log=self.state / "logs" / f"{name}.log", cwd=self.state)
        self._own(child)
        return child

    def _own(self, child: Child) -> None:
        self.children.append(child)
        self._closing.callback(child.stop)

    def _secret(self, name: str, make: Callable[[], str]) -> str:
        """A secret made once and kept in the state folder, readable by its owner alone."""
        path = self.state / "secrets.json"
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if name not in kept:
            kept[name] = make()
            write_private(path, json.dumps(kept))
        return kept[name]


def write_catalog(path: Path, content: str) -> None:
    """Writes a catalogue where none is, and beside it the JSON schema that its editor reads."""
    if not path.exists():
        path.write_text(content, encoding="utf-8")
        schema = json.dumps(Catalog.model_json_schema(), indent=2)
        path.with_name("catalog.schema.json").write_text(schema + "\n", encoding="utf-8")


def write_private(path: Path, content: str) -> None:
    """Writes a new file that only its owner can read, in place of one that may be there."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(content, encoding="utf-8")
    fresh.replace(path)


def shipped(name: str) -> Path:
    """A file that stands at the top of the project, and inside the installed package."""
    inside = Path(str(resources.files("clawbill_pipeline"))) / "deployed" / name
    return inside if inside.exists() else Path(__file__).parent.parent / name


def sandbox_call(base: str, path: str, body: dict[str, object], token: str = SANDBOX_KEY) -> dict[str, object]:
    """A call to a stand-in's control API; returns its answer."""
    headers = {"Authorization": f"Bearer {token}"}
    response = httpx.post(base + path, json=body, headers=headers, timeout=120, trust_env=False)
    response.raise_for_status()
    answer = response.json()
    assert isinstance(answer, dict)  # noqa: S101
    return answer


def answers(address: str) -> bool:
    """Whether something answers there with success."""
    try:
        return httpx.get(address, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False
