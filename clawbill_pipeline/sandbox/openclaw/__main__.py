"""``python -m clawbill_pipeline.sandbox.openclaw``: the rating server as a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import click

from clawbill_pipeline.sandbox.openclaw.server import serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), required=True, help="0 takes a free port.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for its state.")
@click.option("--catalog", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the rates are.")
@click.option("--now", type=int, help="Unix seconds the clock is set to; without it, it follows the wall clock.")
@click.option(
    "--port-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Gets the port as text once connections are accepted.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on the port.")
@click.option("--access-log", is_flag=True, help="Log every request, not only those that failed.")
def main(
    host: str,
    port: int,
    state: Path,
    catalog: Path,
    now: int | None,
    port_file: Path | None,
    workers: int,
    access_log: bool,
) -> None:
    """An OpenClaw rating server. Callers must show the token of the environment variable OPENCLAW_TOKEN."""
    token = os.environ.get("OPENCLAW_TOKEN", "")
    serve(host, port, state, catalog, token, port_file, workers=workers, now=now, access_log=access_log)


if __name__ == "__main__":
    main(prog_name="python -m clawbill_pipeline.sandbox.openclaw")
