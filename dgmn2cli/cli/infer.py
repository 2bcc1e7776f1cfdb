"""`dgmn2 infer`: segment images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import KINDS, PATH, NumberType, Session, gpus_option, model_option, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import DataError, printable

if TYPE_CHECKING:
    from dgmn2cli.inference.plan import Settings
    from dgmn2cli.inference.report import ImageResult, InferReport

SHOWN_CLASSES = 4
SHOWN_DOUBTS = 10


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@click.option(
    "-o",
    "--out",
    type=PATH,
    default="dgmn2-output",
    metavar="PATH",
    help="Folder, or .tar archive; with braces one archive for each that is read.",
)
@click.option(
    "--save",
    type=KINDS,
    default="ids,overlay",
    metavar="KINDS",
    help="Files to write: ids, color, overlay, labelids, conf, entropy, disagreement, probs, stats; comma-separated.",
)
@protocol.with_settings
@click.option(
    "--alpha", type=NumberType(0, 1), default=0.5, metavar="F", help="Opacity of the classes' colours in overlays."
)
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
@click.option("--resume", is_flag=True, help="Skip the images that an earlier run with the same settings finished.")
@gpus_option
@click.option("--ray", metavar="ADDRESS|local", help="Run on a Ray cluster, with --gpus N actors.")
@protocol.workers_option
@protocol.with_network
@pass_session
def infer(
    session: Session,
    images: tuple[str, ...],
    model: str,
    out: Path,
    save: tuple[str, ...],
    settings: Settings,
    alpha: float,
    overwrite: bool,
    resume: bool,
    gpus: int,
    ray: str | None,
    workers: int,
    network: protocol.NetworkOptions,
) -> None:
    """Segment images: files, folders, globs, .tar archives or @list.txt; masks and overlays go to the output folder.

    Beside them, results.jsonl has a line for each image, by which --resume skips what is done. Bad images are named at
    the end; the others are segmented.

    Kinds of files: ids (class ids, a palette PNG), color, overlay (on the image, with a legend), labelids (Cityscapes'
    own ids), conf (the probability of the predicted class, grey), entropy, disagreement (with the mirrored image),
    probs (of all classes, .npz), stats (shares of the classes, .json).
    """
    protocol.refuse_offline(session, model, network.graph or network.load.checkpoint)
    from dgmn2cli.distributed.group import launched_rank, launched_world
    from dgmn2cli.inference import prediction
    from dgmn2cli.inference.report import ImageResult
    from dgmn2cli.inference.run import InferRequest, run
    from dgmn2cli.ray import require_ray, run_on_ray

    prediction.check_outputs(save)
    request = InferRequest(
        images, str(out), save, alpha, settings, overwrite, resume, workers, network.load.device, gpus, network.threads,
        network.load.compiled,
    )  # fmt: skip
    if ray is not None:
        require_ray(ray)
    recipe = protocol.recipe_of(session, model, network, settings)
    several = gpus > 1 or ray is not None or launched_world() > 1

    def ready() -> None:
        if several:
            protocol.require_weights(session, recipe, network)

    with TerminalObserver(session, {ImageResult: _line}) as observer:
        how = observer, ready
        report = run(request, recipe, *how) if ray is None else run_on_ray(request, recipe, ray, *how)
    if launched_rank() > 0:  # of those that torchrun started the first one speaks
        return
    render.emit(session, report, lambda: _summary(report))
    if report.failed:
        raise DataError(
            f"{report.failed:,} of {report.done + report.failed:,} images could not be segmented",
            faults=[failure.why for failure in report.failures],
            hint="The others were." if report.done else "Nothing was segmented.",
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
    run, count = report.run, report.done
    earlier = f", {report.resumed:,} of them by an earlier run," if report.resumed else ""
    about = f"{count:,} image{'s' * (count != 1)}{earlier} in {report.seconds:.1f} s with {run.title}"
    many = f", {report.processes} processes" if report.processes > 1 else ""
    last = render.prose(f"{about} ({run.precision}, {run.form}) on {run.device_name}, {run.engine}{many}")
    gap = Text()
    return [] if not count else [gap, table, gap, doubts, gap, last] if count > 1 else [gap, table, gap, last]
