"""Owns the pictures of a demonstration's held-out scenes: truth and prediction in colours, and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import read_image, read_label, write_png
from dgmn2cli.evaluate.engine import PredictionFolder
from dgmn2cli.inference.visualize import class_shares, colorize, draw_text, legend, stack
from dgmn2cli.report.sheet import contact_sheet

SHOWN = 6  # scenes
TILE = 512  # pixels across, on the sheet
_TEXT = 13  # cap height of the sheet's headings


@dataclass(frozen=True, eq=False)
class ShownScene:
    """One held-out scene: its files for picture, truth and prediction, and its true class ids (H, W) uint8."""

    name: str
    picture: Path
    truth: Path
    prediction: Path
    label: np.ndarray


def show_scenes(data: SegmentationSet, predictions: Path, folder: Path) -> list[ShownScene]:
    """Writes truth and prediction of the first scenes of `data` in their classes' colours to `folder`.

    Args:
        data: the held-out split.
        predictions: where the evaluation kept its predictions.
        folder: of the new files.

    Raises:
        DataError: a picture, label or prediction cannot be read.
        ResourceError: a file cannot be written.
    """
    kept, scenes = PredictionFolder.of(predictions, data), []
    for index, pair in enumerate(data.pairs[:SHOWN]):
        label, found = data.read_label(index), read_label(kept.targets(pair.name)[0])
        truth = write_png(folder / f"{pair.name}_truth.png", colorize(label, data.palette))
        prediction = write_png(folder / f"{pair.name}_prediction.png", colorize(found, data.palette))
        scenes.append(ShownScene(pair.name, pair.image, truth, prediction, label))
    return scenes


def write_sheet(path: Path, scenes: Sequence[ShownScene], data: SegmentationSet) -> Path:
    """Writes one picture of all scenes (picture, truth, prediction in a row) with a legend of their true classes.

    Raises:
        DataError: a picture cannot be read.
        ResourceError: the file cannot be written.
    """
    rows = [
        [
            (scene.name, read_image(scene.picture)),
            ("truth", read_image(scene.truth)),
            ("prediction", read_image(scene.prediction)),
        ]
        for scene in scenes
    ]
    sheet = contact_sheet(rows, TILE)
    shares = class_shares(np.concatenate([scene.label.ravel() for scene in scenes]), len(data.classes))
    heading = np.full((3 * _TEXT, sheet.shape[1], 3), 255, np.uint8)
    draw_text(heading, "Classes and their share of the true pixels shown", _TEXT, 3 * _TEXT // 2, _TEXT, bold=True)
    return write_png(path, stack([sheet, heading, legend(shares, data.classes, data.palette, sheet.shape[1])]))
