"""The evaluations within a training: the weights as they are used later, measured as `eval` measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

import numpy as np
from torch import Tensor

from dgmn2cli.config import Config
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import write_png
from dgmn2cli.distributed.group import Group
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.errors import Dgmn2Error
from dgmn2cli.inference.load import build_segmentor
from dgmn2cli.inference.prediction import ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.visualize import colorize
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.shapes import unfilled
from dgmn2cli.observer import Known, Observer, Silent
from dgmn2cli.report.sheet import contact_sheet
from dgmn2cli.runtime import describe_device

SHOWN = 3  # images on a sheet of sample predictions


class Stopped(Dgmn2Error):  # noqa: N818
    """The run is to end because a signal came; travels between processes like any failure of one."""


def snapshot(
    config: Config, weights: Mapping[str, Tensor], data: SegmentationSet, group: Group, backend: str, checkpoint: str
) -> Segmenter:
    """A segmenter on a copy of `weights`, rewritten for inference as by every other command.

    Args:
        weights: a state dict; copied.
        data: whose classes they tell apart.
        group: gives the device.
        backend: the op backend's name.
        checkpoint: what the report calls the weights.
    """
    model = unfilled(lambda: build_segmentor(config.model))
    model.load_state_dict(dict(weights))
    use_backend(model, backend)
    model.to(group.device).eval().requires_grad_(requires_grad=False)
    info = RunInfo(
        model=config.name,
        checkpoint=checkpoint,
        sha256="",
        device=str(group.device),
        device_name=describe_device(group.device),
        dtype="float32",
        backend=backend,
        form="fused",
    )
    classes = ClassList(data.classes, data.palette, cityscapes=data.kind == "cityscapes")
    return Segmenter(InferenceForm(model), classes, info, config.inference)


def require_going(stop: StopRequest) -> None:
    """Raises Stopped where the run is to end."""
    if stop.number is not None:
        raise Stopped("the training was told to stop")


class Watch(Silent):
    """Hands progress on, under another task's name where one is given, and ends the work when the run is to end."""

    def __init__(self, observer: Observer, check: Callable[[], object], task: str = "") -> None:
        self._observer, self._check, self._task = observer, check, task

    def note(self, message: str) -> None:
        """Handed on."""
        self._observer.note(message)

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        """Handed on."""
        self._observer.begin(self._task or task, total, done=done, unit=unit)

    def advance(self, parts: float = 1, **known: Unpack[Known]) -> None:
        """Handed on."""
        self._observer.advance(parts, **known)
        self._check()

    def end(self) -> None:
        """Handed on."""
        self._observer.end()


def write_samples(path: Path, segmenter: Segmenter, data: SegmentationSet, check: Callable[[], object]) -> Path:
    """Writes a sheet of the first images: image, label, prediction.

    Args:
        check: called between windows; what it raises ends the work.

    Raises:
        DataError: an image cannot be read.
        ResourceError: the file cannot be written.
    """
    rows, watch = [], Watch(Silent(), check)
    for index in range(min(SHOWN, len(data))):
        sample = data.read(index)
        found = segmenter.predict(np.ascontiguousarray(sample.image[:, :, ::-1]), observer=watch)
        tiles = [sample.image, colorize(sample.label, data.palette), colorize(found.ids, data.palette)]
        name = data.pairs[index].name
        rows.append(list(zip([name[:40], "label", "prediction"], tiles, strict=True)))
    return write_png(path, contact_sheet(rows))
