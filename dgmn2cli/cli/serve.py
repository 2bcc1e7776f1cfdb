"""`dgmn2 serve`: a network behind HTTP."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import NAME, PATH, NumberType, Session, model_option, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import require_installed

if TYPE_CHECKING:
    from dgmn2cli.inference.plan import Settings
    from dgmn2cli.serve.run import Listening


@click.command(context_settings={"default_map": {"max_pixels": 33_000_000}})
@model_option
@click.option(
    "--host",
    type=NAME,
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to listen on; with the default, only this machine can connect.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, metavar="N", help="Port; 0: any free one.")
@click.option(
    "--token-file",
    type=PATH,
    metavar="FILE",
    help="File with the token that clients must send; required unless only this machine can connect.",
)
@click.option(
    "--max-bytes", type=click.IntRange(1), default=32_000_000, metavar="N", help="Largest request body, in bytes."
)
@click.option(
    "--queue",
    type=click.IntRange(0, 1000),
    default=8,
    metavar="N",
    help="Requests that may wait; further ones are refused (503).",
)
@click.option(
    "--timeout", type=NumberType(0.1, 86400), default=120, metavar="SECONDS", help="How long a request may take."
)
@protocol.with_settings
@protocol.with_network
@pass_session
def serve(
    session: Session,
    model: str,
    host: str,
    port: int,
    token_file: Path | None,
    max_bytes: int,
    queue: int,
    timeout: float,
    settings: Settings,
    network: protocol.NetworkOptions,
) -> None:
    """Serve MODEL over HTTP: an API whose answers are the files of `infer`, and a page to drop images on.

    One image is computed at a time. Ctrl-C or SIGTERM ends it.

    Example: dgmn2 serve -m fpn-tiny, then open http://127.0.0.1:8000/ or
    curl -T street.jpg -X POST 'http://127.0.0.1:8000/v1/segment?save=ids' -o street_ids.png
    """
    protocol.refuse_offline(session, model, network.graph or network.load.checkpoint)
    require_installed("serve", "starlette", "uvicorn", "prometheus_client")
    from dgmn2cli.serve import request as asked
    from dgmn2cli.serve import run

    asked.require_metrics_folder()
    token = None if token_file is None else asked.read_token(token_file)
    request = asked.ServeRequest(host, port, token, max_bytes, queue, timeout)
    with asked.bind(request) as bound, TerminalObserver(session) as observer:
        segmenter = protocol.open_network(session, model, network, settings, observer)
        run.serve(segmenter, settings, request, bound, partial(_ready, session, segmenter.info.title))


def _ready(session: Session, title: str, listening: Listening) -> None:
    key = " (with the token)" if listening.token else ""
    render.emit(session, listening, lambda: Text(f"{title} at {listening.url}{key}"))
