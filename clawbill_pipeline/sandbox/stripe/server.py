"""Starts the sandbox: store, clock, delivery and the HTTP server. Its calls are in ``app`` and ``control``."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from clawbill_pipeline.sandbox.stripe.app import EFFECTS, Api, failed, not_found
from clawbill_pipeline.sandbox.stripe.clock import Clock
from clawbill_pipeline.sandbox.stripe.control import Control
from clawbill_pipeline.sandbox.stripe.delivery import Delivery
from clawbill_pipeline.sandbox.stripe.store import Store

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.5


def serve(host: str, port: int, state: Path, now: int | None = None, port_file: Path | None = None) -> None:
    """Serves until SIGINT or SIGTERM. ``port`` 0 takes a free one.

    ``now`` sets the clock (unix seconds; on a folder with a later clock, that one stays). ``port_file`` gets the port
    as text once connections are accepted. Raises SystemExit where the folder is in use or the port is taken.
    """
    store = Store(state)
    try:
        listener = _listen(host, port)
        config = uvicorn.Config(
            application(store, Clock(store, EFFECTS, now)),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        # uvicorn's loop (uvloop where it is installed) takes twice the requests of asyncio's own.
        with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_Server(config, listener, port_file).serve(sockets=[listener]))
    finally:
        store.close()


def application(store: Store, clock: Clock) -> Starlette:
    """The ASGI application over ``store``; its lifespan runs the delivery worker and what the wall clock makes due."""
    api = Api(store, clock)
    delivery = Delivery(store, clock)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(delivery.run()), asyncio.create_task(_follow(clock))]
        yield
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    return Starlette(
        routes=[*api.routes(), *Control(api, delivery).routes()],
        lifespan=lifespan,
        exception_handlers={404: not_found, 405: not_found, 500: failed},
    )


async def _follow(clock: Clock) -> None:
    while True:
        if clock.follows_the_wall:
            try:
                await clock.catch_up()
            except Exception:  # noqa: BLE001 (one effect that fails must not end all later ones)
                _log.exception("A due effect failed; it is tried again.")
        await asyncio.sleep(_TICK_SECONDS)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listener: socket.socket, port_file: Path | None) -> None:
        super().__init__(config)
        self._listener = listener
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._port_file is not None and self.started:
            # Renamed into place, so that nobody reads half a number.
            part = self._port_file.with_name(self._port_file.name + ".part")
            part.write_text(str(self._listener.getsockname()[1]))
            part.replace(self._port_file)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SystemExit(f"{host}:{port}: {error.strerror}. Choose another --port, or 0 for a free one") from None
    return listener
