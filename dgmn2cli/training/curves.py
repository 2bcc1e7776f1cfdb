"""Owns the picture of a run's curves: loss, accuracy, learning rate and mean IoU over the steps, drawn with OpenCV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dgmn2cli.inference.visualize import draw_text, text_width

SIZE = (1280, 860)  # width, height in pixels
_MARGIN, _TITLE = 70, 44
_PAPER, _GRID, _INK = (255, 255, 255), (232, 230, 228), (90, 86, 82)
_FAINT, _STRONG = (235, 205, 175), (190, 105, 30)  # blue green red
_TEXT = 11  # cap height
_WINDOW = 1 / 40  # share of the steps that the smooth curve averages


@dataclass(frozen=True)
class Curve:
    """One panel: a title, the steps and the values at them; `smooth` adds a running mean, `dots` marks the values."""

    title: str
    steps: Sequence[float]
    values: Sequence[float]
    smooth: bool = False
    dots: bool = False


def curves_of(log: Iterable[dict[str, Any]]) -> list[Curve]:
    """The panels of a run's log."""
    steps, evaluations = [], []
    for record in log:
        if "miou" not in record:
            steps.append(record)
        elif record["miou"] is not None:  # no class was there
            evaluations.append(record)
    at = [record["iter"] for record in steps]
    miou = [100 * record["miou"] for record in evaluations]
    return [
        Curve("loss", at, [record["loss"] for record in steps], smooth=True),
        Curve("accuracy in % of all pixels", at, [record["acc"] for record in steps], smooth=True),
        Curve("learning rate", at, [record["lr"] for record in steps]),
        Curve("mean IoU in %", [record["iter"] for record in evaluations], miou, dots=True),
    ]


def draw_curves(title: str, curves: Sequence[Curve]) -> np.ndarray:
    """The panels, two in a row, under a title: (H, W, 3) uint8, blue green red."""
    canvas = np.full((SIZE[1], SIZE[0], 3), _PAPER, np.uint8)
    draw_text(canvas, title, 20, _TITLE // 2, 13, bold=True)
    width, height = SIZE[0] // 2, (SIZE[1] - _TITLE) // 2
    for index, curve in enumerate(curves[:4]):
        top, left = _TITLE + index // 2 * height, index % 2 * width
        _panel(canvas[top : top + height, left : left + width], curve)
    return canvas


def _panel(canvas: np.ndarray, curve: Curve) -> None:
    """Draws one curve with its axes on its part of the picture."""
    height, width = canvas.shape[:2]
    left, right, top, bottom = _MARGIN, width - 24, 34, height - 34
    draw_text(canvas, curve.title, left, 16, _TEXT, bold=True)
    if not curve.values:
        draw_text(canvas, "nothing yet", left + 20, height // 2, _TEXT, color=_INK)
        return
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    across, up = _ticks(min(steps[0], 0.0), steps[-1]), _ticks(float(values.min()), float(values.max()))

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        columns = left + (x - across[0]) / (across[-1] - across[0]) * (right - left)
        rows = bottom - (y - up[0]) / (up[-1] - up[0]) * (bottom - top)
        return np.rint(np.stack([columns, rows], 1) * 16).astype(np.int32)  # sixteenths of a pixel

    for tick in up:
        row = int(place(np.zeros(1), np.array([tick]))[0, 1] / 16)
        cv2.line(canvas, (left, row), (right, row), _GRID, 1)
        label = f"{tick:.5g}"
        draw_text(canvas, label, left - 8 - text_width(label, _TEXT), row, _TEXT, color=_INK)
    for tick in across:
        column = int(place(np.array([tick]), np.zeros(1))[0, 0] / 16)
        label = f"{tick:.6g}"
        draw_text(canvas, label, column - text_width(label, _TEXT) // 2, bottom + 18, _TEXT, color=_INK)
    points = place(steps, values)
    cv2.polylines(canvas, [points], False, _FAINT if curve.smooth else _STRONG, 2, cv2.LINE_AA, 4)
    if curve.smooth:
        cv2.polylines(canvas, [place(steps, _running_mean(values))], False, _STRONG, 2, cv2.LINE_AA, 4)
    for point in points if curve.dots else ():
        cv2.circle(canvas, (int(point[0]), int(point[1])), 4 * 16, _STRONG, cv2.FILLED, cv2.LINE_AA, 4)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and those shortly before it, same length."""
    window = max(1, int(len(values) * _WINDOW))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    mean: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return mean


def _ticks(low: float, high: float) -> np.ndarray:
    """Four to nine round numbers that span `low` to `high`."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if high else (-1.0, 1.0)
    rough = (high - low) / 6
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return np.arange(first, last + 1) * step
