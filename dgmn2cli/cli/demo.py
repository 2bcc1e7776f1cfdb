"""`dgmn2 demo`: the whole workflow on synthetic streets, in minutes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from dgmn2cli.cli import render
from dgmn2cli.cli.options import PATH, Session, backend_option, device_option, grouped, pass_session, threads_option
from dgmn2cli.cli.progress import TerminalObserver, View, duration

if TYPE_CHECKING:
    from dgmn2cli.demo.report import DemoReport, StepBegun, StepDone
    from dgmn2cli.demo.request import DemoRequest

SEED = click.IntRange(0, 2**32 - 1)


def _request(*, long: bool, **values: Any) -> DemoRequest:
    # threads that spin while they wait slow a busy machine down many times over; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dgmn2cli.demo.request import LONG, DemoRequest

    given = {name: value for name, value in values.items() if value is not None}
    return DemoRequest(**{**(LONG if long else {}), **given})


@click.command()
@grouped(
    "request",
    _request,
    click.option("-o", "--out", type=PATH, default="dgmn2-demo", metavar="DIR", help="Folder that gets everything."),
    click.option("--long", is_flag=True, help="Train 400 steps of larger crops."),
    click.option(
        "--iters", type=click.IntRange(1, 10**6), metavar="N", help="Training steps.  [default: as 88 s allow]"
    ),
    click.option("--scenes", type=click.IntRange(1, 10_000), default=64, metavar="N", help="Scenes to train on."),
    click.option("--seed", type=SEED, default=0, metavar="N", help="Seed of scenes and training."),
    click.option("--image", type=PATH, metavar="FILE", help="Photograph to segment.  [default: one that came along]"),
    click.option("--overwrite", is_flag=True, help="Replace the demo that is in the folder."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted demo."),
    *(device_option, backend_option, threads_option),
)
@pass_session
def demo(session: Session, request: DemoRequest) -> None:
    """Draw synthetic streets, train on them, evaluate, segment, and write a page that shows it all.

    It takes a few minutes and needs no download and no GPU. The first training steps are timed, and as many are made as
    88 s allow (120 at least, 400 at most); with --iters the result is the same each time. One folder gets everything:
    index.html for a browser, contact_sheet.png, the data set, the training's run folder with its checkpoint and curves,
    the evaluations and the segmented images. A quarter as many scenes are drawn in addition and held out. The figures
    are measured on these drawings and say nothing about the published models on real streets.
    """
    from dgmn2cli.cli.train import evaluated
    from dgmn2cli.demo import run
    from dgmn2cli.demo.report import StepBegun, StepDone
    from dgmn2cli.training.report import Evaluated

    notices: dict[type, View] = {StepBegun: _begun, StepDone: _done, Evaluated: evaluated}
    with TerminalObserver(session, notices=notices) as observer:
        report = run.demo(request, observer)
    render.emit(session, report, lambda: _table(report))


def _begun(step: StepBegun) -> str:
    return f"[{step.number}/{step.count}] {step.what}"


def _done(step: StepDone) -> str:
    return f"      {duration(step.seconds)}: {step.found} -> {step.where}"


def _table(report: DemoReport) -> RenderableType:
    scenes = f"on {report.request.held_out} held-out scenes"
    single, averaged = report.single_scale, report.ms_flip
    rows = [
        ("mIoU", f"{100 * single.mean_iou:.2f} % {scenes}, {100 * single.pixel_accuracy:.2f} % of the pixels right"),
        ("ms+flip", f"{100 * averaged.mean_iou:.2f} %, {100 * averaged.pixel_accuracy:.2f} % of the pixels right"),
        (
            "for comparison",
            f"always answering '{report.largest}', the most common class: mIoU {100 * report.constant_mean_iou:.2f} %, "
            f"{100 * report.largest_share:.2f} % of the pixels right",
        ),
        ("took", f"{duration(report.seconds)} on {report.device}"),
        ("page", f"{report.page} (open it in a browser)"),
        ("contact sheet", str(report.sheet)),
        ("curves", str(report.curves)),
        ("photograph", str(report.photograph.outputs["overlay"])),
        ("checkpoint", str(report.training.checkpoint)),
    ]
    return render.record_table(rows)
