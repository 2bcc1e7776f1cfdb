"""`dgmn2 infer`: segment images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import PATH, NumberType, Session, model_option, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import DataError, printable

if TYPE_CHECKING:
    from dgmn2cli.inference.files import ImageResult, InferReport
    from dgmn2cli.inference.plan import Settings

SHOWN_CLASSES = 4
SHOWN_DOUBTS = 10


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@click.option("-o", "--out", type=PATH, default="dgmn2-output", help="Folder.")
@click.option(
    "--save",
    default="ids,overlay",
    metavar="KINDS",
    help="Files to write: ids, color, overlay, labelids, conf, entropy, disagreement, probs, stats; comma-separated.",
)
@protocol.with_settings
@click.option("--alpha", type=NumberType(0, 1), default=0.5, help="Strength of the overlay.")
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
@protocol.workers_option
@protocol.with_network
@pass_session
def infer(
    session: Session,
    images: tuple[str, ...],
    model: str,
    out: Path,
    save: str,
    settings: Settings,
    alpha: float,
    overwrite: bool,
    workers: int,
    network: protocol.NetworkOptions,
) -> None:
    """Segment images: files, folders, globs or @list.txt; masks and overlays go to the output folder."""
    from dgmn2cli import runtime
    from dgmn2cli.inference import files, prediction

    kinds = list(dict.fromkeys(kind.strip() for kind in save.split(",") if kind.strip()))
    prediction.check_outputs(kinds)
    with TerminalObserver(session, {files.ImageResult: _line}) as observer:
        found = files.find_images(images, observer)
        files.check_targets(found, out, kinds, overwrite)
        runtime.set_threads(network.threads)
        recipe = protocol.recipe_of(session, model, network)
        make = protocol.loader(session, recipe, network, settings)
        segmenter = make(device=network.device, observer=observer)
        report = files.predict_files(
            segmenter, found, out, kinds, settings, alpha=alpha, workers=workers, observer=observer
        )
    render.emit(session, report, lambda: _summary(report))
    if report.failures:
        raise DataError(
            f"{len(report.failures)} of {len(found)} images could not be segmented",
            faults=[failure.why for failure in report.failures],
            hint="The others were." if report.images else "Nothing was segmented.",
        )


def _line(result: ImageResult) -> Text:
    shares = ", ".join(f"{share.name} {100 * share.share:.1f} %" for share in result.classes[:SHOWN_CLASSES])
    more = len(result.classes) - SHOWN_CLASSES
    plural = "s" if result.windows != 1 else ""
    head = f"{result.path}  {result.width}x{result.height}, {result.windows} window{plural}, {result.seconds:.1f} s"
    if memory := result.memory:
        head += f", at most {memory.highest / 1e9:.2f} GB in use ({memory.predicted / 1e9:.2f} GB predicted)"
    files = [f"  {kind}: {path}" for kind, path in result.outputs.items()]
    return render.lines(f"{head}: {shares}{f' and {more} more' if more > 0 else ''}", *files)


def _summary(report: InferReport) -> list[Table | Text]:
    table = render.make_table("class", "pixels", "share", right=("pixels", "share"))
    for share in report.classes:
        table.add_row(share.name, f"{share.pixels:,}", f"{100 * share.share:.1f} %")
    doubts = render.make_table("most doubtful image", "doubt", right=("doubt",))
    doubt_of = {result.path: result.doubt for result in report.images}
    for path in report.by_doubt[:SHOWN_DOUBTS]:
        doubts.add_row(Text(printable(path)), f"{100 * doubt_of[path]:.1f} %")
    run, count = report.run, len(report.images)
    about = (
        f"{count} image{'s' * (count != 1)} in {report.seconds:.1f} s with {run.model} ({run.precision}, {run.form})"
    )
    last = render.lines(f"{about} on {run.device_name}, {run.engine}")
    return [] if not count else [table, doubts, last] if count > 1 else [table, last]
