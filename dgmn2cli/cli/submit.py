"""Owns `dgmn2 submit`: a submission to the Cityscapes test server, made and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from dgmn2cli.cli import render
from dgmn2cli.cli.options import Session, model_argument, pass_session
from dgmn2cli.cli.protocol import data_options, network_of, network_options, protocol_options, settings_of

_PATH = click.Path(path_type=Path)


@click.command()
@model_argument
@data_options("test")
@protocol_options
@click.option(
    "-o", "--out", type=_PATH, default="dgmn2-submission", show_default=True, metavar="DIR",
    help="Folder for the labelId files.",
)  # fmt: skip
@click.option("--zip", "target", type=_PATH, metavar="FILE", help="The zip to write.  [default: the folder's name.zip]")
@click.option("--from", "kept", type=_PATH, metavar="DIR", help="Take predictions kept here; no model runs.")
@click.option("--validate", type=_PATH, metavar="ZIP", help="Only check this zip; every fault is named.")
@network_options
@pass_session
def submit(session: Session, model: str, **options: Any) -> None:
    """Segment the test split with MODEL and zip the labelId files, as the Cityscapes server wants them.

    --validate checks a zip: against the pictures under --data-root where they are, else against the official numbers.
    """
    from dgmn2cli import runtime, submission

    context, root = click.get_current_context(), options["data_root"]
    with render.progress(session, "reading the pictures") as advance:
        if options["validate"] is not None:
            named = context.get_parameter_source("data_root") is not click.core.ParameterSource.DEFAULT
            expected = submission.OFFICIAL
            if named or root.is_dir():
                expected = submission.expected_of(submission.open_test(root, options["split"]))
            checked = submission.validate_zip(options["validate"], expected, lambda total: advance(total=total))
        else:
            load = network_of(session, model, options)
            if options["kept"] is None:
                load.subject()  # its weights must be there before the pictures are read
            data = submission.open_test(root, options["split"], step=lambda total: advance(total=total))
            runtime.set_threads(options["threads"])
            folder = options["kept"] or options["out"]
            target = options["target"] or folder.with_name(folder.name + ".zip")
            advance(completed=0, total=len(data), description="segmenting")
            segmenter = load(options["device"]) if options["kept"] is None else None
            report = submission.make_submission(
                segmenter, data, settings_of(options), folder, target, workers=options["workers"], part=advance
            )
            checked = report.check
    if options["validate"] is None:
        render.emit(session, report, lambda: _made(report))
    else:
        render.emit(session, checked, lambda: _checked(checked))
    submission.require_valid(checked)


def _made(report: Any) -> Table:
    run = report.run
    source = f"{run.model} on {run.device_name}, {report.protocol}" if run else f"predictions kept in {report.folder}"
    rows = [("made from", source), ("label ids", str(report.folder)), ("seconds", f"{report.seconds:.1f}")]
    return render.record_table([*rows, *_rows(report.check)])


def _checked(report: Any) -> Table:
    return render.record_table(_rows(report))


def _rows(report: Any) -> list[tuple[str, str]]:
    faults = f"{len(report.faults)} faults" if report.faults else "no faults"
    against = f"{report.files} of {report.expected} files, {faults}, checked against {report.against}"
    return [("check", against), ("zip", f"{report.path} ({render.megabytes(report.bytes)})")]
