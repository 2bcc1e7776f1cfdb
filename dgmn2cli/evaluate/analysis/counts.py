"""Pixels counted by value, and counts as short texts: what every measure of an evaluation is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

BAND = 1 << 20  # pixels looked at a time: OpenCV's histograms are exact up to 16 times as many
IDS = 256
UNIT = 1 << 24  # sums of fractions are kept as whole numbers of 1/UNIT, so that their order does not matter


def bands(height: int, width: int) -> Iterator[slice]:
    """Row slices that cover an image, each of about a million pixels."""
    rows = max(1, BAND // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, top + rows)


def count_ids(ids: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(256,) int64: pixels of each id.

    Args:
        ids: (H, W) uint8.
        where: (H, W) bool: the pixels that count.
    """
    counts = np.zeros(IDS, np.int64)
    for rows in bands(*ids.shape):
        part, mask = np.ascontiguousarray(ids[rows]), np.ascontiguousarray(where[rows]).view(np.uint8)
        counts += cv2.calcHist([part], [0], mask, [IDS], [0, IDS]).ravel().astype(np.int64)
    return counts


def fixed(value: np.ndarray | float) -> np.ndarray:
    """Sums as whole numbers of 1/`UNIT`, int64."""
    return np.rint(np.asarray(value, np.float64) * UNIT).astype(np.int64)


def to_text(counts: np.ndarray) -> str:
    """The shape of an integer array and its values that are not 0: `2x3 index:value ...`, indices in the flat array."""
    flat = counts.ravel()
    return " ".join(["x".join(map(str, counts.shape)), *(f"{i}:{flat[i]}" for i in np.flatnonzero(flat))])


def from_text(text: str, shape: Sequence[int]) -> np.ndarray:
    """The int64 array of `shape` that `to_text` gave.

    Raises:
        ValueError: the text is none of an array of this shape.
    """
    counts = np.zeros(int(np.prod(shape)), np.int64)
    written, *entries = text.split() or [""]
    if written != "x".join(map(str, shape)):
        raise ValueError(f"the shape is '{written[:40]}', wanted {tuple(shape)}")
    for entry in entries:
        index, _, value = entry.partition(":")
        if not (index.isascii() and index.isdigit() and int(index) < counts.size):
            raise ValueError(f"'{entry[:40]}' is no entry of an array of {counts.size} values")
        counts[int(index)] = int(value)
    return counts.reshape(shape)
