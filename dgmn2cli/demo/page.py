"""What a demonstration shows: truth and prediction in colors, the contact sheet, and the page for a browser."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import read_image, read_label, write_png
from dgmn2cli.demo.report import DemoReport, duration
from dgmn2cli.demo.request import PHOTOGRAPH_SCALE
from dgmn2cli.evaluate.predictions import PredictionFolder
from dgmn2cli.inference.visualize import class_shares, colorize, draw_text, legend, stack
from dgmn2cli.report import html
from dgmn2cli.report.charts import training_curves
from dgmn2cli.report.sheet import contact_sheet
from dgmn2cli.training.logs import read_log

SHOWN = 6  # scenes
TILE = 512  # pixels across, on the sheet
_TEXT = 13  # cap height of the sheet's headings


@dataclass(frozen=True, eq=False)
class ShownScene:
    """One held-out scene: its files for image, truth and prediction, and its true class ids (H, W) uint8."""

    name: str
    image: Path
    truth: Path
    prediction: Path
    label: np.ndarray


def show_scenes(data: SegmentationSet, predictions: Path, folder: Path) -> list[ShownScene]:
    """Writes truth and prediction of the first scenes of `data` in their classes' colors to `folder`.

    Args:
        data: the held-out split.
        predictions: where the evaluation kept its predictions.
        folder: of the new files.

    Raises:
        DataError: an image, label or prediction cannot be read.
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
    """Writes one image of all scenes (image, truth, prediction in a row) with a legend of their true classes.

    Raises:
        DataError: an image cannot be read.
        ResourceError: the file cannot be written.
    """
    rows = [
        [
            (scene.name, read_image(scene.image)),
            ("ground truth", read_image(scene.truth)),
            ("prediction", read_image(scene.prediction)),
        ]
        for scene in scenes
    ]
    sheet = contact_sheet(rows, TILE)
    shares = class_shares(np.concatenate([scene.label.ravel() for scene in scenes]), len(data.classes))
    heading = np.full((3 * _TEXT, sheet.shape[1], 3), 255, np.uint8)
    draw_text(heading, "Classes and their share of the true pixels shown", _TEXT, 3 * _TEXT // 2, _TEXT, bold=True)
    return write_png(path, stack([sheet, heading, legend(shares, data.classes, data.palette, sheet.shape[1])]))


def write_page(report: DemoReport, scenes: Sequence[ShownScene], photograph: Path, credit: str) -> Path:
    """Writes `report.page`, and the curves that it shows beside the scenes.

    Args:
        report: what to show.
        scenes: the held-out scenes to show.
        photograph: the image that was segmented.
        credit: who made it; empty for an image of the user's.

    Raises:
        ResourceError: an image is gone, or the page cannot be written.
    """
    curves = training_curves(read_log(report.run / "log.jsonl")[0], scenes[0].truth.with_name("curves.svg"))
    values = {"report": report, "scenes": scenes, "curves": curves, "photograph": photograph, "credit": credit}
    return html.write_page(report.page, "demo.html", **values, commands=commands(report), duration=duration)


def commands(report: DemoReport) -> str:
    """What to type next, a command a line."""
    config, weights = (shlex.quote(str(path)) for path in (report.run / "config.toml", report.training.checkpoint))
    scale = "x".join(str(PHOTOGRAPH_SCALE * side) for side in report.request.size)
    root = shlex.quote(str(report.data))
    return (
        f"# the same evaluation, with every figure\n"
        f"dgmn2 eval {config} --checkpoint {weights} --data-root {root}\n"
        f"# images of yours\n"
        f"dgmn2 infer image.jpg -m {config} --checkpoint {weights} --scale {scale}\n"
        f"# the same training again, twice as long\n"
        f"dgmn2 train {config} --max-iters {2 * report.training.iterations} --out longer"
    )
