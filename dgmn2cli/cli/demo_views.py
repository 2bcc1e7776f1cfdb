"""Owns how a demonstration looks on a terminal: its steps as they are done, and the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from dgmn2cli.cli import render
from dgmn2cli.cli.options import Session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.cli.train_views import evaluated
from dgmn2cli.demo.report import duration
from dgmn2cli.training.report import Evaluated

if TYPE_CHECKING:
    from dgmn2cli.demo.report import DemoReport, StepDone


class Console:
    """The steps on stderr, with progress as in a training."""

    def __init__(self, session: Session, out: Path) -> None:
        self.session, self.out = session, out
        self.observer = TerminalObserver(session, notices={Evaluated: evaluated})

    def begin(self, number: int, count: int, what: str) -> None:
        """A heading; before the first one, what this is going to be."""
        if number == 1:
            about = f"{count} steps, some minutes in all; everything goes to {self.out} (about 300 MB)."
            render.notice(self.session, f"{about} Ctrl-C stops it, --resume goes on.")
        render.notice(self.session, f"[{number}/{count}] {what}")

    def end(self, done: StepDone) -> None:
        """What came out, how long it took, and where it lies."""
        render.notice(self.session, f"      {duration(done.seconds)}: {done.found} -> {done.where}")


def report_table(report: DemoReport) -> RenderableType:
    """The result of a demonstration."""
    scenes = f"on {report.val_scenes} held-out scenes"
    single, averaged = report.single_scale, report.ms_flip
    rows = [
        ("mIoU", f"{100 * single.mean_iou:.2f} % {scenes}, {100 * single.pixel_accuracy:.2f} % of the pixels right"),
        ("ms+flip", f"{100 * averaged.mean_iou:.2f} %, {100 * averaged.pixel_accuracy:.2f} % of the pixels right"),
        (
            "for comparison",
            f"always answering '{report.largest}', the commonest class: mIoU {100 * report.constant_mean_iou:.2f} %, "
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
