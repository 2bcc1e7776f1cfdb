"""`dgmn2 explain`: what a network attends to at a position of an image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import PATH, ParsedType, Session, model_option, pass_session
from dgmn2cli.cli.progress import TerminalObserver

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from dgmn2cli.inference.explain_files import ExplainedPosition, ExplainReport
    from dgmn2cli.inference.plan import Settings


def _parse_position(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"'{text[:60]}' is not X,Y in pixels, such as 1024,512") from None
    return x, y


@click.command()
@click.argument("image", type=PATH)
@click.option(
    "--at",
    "positions",
    type=ParsedType("position", _parse_position),
    multiple=True,
    required=True,
    metavar="X,Y",
    help="Pixel of the image, 0,0 being at the top left; may be given several times.",
)
@model_option
@click.option("-o", "--out", type=PATH, default="dgmn2-output", metavar="DIR", help="Folder for the drawings.")
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
@protocol.with_single_scale
@protocol.with_torch_network
@pass_session
def explain(
    session: Session,
    image: Path,
    positions: tuple[tuple[float, float], ...],
    model: str,
    out: Path,
    overwrite: bool,
    settings: Settings,
    network: protocol.NetworkOptions,
) -> None:
    """Show what MODEL attends to at positions of IMAGE: nine nodes of every head of every block, and their own nodes.

    A drawing (PNG and SVG) and all numbers (JSON) go to the output folder. The nodes are those that the network used,
    at a single scale, in the window whose centre is nearest to the position.

    Example: dgmn2 explain street.png --at 1024,512
    """
    protocol.refuse_offline(session, model, network.load.checkpoint)
    from dgmn2cli.inference import explain_files

    with TerminalObserver(session, {explain_files.ExplainedPosition: _line}) as observer:
        make = partial(protocol.open_network, session, model, network, settings, observer)
        report = explain_files.explain_image(
            make, image, positions, out, settings, overwrite=overwrite, observer=observer
        )
    render.emit(session, report, lambda: _table(report))


def _line(found: ExplainedPosition) -> Text:
    seen, at = found.window, f"{found.at[0]:g},{found.at[1]:g}"
    head = f"{at}: {found.predicted} ({100 * found.confidence:.1f} %) in window {seen.number} of {seen.count}"
    return render.lines(head, *(f"  {kind}: {path}" for kind, path in found.outputs.items()))


def _table(report: ExplainReport) -> list[Table | Text]:
    """How far each block looks, and how its weights are spread, at each position."""
    right = ("heads", "map", "reach", "largest weight")
    table = render.make_table("at", "stage", "block", *right, right=right)
    for block in report.blocks:
        x, y = block["x"], block["y"]
        nodes = [node for head in block["heads"] for node in head["nodes"]]
        reach = sum(((node[0] - x) ** 2 + (node[1] - y) ** 2) ** 0.5 * node[2] for node in nodes) / len(block["heads"])
        where, size = "{:g},{:g}".format(*block["at"]), "{}x{}".format(*block["map"])
        names = (where, str(block["stage"]), str(block["block"]), str(len(block["heads"])))
        table.add_row(*names, size, f"{reach:.1f} px", f"{max(node[2] for node in nodes):.2f}")
    run = report.run
    about = f"{run.title} ({run.dtype}, {run.form}) on {run.device_name}, op backend {run.backend}; {report.protocol}"
    return [table, render.prose("Reach: the mean distance of the nodes, by weight.", about)]
