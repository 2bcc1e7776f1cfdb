"""Owns `dgmn2 submit`: a submission to the Cityscapes test server, made and checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from dgmn2cli.cli import render
from dgmn2cli.cli.options import PATH, Session, model_argument, pass_session
from dgmn2cli.cli.protocol import data_options, fetched, network_of, network_options, protocol_options, settings_of
from dgmn2cli.files import check_file, check_folder

if TYPE_CHECKING:
    from dgmn2cli.evaluate.submission import SubmissionReport
    from dgmn2cli.evaluate.submission_check import ZipReport


@click.command()
@model_argument
@data_options("test")
@protocol_options
@click.option(
    "-o",
    "--out",
    type=PATH,
    default="dgmn2-submission",
    show_default=True,
    metavar="DIR",
    help="Folder for the labelId files.",
)
@click.option("--zip", "target", type=PATH, metavar="FILE", help="The zip to write.  [default: the folder's name.zip]")
@click.option("--from", "kept", type=PATH, metavar="DIR", help="Take predictions kept here; no model runs.")
@click.option("--validate", type=PATH, metavar="ZIP", help="Only check this zip; every fault is named.")
@network_options
@pass_session
def submit(session: Session, model: str, **options: Any) -> None:
    """Segment the test split with MODEL and zip the labelId files, as the Cityscapes server wants them.

    --validate checks a zip: against the pictures under --data-root where they are, else against the official numbers.
    """
    from dgmn2cli.evaluate import submission_check

    if options["validate"] is not None:
        checked = _validate(session, options)
        render.emit(session, checked, lambda: render.record_table(_rows(checked)))
    else:
        report = _make(session, model, options)
        checked = report.check
        render.emit(session, report, lambda: _made(report))
    submission_check.require_valid(checked)


def _validate(session: Session, options: dict[str, Any]) -> ZipReport:
    from dgmn2cli.evaluate import submission, submission_check

    root, split, source = options["data_root"], options["split"], click.get_current_context().get_parameter_source
    expected = submission_check.OFFICIAL
    if source("data_root") is not click.core.ParameterSource.DEFAULT or (root / "leftImg8bit" / split).is_dir():
        expected = submission_check.expected_of(submission.open_test(root, split))
    with render.progress(session, "checking the zip") as advance:
        return submission_check.validate_zip(options["validate"], expected, lambda total: advance(total=total))


def _make(session: Session, model: str, options: dict[str, Any]) -> SubmissionReport:
    from dgmn2cli import runtime
    from dgmn2cli.evaluate import submission

    kept, folder, settings = options["kept"], options["kept"] or options["out"], settings_of(options)
    target = options["target"] or folder.parent / f"{os.path.basename(os.path.realpath(folder))}.zip"
    if kept is None:
        check_folder(folder)
    if not target.is_dir():  # which `make_submission` says
        check_file(target)
    network = network_of(session, model, options) if kept is None else None
    with render.progress(session, "reading the pictures") as advance:
        data = submission.open_test(options["data_root"], options["split"], lambda total: advance(total=total))
    runtime.set_threads(options["threads"])
    segmenter = fetched(session, network)(options["device"]) if network is not None else None
    with render.progress(session, "segmenting", total=len(data)) as advance:
        return submission.make_submission(
            segmenter, data, settings, folder, target, workers=options["workers"], part=advance
        )


def _made(report: SubmissionReport) -> Table:
    run = report.run
    source = f"{run.model} on {run.device_name}, {report.protocol}" if run else f"predictions kept in {report.folder}"
    rows = [("made from", source), ("label ids", str(report.folder)), ("seconds", f"{report.seconds:.1f}")]
    return render.record_table([*rows, *_rows(report.check)])


def _rows(report: ZipReport) -> list[tuple[str, str]]:
    faults = f"{len(report.faults)} faults" if report.faults else "no faults"
    against = f"{report.files} of {report.expected} files, {faults}, checked against {report.against}"
    return [("check", against), ("zip", f"{report.path} ({render.megabytes(report.bytes)})")]
