"""`dgmn2 export`: a network as a graph for other runtimes, with all that is needed to run it there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import (
    PATH,
    ParsedType,
    Session,
    model_argument,
    model_typed,
    pass_session,
    threads_option,
    typed,
)
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import atomic_write, to_json
from dgmn2cli.zoo import short_name

if TYPE_CHECKING:
    from dgmn2cli.export.folder import ExportReport


def _parse_batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= LARGEST_BATCH:
        raise ValueError(f"'{text[:60]}' is neither 'dynamic' nor a number from 1 to {LARGEST_BATCH}")
    return int(text)


LARGEST_BATCH = 1024
BATCH = ParsedType("batch", _parse_batch)


@click.command(epilog="Example: dgmn2 export setr_pup-tiny -o model && python model/run.py street.jpg -o masks")
@model_argument
@click.option("-o", "--out", type=PATH, metavar="DIR", help="Folder, new or empty.  [default: MODEL-FORMAT]")
@click.option("--checkpoint", type=PATH, metavar="FILE", help="Weights; else the published ones.")
@click.option("--ema", is_flag=True, help="Take the moving average of the weights (EMA) that the checkpoint holds.")
@click.option(
    "--format", "form", type=click.Choice(["onnx", "pt2"]), default="onnx", help="ONNX, or torch.export's program."
)
@click.option(
    "--half", is_flag=True, help="Store and compute in float16; sample coordinates, softmax and norms stay float32."
)
@click.option(
    "--window",
    type=click.IntRange(33, 8192),
    metavar="N",
    help="Side of a window, in pixels.  [default: the model's, 769]",
)
@click.option(
    "--batch",
    type=BATCH,
    default="dynamic",
    metavar="dynamic|N",
    help="Windows that the graph takes at a time; dynamic: any number.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.option("--describe", type=PATH, metavar="GRAPH", help="Only draft the protocol.json beside any ONNX file.")
@threads_option
@pass_session
def export(
    session: Session,
    model: str,
    out: Path | None,
    checkpoint: Path | None,
    ema: bool,
    form: str,
    half: bool,
    window: int | None,
    batch: int | None,
    overwrite: bool,
    describe: Path | None,
    threads: int | None,
) -> None:
    """Export MODEL as a graph for ONNX Runtime, OpenVINO, TensorRT or torch, with the test procedure around it.

    The folder gets the graph, its protocol.json, and run.py, which segments images without torch. The graph is compared
    with the network first; if they do not agree, nothing is written and the exit code is 1.

    --describe drafts the protocol.json of somebody else's graph; what the graph does not say is guessed, and said.
    """
    if describe is not None:
        other = ("out", "checkpoint", "ema", "form", "half", "window", "batch", "threads")
        if given := ["MODEL"] * model_typed() + [f"--{name}" for name in other if typed(name)]:
            given = [option.replace("--form", "--format") for option in given]
            raise click.UsageError(f"{', '.join(given)} cannot be used with --describe GRAPH: nothing is exported")
        _describe(session, describe, overwrite)
        return
    protocol.refuse_offline(session, model, checkpoint)
    from dgmn2cli import runtime
    from dgmn2cli.export.folder import export_folder, require_packages, require_place
    from dgmn2cli.inference import load
    from dgmn2cli.inference.settings import LoadOptions

    runtime.set_threads(threads)
    recipe = load.resolve(model, zoo=session.zoo())
    folder = out or Path(f"{short_name(recipe.name)}-{form}")
    require_packages(form)  # now, not after a download
    require_place(folder, overwrite)
    cache = session.cache_dir() if checkpoint is None else None
    how = LoadOptions(checkpoint, "cpu", exact_algebra=False, ema=ema, cache=cache, offline=session.offline)
    with TerminalObserver(session) as observer:
        segmenter = replace(recipe, options=how)(observer=observer)
        report = export_folder(
            segmenter, folder, form, half=half, window=window, batch=batch, overwrite=overwrite, observer=observer
        )
    render.emit(session, report, lambda: _summary(report, segmenter.info.title))


def _describe(session: Session, graph: Path, overwrite: bool) -> None:
    """Drafts the protocol of a graph; what was guessed is said on stderr, the file's path on stdout."""
    from dgmn2cli.inference import describe_graph

    draft = describe_graph.describe(graph)
    if draft.path.exists() and not overwrite:
        hint = "Edit it, or add --overwrite."
        raise ConfigError("the graph has a protocol already", where=draft.path, why="it may be yours", hint=hint)
    atomic_write(draft.path, to_json(draft.document) + "\n")
    for guess in draft.guesses:
        render.notice(session, f"guessed: {guess}")
    render.emit(session, draft, lambda: [render.lines(str(draft.path))])


def _summary(report: ExportReport, title: str) -> list[RenderableType]:
    parity, protocol = report.parity, report.protocol
    figures = ("largest", "mean", "same class")
    table = render.make_table("compared on", "size", *figures, right=figures)
    for found in (*parity.windows, *parity.images):
        size = f"{found.size[0]}x{found.size[1]}"
        row = f"{found.largest:.1e}", f"{found.mean:.1e}", f"{100 * found.agreement:.3f} %"
        table.add_row(found.what + (", whole procedure" if found.procedure else ""), size, *row)
    network, graph = parity.window_seconds
    holds = f"{protocol.exporter['dtype']}, {report.files[protocol.graph] / 1e6:.1f} MB, sha256 {protocol.graph_sha256}"
    threads = f"{parity.threads} thread{'s' * (parity.threads != 1)}"
    times = f"network {network:.2f} s, graph {graph:.2f} s on {threads}; all in {report.seconds:.0f} s"
    about = f"{title} as {protocol.graph}: {holds}"
    facts = render.prose(about, f"one window of {protocol.inference.window}: {times}")
    return [table, "", facts, render.lines(str(report.folder))]
