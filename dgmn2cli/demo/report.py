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
    """The result of a demonstration."""

    out: Path  # its folder; all paths below lie in it, and begin with it
    page: Path  # for a browser
    sheet: Path  # the contact sheet
    curves: Path  # of the training
    data: Path  # the data set
    run: Path  # the folder of the training
    request: DemoRequest
    training: TrainReport
    # single_scale, ms_flip: the two evaluations of the weights after the last step
    single_scale: Figures
    ms_flip: Figures
    largest: str  # the most common class of the held-out scenes
    largest_share: float  # of the labelled pixels: the pixel accuracy of answering it everywhere
    constant_mean_iou: float  # the mean IoU of answering it everywhere
    classes: tuple[ClassFigures, ...]
    scene: ImageResult
    photograph: ImageResult
    steps: tuple[StepDone, ...]  # in order
    seconds: float  # wall time of this run
    resumed: bool  # an earlier, interrupted run did a part of it
    device: str  # what computed
    threads: int  # of the CPU


def duration(seconds: float) -> str:
    """`12 s`, or `3 min 05 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
