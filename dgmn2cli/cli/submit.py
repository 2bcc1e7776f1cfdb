"""`dgmn2 submit`: a submission to the Cityscapes test server, made and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import OUTPUT_FILE, PATH, Session, model_argument, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.files import check_file, check_folder

if TYPE_CHECKING:
    from dgmn2cli.evaluate.submission import Expected, SubmissionReport, ZipReport
    from dgmn2cli.inference.plan import Settings


@click.command()
@model_argument
@protocol.with_data("test")
@protocol.with_settings
@click.option("-o", "--out", type=PATH, default="dgmn2-submission", metavar="DIR", help="Folder for the labelId files.")
@click.option(
    "--zip",
    "target",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="The zip to write.  [default: beside the folder, with its name]",
)
@click.option(
    "--from", "kept", type=PATH, metavar="DIR", help="Take the predictions kept in this folder; no model runs."
)
@click.option("--validate", type=PATH, metavar="ZIP", help="Only check this zip; every fault is named.")
@protocol.workers_option
@protocol.with_network
@pass_session
def submit(
    session: Session,
    model: str,
    data: protocol.DataOptions,
    settings: Settings,
    out: Path,
    target: Path | None,
    kept: Path | None,
    validate: Path | None,
    workers: int,
    network: protocol.NetworkOptions,
) -> None:
    """Segment the test split with MODEL and zip the labelId files, as the Cityscapes server wants them.

    --validate checks a zip: against the images under --data-root where they are, else against the official numbers.
    """
    if validate is not None or kept is not None:
        protocol.refuse_network("--validate only looks at a zip" if kept is None else "--from needs no model")
    else:
        protocol.refuse_offline(session, model, network.graph or network.load.checkpoint)
    from dgmn2cli.evaluate import submission
    from dgmn2cli.runtime import set_threads

    with TerminalObserver(session) as observer:
        if validate is not None:
            checked = submission.validate_zip(validate, _expected(data), observer)
            render.emit(session, checked, lambda: render.record_table(_rows(checked)))
            submission.require_valid(checked)
            return
        folder = kept or out
        target = target or folder.parent / f"{os.path.basename(os.path.realpath(folder))}.zip"
        if kept is None:
            check_folder(folder)
        if not target.is_dir():  # which `make_submission` says
            check_file(target)
        recipe = protocol.recipe_of(session, model, network, settings) if kept is None else None
        images = submission.open_test(data.data_root, data.split, observer)
        set_threads(network.threads)
        segmenter = recipe(device=network.load.device, observer=observer) if recipe is not None else None
        report = submission.make_submission(
            segmenter, images, settings, folder, target, workers=workers, observer=observer
        )
    render.emit(session, report, lambda: _made(report))
    submission.require_valid(report.check)


def _expected(data: protocol.DataOptions) -> Expected:
    from dgmn2cli.evaluate import submission

    named = click.get_current_context().get_parameter_source("data_root") is not click.core.ParameterSource.DEFAULT
    if named or (data.data_root / "leftImg8bit" / data.split).is_dir():
        return submission.expected_of(submission.open_test(data.data_root, data.split))
    return submission.OFFICIAL


def _made(report: SubmissionReport) -> Table:
    run = report.run
    source = (
        f"{run.title} on {run.device_name}, {run.engine}, {report.protocol}"
        if run
        else f"predictions kept in {report.folder}"
    )
    rows = [("made from", source), ("label ids", str(report.folder)), ("seconds", f"{report.seconds:.1f}")]
    return render.record_table([*rows, *_rows(report.check)])


def _rows(report: ZipReport) -> list[tuple[str, str]]:
    faults = f"{len(report.faults)} faults" if report.faults else "no faults"
    against = f"{report.files} of {report.expected} files, {faults}, checked against {report.against}"
    return [("check", against), ("zip", f"{report.path} ({render.megabytes(report.bytes)})")]
