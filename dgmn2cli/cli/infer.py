"""Owns `dgmn2 infer`: segment pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli import render
from dgmn2cli.cli.options import PATH, NumberType, Session, model_option, pass_session, run_options
from dgmn2cli.cli.protocol import protocol_options, settings_of
from dgmn2cli.cli.weights import ensure_weights
from dgmn2cli.errors import DataError, printable

if TYPE_CHECKING:
    from dgmn2cli.inference.plan import Plan

SHOWN_CLASSES = 4


@click.command()
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@model_option
@click.option("--checkpoint", type=PATH, metavar="FILE", help="Weights; else the published ones.")
@click.option("-o", "--out", type=PATH, default="dgmn2-output", show_default=True, help="Folder.")
@click.option(
    "--save",
    default="ids,overlay",
    show_default=True,
    metavar="KINDS",
    help="Files to write: ids, color, overlay, labelids, conf, probs, stats; comma-separated.",
)
@protocol_options
@click.option("--alpha", type=NumberType(0, 1), default=0.5, show_default=True, help="Strength of the overlay.")
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
@click.option("--published-order", is_flag=True, help="Run the operations as published, not their exact equal.")
@run_options
@pass_session
def infer(session: Session, pictures: tuple[str, ...], model: str, **options: Any) -> None:
    """Segment pictures: files, folders, globs or @list.txt; masks and overlays go to the output folder."""
    from dgmn2cli import runtime
    from dgmn2cli.inference import files as predict
    from dgmn2cli.inference.load import assemble, resolve
    from dgmn2cli.inference.prediction import check_kinds

    kinds = list(dict.fromkeys(kind.strip() for kind in options["save"].split(",") if kind.strip()))
    check_kinds(kinds)
    found = predict.find_pictures(pictures)
    predict.check_targets(found, options["out"], kinds, options["overwrite"])
    runtime.set_threads(options["threads"])
    recipe = resolve(model, zoo=session.zoo())
    if options["checkpoint"] is None and recipe.entry is not None:
        ensure_weights(session, recipe.entry)
    segmenter = assemble(
        recipe,
        options["checkpoint"],
        device=options["device"],
        dtype=options["dtype"],
        backend=options["backend"],
        exact_algebra=not options["published_order"],
        compiled=options["compiled"],
        cache=session.cache_dir() if options["checkpoint"] is None else None,
    )
    with render.progress(session, f"{len(found)} pictures", total=0) as advance:
        planned = 0

        def plan(picture: predict.Picture, way: Plan) -> None:
            nonlocal planned
            planned += way.windows
            advance(0, total=planned)
            if way.peak is not None:
                render.notice(session, f"{picture.path}: {way}")

        def show(result: predict.PictureResult) -> None:
            if not session.json:
                render.print_to(render.out(session), _line(result))

        report = predict.predict_files(
            segmenter,
            found,
            options["out"],
            kinds,
            settings_of(options),
            alpha=options["alpha"],
            on_plan=plan,
            on_window=advance,
            on_picture=show,
        )
    render.emit(session, report, lambda: _summary(report))
    if report.failures:
        done = "The others were segmented." if report.pictures else "Nothing was segmented."
        raise DataError(
            f"{len(report.failures)} of {len(found)} pictures could not be read",
            faults=[failure.why for failure in report.failures],
            hint=done,
        )


def _line(result: Any) -> Text:
    shares = ", ".join(f"{share.name} {100 * share.share:.1f} %" for share in result.classes[:SHOWN_CLASSES])
    more = len(result.classes) - SHOWN_CLASSES
    plural = "s" if result.windows != 1 else ""
    head = f"{result.path}  {result.width}x{result.height}, {result.windows} window{plural}, {result.seconds:.1f} s"
    files = "".join(f"\n  {kind}: {printable(path)}" for kind, path in result.outputs.items())
    memory = result.memory
    if memory is not None:
        head += f", at most {memory.highest / 1e9:.2f} GB in use ({memory.predicted / 1e9:.2f} GB predicted)"
    return Text(printable(f"{head}: {shares}{f' and {more} more' if more > 0 else ''}") + files)


def _summary(report: Any) -> list[Table | Text]:
    table = render.make_table("class", "pixels", "share", right=("pixels", "share"))
    for share in report.classes:
        table.add_row(printable(share.name), f"{share.pixels:,}", f"{100 * share.share:.1f} %")
    run, count = report.run, len(report.pictures)
    about = f"{count} picture{'s' * (count != 1)} in {report.seconds:.1f} s with {run.model} ({run.dtype}, {run.form})"
    return [table, Text(f"{about} on {run.device_name}, op backend {run.backend}")] if count else []
