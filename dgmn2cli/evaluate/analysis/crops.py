"""What an image looks like where it is wrong: image, label, prediction and difference, as one small JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dgmn2cli.data.dataset import IGNORE
from dgmn2cli.inference.visualize import colorize

KEPT = 12  # whole images, and crops, that are kept for a report
CROP_TILE, VIEW_TILE = 224, 320  # pixels across a tile of a crop, of a whole image
QUALITY = 80
_WRONG = (60, 50, 235)  # blue green red


@dataclass(frozen=True)
class Box:
    """A square part of an image: its left upper corner, its side, and how many of its pixels are wrong."""

    x: int
    y: int
    side: int
    wrong: int


@dataclass(frozen=True)
class Shown:
    """One JPEG of four tiles, row by row: image, label, prediction, difference; the lower `rank`, the worse."""

    rank: float
    jpeg: bytes


def worst_box(wrong: np.ndarray) -> Box:
    """The quarter of the shorter side squared in which most pixels are wrong; the uppermost, then leftmost of equals.

    Args:
        wrong: (H, W) bool.
    """
    height, width = wrong.shape
    side = max(1, min(height, width) // 4)
    step = max(1, side // 16)
    sums = cv2.integral(wrong.view(np.uint8))
    tops, lefts = (np.unique(np.append(np.arange(0, n - side, step), n - side)) for n in (height, width))
    below, right = tops + side, lefts + side
    counts = sums[below][:, right] - sums[below][:, lefts] - sums[tops][:, right] + sums[tops][:, lefts]
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    return Box(int(lefts[column]), int(tops[row]), side, int(counts[row, column]))


def tiles(image: np.ndarray, label: np.ndarray, prediction: np.ndarray, palette: np.ndarray, width: int) -> bytes:
    """Image, label, prediction and difference as one JPEG of two by two tiles.

    Args:
        image: (H, W, 3) uint8, blue green red.
        label, prediction: (H, W) uint8.
        palette: (N, 3) uint8, red green blue.
        width: of a tile.
    """
    size = (width, max(1, round(width * image.shape[0] / image.shape[1])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_NEAREST)
    truth, guess = (cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST) for ids in (label, prediction))
    gray = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) // 2 + 64
    gray[truth == IGNORE] //= 3
    gray[(truth != guess) & (truth != IGNORE)] = _WRONG
    rows = [np.hstack([small, colorize(truth, palette)]), np.hstack([colorize(guess, palette), gray])]
    encoded = cv2.imencode(".jpg", np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return bytes(encoded.tobytes())


def keep_worst(shown: dict[int, Shown]) -> dict[int, Shown]:
    """The `KEPT` worst by rank, then by the image's place; the same however they came together."""
    order = sorted(shown, key=lambda index: (shown[index].rank, index))[:KEPT]
    return {index: shown[index] for index in order}
