"""What a demonstration tells its observer, and what it found in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgmn2cli.demo.request import DemoRequest
from dgmn2cli.inference.report import ImageResult
from dgmn2cli.training.report import TrainReport


@dataclass(frozen=True)
class StepBegun:
    """Step `number` of `count` begins: what is done in it."""

    number: int
    count: int
    what: str


@dataclass(frozen=True)
class StepDone:
    """One step of the demonstration: what was done, how long it took, what came out, and where that lies."""

    what: str
    seconds: float
    found: str
    where: Path


@dataclass(frozen=True)
class ClassFigures:
    """One class on the held-out scenes: its share of the labelled pixels, and its IoU (fractions; NaN: undefined)."""

    name: str
    color: tuple[int, int, int]
    share: float
    iou: float
    iou_ms_flip: float


@dataclass(frozen=True)
class Figures:
    """One evaluation of the held-out scenes: fractions from 0 to 1, wall time, the file with all of it, its page."""

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    seconds: float
    report: Path
    page: Path


@dataclass(frozen=True)
class DemoReport:
    """The result of a demonstration.

    Attributes:
        out: its folder; all paths below lie in it, and begin with it.
        page, sheet, curves: the page for a browser, the contact sheet, the curves of the training.
        data, run: the data set and the run folder of the training.
        request: data and recipe.
        training: its report.
        single_scale, ms_flip: the two evaluations of the weights after the last step.
        largest, largest_share: the most common class of the held-out scenes and its share of the labelled pixels: the
            pixel accuracy of answering it everywhere.
        constant_mean_iou: the mean IoU of answering it everywhere.
        classes: figures of every class.
        scene, photograph: the two images segmented in the end.
        steps: what was done, in order.
        seconds: wall time of this run.
        resumed: an earlier, interrupted run did a part of it.
        device: what computed.
        threads: CPU threads in use.
    """

    out: Path
    page: Path
    sheet: Path
    curves: Path
    data: Path
    run: Path
    request: DemoRequest
    training: TrainReport
    single_scale: Figures
    ms_flip: Figures
    largest: str
    largest_share: float
    constant_mean_iou: float
    classes: tuple[ClassFigures, ...]
    scene: ImageResult
    photograph: ImageResult
    steps: tuple[StepDone, ...]
    seconds: float
    resumed: bool
    device: str
    threads: int


def duration(seconds: float) -> str:
    """`12 s`, or `3 min 05 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
