"""The rating server's process: state, catalogue, log and the HTTP server. What it answers is in ``app``."""

from __future__ import annotations

import json
import logging
import signal
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import uvicorn

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.sandbox.openclaw.app import Clock, application
from clawbill_pipeline.sandbox.openclaw.rates import Rates
from clawbill_pipeline.sandbox.openclaw.standing import Standing

_LOGGERS = ("clawbill_pipeline.sandbox.openclaw", "uvicorn.error")


def serve(
    host: str,
    port: int,
    state: Path,
    catalog_path: Path,
    token: str,
    port_file: Path | None = None,
    *,
    now: int | None = None,
    access_log: bool = False,
) -> None:
    """Serves until SIGINT or SIGTERM; open requests are finished first. ``port`` 0 takes a free one. Main thread only.

    ``now`` sets the clock (unix seconds). ``port_file`` gets the port as text once connections are accepted. Raises
    SystemExit without a token, with a catalogue that can't be used, or where the port is taken.
    """
    if not token:
        raise SystemExit("no token: set OPENCLAW_TOKEN to the secret that callers must show")
    _log_as_json()
    try:
        rates = Rates(catalog_path)
    except CatalogError as error:
        raise SystemExit(str(error)) from None
    # uvicorn finishes its requests and raises the signal again: without a handler it would kill what comes after.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _leave)
    with _listen(host, port) as listener:
        standing = Standing(state)
        try:
            app = application(rates, standing, Clock(now), token, access_log=access_log)
            # uvicorn's own log would show whole addresses; no proxy is trusted to say where a call comes from.
            config = uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=2_000,
                timeout_graceful_shutdown=5,
            )
            _Server(config, listener, port_file).run(sockets=[listener])
        finally:
            standing.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listener: socket.socket, port_file: Path | None) -> None:
        super().__init__(config)
        self._listener = listener
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._port_file is not None and self.started:
            # Renamed into place, so that nobody reads half a number.
            fresh = self._port_file.with_name(self._port_file.name + ".new")
            fresh.write_text(f"{self._listener.getsockname()[1]}\n", encoding="ascii")
            fresh.replace(self._port_file)


def _leave(signum: int, frame: object) -> NoReturn:
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SystemExit(f"{host}:{port}: {error.strerror}. Choose another --port, or 0 for a free one") from None


class _JsonLines(logging.Formatter):
    """One JSON object a line; what a record says in ``fields`` becomes keys of its own."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
