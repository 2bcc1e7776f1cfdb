"""Boundary IoU, and the pixel accuracy near boundaries between classes (trimaps)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from dgmn2cli.data.dataset import IGNORE
from dgmn2cli.evaluate.analysis.counts import count_ids

RADII = (1, 2, 4, 8, 16)  # pixels, of the trimaps
WIDTH = 0.02  # of the image's diagonal


def boundary_width(height: int, width: int) -> int:
    """Pixels from its outline that belong to a class's boundary region."""
    return max(1, round(WIDTH * math.hypot(height, width)))


def boundary_counts(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """(2, N) int64: intersection and union of the boundary regions of prediction and label, in pixels.

    A class's boundary region is its mask without its erosion by a 3x3 box, repeated `boundary_width` times; beyond the
    image there is background. Ignored pixels are left out of both regions once they are formed. Source: Boundary IoU
    (Cheng et al. 2021).

    Args:
        prediction, label: (H, W) uint8 class ids; other ids belong to no class.
    """
    radius, valid = boundary_width(*label.shape), label != IGNORE
    of_label, of_prediction = _near_another(label, radius) & valid, _near_another(prediction, radius) & valid
    both = count_ids(label, of_label & of_prediction & (label == prediction))
    either = count_ids(label, of_label) + count_ids(prediction, of_prediction) - both
    return np.stack([both[:num_classes], either[:num_classes]])


def _near_another(ids: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) bool: whether another id, or the image's border, is at most `radius` pixels (Chebyshev) away.

    A pixel is removed by the erosions of its own class's mask just then, so that one look serves all classes.
    """
    box = _box(radius)
    near: np.ndarray = cv2.dilate(ids, box) != cv2.erode(ids, box)
    near[:radius] = near[-radius:] = True
    near[:, :radius] = near[:, -radius:] = True
    return near


def _box(radius: int) -> np.ndarray:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def trimap_counts(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Pixels near a border between two classes of the label, and how many of them are right.

    Near is a pixel of the label with one of another class at most r pixels (Chebyshev) away; neither may be ignored.

    Returns:
        (5, 2) int64: for each radius of `RADII` the pixels, and those whose prediction is right.
    """
    valid = label != IGNORE
    correct = (prediction == label) & valid
    high, low = np.where(valid, label + np.uint8(1), np.uint8(0)), np.where(valid, label + np.uint8(1), np.uint8(255))
    counts, before = [], 0
    for radius in RADII:  # boxes add up: each radius goes on from the one before
        box, before = _box(radius - before), radius
        high, low = cv2.dilate(high, box), cv2.erode(low, box)
        near = (high != low) & valid
        counts.append([np.count_nonzero(near), np.count_nonzero(near & correct)])
    return np.array(counts, np.int64)


@dataclass(frozen=True)
class TrimapPoint:
    """The pixels at most `radius` from a border: how many, the share that is right, their share of all errors."""

    radius: int
    pixels: int
    accuracy: float
    error_share: float


@dataclass(frozen=True)
class Boundary:
    """How good the boundaries are; IoU and shares from 0 to 1, NaN where undefined."""

    mean_iou: float  # mean boundary IoU over the classes that have one
    width: int  # of the boundary regions in pixels, of the largest image
    classes: dict[str, float]  # boundary IoU by class
    trimaps: tuple[TrimapPoint, ...]  # by radius
    interior_error_share: float  # of all errors, those farther from every border than the largest radius
