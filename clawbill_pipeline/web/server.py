"""Serves the app with uvicorn: on a given or a free port, announced in a file once it answers. Nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn
from pydantic import SecretStr
from uvicorn.config import LOGGING_CONFIG

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.logs import log_as_json
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.health import Ready


def serve(
    host: str,
    port: int,
    settings: Settings,
    *,
    live: bool,
    port_file: Path | None = None,
    ready: Ready | None = None,
    portal_token: SecretStr | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; open requests are finished first. Port 0 is a free one.

    The port is written to ``port_file`` once connections are accepted. Raises OSError where the port is taken, and
    SettingsError without a database URL.
    """
    app = create_app(settings, Ledger(settings.need_database()), live=live, ready=ready, portal_token=portal_token)
    is_json = log_as_json(settings, "", "clawbill_pipeline", "uvicorn.error")
    config = uvicorn.Config(
        app,
        log_config=None if is_json else LOGGING_CONFIG,
        # No access log: addresses may hold secrets. No proxy headers: reports trust where a connection comes from.
        access_log=False,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        limit_concurrency=2_000,
        timeout_graceful_shutdown=15,
    )
    with listening(host, port) as listener:
        _Announcing(config, listener, port_file).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port``; raises OSError where that is taken."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=2048)


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listener: socket.socket, port_file: Path | None) -> None:
        super().__init__(config)
        self._listener = listener
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._port_file is not None:
            fresh = self._port_file.with_suffix(".new")
            fresh.write_text(f"{self._listener.getsockname()[1]}\n", encoding="ascii")
            fresh.replace(self._port_file)
