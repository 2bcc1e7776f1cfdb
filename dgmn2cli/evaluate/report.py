"""Owns what an evaluation was asked for and what it found: settings, data, figures, and how they came about."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from dgmn2cli.config import InferenceConfig
from dgmn2cli.config.schema import PROTOCOLS
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.errors import ConfigError
from dgmn2cli.evaluate.metrics import Scores
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.inference.sliding_window import Windowing
from dgmn2cli.version import __version__


@dataclass(frozen=True)
class Protocol:
    """The test procedure in force.

    Attributes:
        name: `paper` or `native`.
        scale: the pair pictures are fitted into; None: they keep their size.
        window, stride: of the sliding window, in pixels.
        window_batch: windows per forward pass; None: chosen by device.
        ratios: factors of the scale that are averaged.
        flip: mirrored pictures are averaged, too.
    """

    name: str
    scale: tuple[int, int] | None
    window: int
    stride: int
    window_batch: int | None
    ratios: tuple[float, ...]
    flip: bool

    def __str__(self) -> str:
        size = f"{self.scale[0]}x{self.scale[1]}" if self.scale else "the pictures' size"
        kind = f"{len(self.ratios)} scales" if len(self.ratios) > 1 else "single scale"
        return f"{self.name}, {kind}{' + flip' if self.flip else ''}, {size}, window {self.window}/{self.stride}"


def protocol_in_force(settings: Settings, inference: InferenceConfig) -> Protocol:
    """What `settings` mean on top of a configuration.

    Raises:
        ConfigError: an unknown protocol or an impossible window.
    """
    name = settings.protocol or inference.protocol
    if name not in PROTOCOLS:
        raise ConfigError("no such protocol", where=name[:60], why=f"wanted one of {', '.join(PROTOCOLS)}")
    window = settings.window or inference.window
    stride = settings.stride or min(inference.stride, window)
    Windowing(window, stride)  # refuses what cannot be
    return Protocol(
        name=name,
        scale=None if name == "native" else settings.scale or inference.scale,
        window=window,
        stride=stride,
        window_batch=settings.window_batch,
        ratios=inference.ratios if settings.ms_flip else (1.0,),
        flip=settings.ms_flip and inference.flip,
    )


@dataclass(frozen=True)
class DataInfo:
    """What was evaluated on.

    Attributes:
        root, split, kind: the data set.
        pictures: evaluated.
        of: pictures in the split.
        sizes: "WIDTHxHEIGHT" -> number of pictures; empty if the data was not checked.
        sha256: over the names and contents of all evaluated pictures and labels; empty if not computed.
    """

    root: str
    split: str
    kind: str
    pictures: int
    of: int
    sizes: dict[str, int] = field(default_factory=dict)
    sha256: str = ""

    @property
    def partial(self) -> bool:
        """Whether pictures of the split were left out."""
        return self.pictures < self.of


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
    """What cityscapesScripts makes of the saved predictions; IoU from 0 to 1.

    Attributes:
        version: of cityscapesScripts.
        mean_iou, mean_category_iou: its averages.
        difference: the largest difference from ours, over all classes, groups and both means.
        converted_labels: label files it could not read as they are, and that were written anew as labelIds.
    """

    version: str
    mean_iou: float
    mean_category_iou: float
    difference: float
    converted_labels: int


@dataclass(frozen=True)
class EvalReport:
    """The result of one evaluation.

    Attributes:
        run: model, weights with their hash, device, number format, op backend.
        protocol: the test procedure.
        data: what it was evaluated on.
        partial: pictures of the split were left out; such figures are no result for the split.
        scores: the figures, as fractions from 0 to 1.
        confusion: rows: label, columns: prediction, the last column for predictions that are no class; pixels.
        comparison: with the published figure; None where none can be made.
        no_comparison: why not.
        official: cityscapesScripts' figures, where asked for.
        processes: how many evaluated.
        resumed: pictures taken over from an interrupted run.
        seconds: wall time of the evaluation itself, loading and checking excluded; of all runs where it was resumed.
        versions: of the program and what it computes with.
    """

    run: RunInfo
    protocol: Protocol
    data: DataInfo
    partial: bool
    scores: Scores
    confusion: tuple[tuple[int, ...], ...]
    comparison: Comparison | None
    no_comparison: tuple[str, ...]
    official: OfficialScores | None
    processes: int
    resumed: int
    seconds: float
    versions: dict[str, str]


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


def describe_data(data: SegmentationSet, of: int) -> DataInfo:
    """`data` as evaluated, out of `of` pictures of its split; its files are not looked at."""
    return DataInfo(root=str(Path(data.root)), split=data.split, kind=data.kind, pictures=len(data), of=of)
