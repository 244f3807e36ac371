"""``python -m clawbill_pipeline.sandbox.stripe``: the sandbox as a process of its own."""

from __future__ import annotations

from pathlib import Path

import click

from clawbill_pipeline.sandbox.stripe.server import serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), required=True, help="0 takes a free port.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for its state.")
@click.option("--now", type=int, help="Unix seconds the clock is set to; without it, it follows the wall clock.")
@click.option(
    "--port-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Gets the port as text once connections are accepted.",
)
def main(host: str, port: int, state: Path, now: int | None, port_file: Path | None) -> None:
    """A stand-in for Stripe's billing API that keeps Stripe's rules."""
    serve(host, port, state, now, port_file)


if __name__ == "__main__":
    main(prog_name="python -m clawbill_pipeline.sandbox.stripe")
