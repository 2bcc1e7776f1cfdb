"""Intervals: how far a figure would lie elsewhere had other images of the same kind been drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
_AT_ONCE = 2_000_000  # weights that are held at a time

Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Percentile bootstrap over images: of `level`, from `resamples` draws that begin with `seed`.

    `mean_iou` and each class's are [low, high], fractions; NaN where undefined.
    """

    level: float
    resamples: int
    seed: int
    mean_iou: Interval
    classes: dict[str, Interval]


def parts_of(matrices: np.ndarray) -> np.ndarray:
    """(n, 3, N) int64 of (n, N, N + 1) matrices: each image's intersections, labelled and predicted pixels by class."""
    inner = matrices[:, :, : matrices.shape[1]]
    return np.stack([np.einsum("nii->ni", inner), matrices.sum(2), inner.sum(1)], 1)


def iou_of(parts: np.ndarray) -> np.ndarray:
    """(..., N) float64 IoU by class of (..., 3, N) parts; NaN where there is no union."""
    parts = np.asarray(parts, np.float64)
    hits = parts[..., 0, :]
    with np.errstate(invalid="ignore"):
        iou: np.ndarray = hits / (parts[..., 1, :] + parts[..., 2, :] - hits)
    return iou


def iou_in_images(parts: np.ndarray) -> np.ndarray:
    """As `iou_of`, of single images: NaN, too, for the classes that an image's label does not have."""
    return np.where(parts[..., 1, :] > 0, iou_of(parts), np.nan)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """The mean of what is not NaN along the last axis; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, values, 0.0).sum(-1) / known.sum(-1)
    return mean


def resampled(parts: np.ndarray) -> Iterator[np.ndarray]:
    """(b, 3, N) float64 sums over images drawn with replacement, `RESAMPLES` in all; the same for equally many images.

    Args:
        parts: (n, 3, N), one entry for each image.
    """
    count, rng = len(parts), np.random.default_rng(SEED)
    flat, block = parts.reshape(count, -1).astype(np.float64), max(1, _AT_ONCE // count)
    for first in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - first)
        drawn = rng.integers(0, count, (draws, count)) + np.arange(draws)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count)  # how often each is drawn
        yield (weights.astype(np.float64) @ flat).reshape(draws, *parts.shape[1:])


def interval(samples: np.ndarray) -> Interval:
    """The middle `LEVEL` of the draws in which the figure is defined."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(parts: np.ndarray, names: tuple[str, ...]) -> Intervals:
    """The intervals of a whole set, (n, 3, N)."""
    samples = np.concatenate([iou_of(sums) for sums in resampled(parts)])  # (`RESAMPLES`, N)
    classes = {name: interval(samples[:, i]) for i, name in enumerate(names)}
    return Intervals(LEVEL, RESAMPLES, SEED, interval(nan_mean(samples)), classes)
