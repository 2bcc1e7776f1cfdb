"""What an evaluation found: figures, settings, data, and how they came about."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch

from dgmn2cli.data.dataset import LabelMapping, SegmentationSet
from dgmn2cli.evaluate.analysis.crops import Shown
from dgmn2cli.evaluate.analysis.summary import Analysis
from dgmn2cli.evaluate.certificate import Certificate, digest_of
from dgmn2cli.evaluate.counting import Scores
from dgmn2cli.inference.plan import Protocol
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.notebook import table_html
from dgmn2cli.version import __version__


@dataclass(frozen=True)
class DataInfo:
    """What was evaluated on."""

    # root, split, kind: the data set
    root: str
    split: str
    kind: str
    images: int  # evaluated
    of: int  # images in the split
    # "WIDTHxHEIGHT" -> number of images; empty if the data was not checked
    sizes: dict[str, int] = field(default_factory=dict)
    sha256: str = ""  # over the names and contents of all evaluated images and labels; empty if not computed
    mapping: LabelMapping | None = None  # how stored ids became classes, where the data set is a known one
    corruption: str = ""  # what was done to the images, such as `fog:3`; empty: nothing

    @classmethod
    def of_set(cls, data: SegmentationSet, of: int) -> DataInfo:
        """`data` as evaluated, out of `of` images of its split; its files are not looked at."""
        return cls(
            root=str(data.root),
            split=data.split,
            kind=data.kind,
            images=len(data),
            of=of,
            mapping=data.mapping,
            corruption=str(data.corruption or ""),
        )

    def remarks(self) -> list[tuple[str, str]]:
        """What is particular about the data: names and values; none for a data set as it is."""
        rows = [("corruption", self.corruption)] if self.corruption else []
        if self.mapping is not None:
            rows.append(("mapping", f"{self.mapping.dataset}, sha256 {self.mapping.sha256[:12]}"))
            if self.mapping.without:
                rows.append(("without counterpart", ", ".join(self.mapping.without)))
        return rows

    @property
    def partial(self) -> bool:
        """Whether images of the split were left out."""
        return self.images < self.of


@dataclass(frozen=True)
class Comparison:
    """The published mean IoU beside the measured one, in percent, and whether they agree within `tolerance`."""

    model: str
    published: float
    measured: float
    difference: float
    tolerance: float
    within: bool


@dataclass(frozen=True)
class OfficialScores:
    """What cityscapesScripts makes of the saved predictions; IoU from 0 to 1."""

    version: str  # of cityscapesScripts
    # mean_iou, mean_category_iou: its averages
    mean_iou: float
    mean_category_iou: float
    difference: float  # the largest difference from ours, over all classes, groups and both means
    converted_labels: int  # label files it could not read as they are, and that were written anew as labelIds


@dataclass(frozen=True)
class EvalReport:
    """The result of one evaluation.

    Attributes:
        run: model, weights with their hash, device, dtype, op backend.
        protocol: the test procedure in force; None for predictions from files.
        data: what it was evaluated on.
        partial: images of the split were left out; such figures are no result for the split.
        scores: the figures, as fractions from 0 to 1.
        confusion: rows: label, columns: prediction, the last column for predictions that are no class; pixels.
        analysis: what it tells beyond; in the JSON its entries stand beside the others.
        certificate: what `dgmn2 verify` needs.
        processes: how many evaluated.
        resumed: images taken over from an interrupted run.
        seconds: wall time of the evaluation itself, loading and checking excluded; of all runs where it was resumed.
        versions: of the program and what it computes with.
        command: as typed; empty from Python.
        comparison: with the published figure; None where none can be made.
        no_comparison: why not.
        official: cityscapesScripts' figures, where asked for.
        crops, views: JPEGs of the worst parts and of the worst images, by place in `analysis.images`; not in the JSON.
        palette: of the classes, red green blue; likewise.
    """

    run: RunInfo
    protocol: Protocol | None
    data: DataInfo
    partial: bool
    scores: Scores
    confusion: tuple[tuple[int, ...], ...]
    analysis: Analysis = field(metadata={"json": "flat"})
    processes: int
    resumed: int
    seconds: float
    versions: dict[str, str]
    command: str = ""
    comparison: Comparison | None = None
    no_comparison: tuple[str, ...] = ()
    official: OfficialScores | None = None
    certificate: Certificate = field(default_factory=Certificate)
    crops: dict[int, Shown] = field(default_factory=dict, metadata={"json": False})
    views: dict[int, Shown] = field(default_factory=dict, metadata={"json": False})
    palette: tuple[tuple[int, ...], ...] = field(default=(), metadata={"json": False})

    def __repr__(self) -> str:
        data = f"data={self.data.root!r}, split={self.data.split!r}, images={self.data.images}"
        return f"EvalReport(model={self.run.title!r}, {data}, mean_iou={self.scores.mean_iou:.4f})"

    def _repr_html_(self) -> str:
        def percent(value: float) -> str:
            return "n/a" if math.isnan(value) else f"{100 * value:.2f}"

        rows = [(entry.name, percent(entry.iou), percent(entry.accuracy)) for entry in self.scores.classes]
        mean = percent(self.scores.mean_iou)
        title = f"{self.run.title}: mIoU {mean} % on {self.data.images} of {self.data.of} images of {self.data.split}"
        return table_html(title, ("class", "IoU in %", "accuracy in %"), rows)

    def signed(self) -> EvalReport:
        """The report with the digest of its content in the certificate: the last that is done before it is written."""
        return replace(self, certificate=replace(self.certificate, digest=digest_of(self)))


def versions() -> dict[str, str]:
    """The program and the libraries that decide its numbers."""
    return {
        "dgmn2cli": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "platform": platform.platform(),
    }
