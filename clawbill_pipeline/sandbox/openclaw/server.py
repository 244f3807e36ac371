"""The rating server's process: state, catalogue, log and the HTTP server. What it answers is in ``app``."""

from __future__ import annotations

import logging
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.logs import JsonLines
from clawbill_pipeline.processes import end_with_parent
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
    workers: int = 1,
    now: int | None = None,
    access_log: bool = False,
) -> None:
    """Serves until SIGINT or SIGTERM; open requests are finished first. ``port`` 0 takes a free one. Main thread only.

    ``workers`` processes share the port; one that ends by itself is replaced, and SIGHUP replaces all, one after the
    other. ``now`` sets the clock (unix seconds), which calls can then move; that takes a single process. ``port_file``
    gets the port as text once connections are accepted. Raises SystemExit without a token, with a catalogue that can't
    be used, or where the port is taken.
    """
    if not token:
        raise SystemExit("no token: set OPENCLAW_TOKEN to the secret that callers must show")
    if workers > 1 and now is not None:
        raise SystemExit("a clock that is set is one process's; leave out --now, or --workers")
    _log_as_json(token)
    try:
        Rates(catalog_path)
    except CatalogError as error:
        raise SystemExit(str(error)) from None
    Standing(state).close()  # one process makes the file
    # uvicorn finishes its requests and raises the signal again: without a handler it would kill what comes after.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _leave)
    with _listen(host, port) as listener:
        # uvicorn's own log would show whole addresses; no proxy is trusted to say where a call comes from.
        config = uvicorn.Config(
            _Application(state, catalog_path, token, now, access_log, shared=workers > 1),
            factory=True,
            workers=workers,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=2_000,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            # On a busy machine a worker takes its time to start, and is not hung.
            timeout_worker_healthcheck=30,
        )
        if workers > 1:
            _Workers(config, listener, port_file).run()
        else:
            _Server(config, listener, port_file).run(sockets=[listener])


@dataclass(frozen=True)
class _Application:
    """Makes the application in the process that serves it; goes there as a value, so that the token is in no list."""

    state: Path
    catalog: Path
    token: str = field(repr=False)
    now: int | None
    access_log: bool
    shared: bool

    def __call__(self) -> Starlette:
        if self.shared:
            _log_as_json(self.token)
            end_with_parent()
        standing = Standing(self.state)
        return application(Rates(self.catalog), standing, Clock(self.now), self.token, access_log=self.access_log)


class _Server(uvicorn.Server):
    """One process."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, port_file: Path | None) -> None:
        super().__init__(config)
        self._listener = listener
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            _tell_port(self._listener, self._port_file)


class _Workers(Multiprocess):
    """Several processes on one port, and this one, which watches them."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, port_file: Path | None) -> None:
        super().__init__(config, sockets=[listener])
        self._port_file = port_file

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(60, self.should_exit) for process in self.processes):
            _tell_port(self.sockets[0], self._port_file)


def _tell_port(listener: socket.socket, port_file: Path | None) -> None:
    if port_file is not None:
        # Renamed into place, so that nobody reads half a number.
        fresh = port_file.with_name(port_file.name + ".new")
        fresh.write_text(f"{listener.getsockname()[1]}\n", encoding="ascii")
        fresh.replace(port_file)


def _leave(signum: int, frame: object) -> NoReturn:
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SystemExit(f"{host}:{port}: {error.strerror}. Choose another --port, or 0 for a free one") from None


def _log_as_json(token: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines([token]))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
