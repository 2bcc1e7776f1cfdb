"""Whether confidence means what it says: expected calibration error, reliability, and the temperature that mends it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dgmn2cli.evaluate.analysis.counts import UNIT, bands, fixed

BINS = 15
SAMPLES = 8192  # pixels of an image, about, on which temperatures are tried
TEMPERATURES: np.ndarray = 2.0 ** (np.arange(-24, 25) / 8)  # 1/8 to 8
_TINY = np.float32(1e-30)


def confidence_counts(confidence: np.ndarray, right: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(3, 15) int64, by bin of confidence: pixels, those that are right, the sum of their confidences in 1/`UNIT`.

    Args:
        confidence: (...) float32, the probability of the predicted class.
        right: (...) bool: the prediction is right.
        valid: (...) bool: the pixel is not ignored.
    """
    confidence, right, valid = (np.atleast_2d(array) for array in (confidence, right, valid))
    counts = np.zeros((3, BINS), np.int64)
    for rows in bands(*confidence.shape):
        inside = valid[rows]
        values, hits = confidence[rows][inside], right[rows][inside]
        bins = np.minimum((values * BINS).astype(np.intp), BINS - 1)
        counts[0] += np.bincount(bins, minlength=BINS)
        counts[1] += np.bincount(bins[hits], minlength=BINS)
        counts[2] += fixed(np.bincount(bins, weights=values, minlength=BINS))
    return counts


def sampling_step(height: int, width: int) -> int:
    """Pixels from one sample to the next, in both directions."""
    return max(1, math.ceil(math.sqrt(height * width / SAMPLES)))


def temperature_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The log loss under each temperature: of softmax(logits / T), where `probabilities` are softmax(logits).

    Args:
        probabilities: (C, n) float32.
        truth: (n,) class ids.

    Returns:
        (49 + 1,) int64: for each of `TEMPERATURES` the sum over the pixels in 1/`UNIT`, and n.
    """
    logits = _logits(probabilities)
    of_truth = logits[truth, np.arange(truth.size)]
    sums = [np.sum(_log_norm(logits, t) - of_truth / t, dtype=np.float64) for t in TEMPERATURES.astype(np.float32)]
    return np.append(fixed(np.array(sums)), truth.size)


def temperature_confidences(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(49, 3, 15) int64: `confidence_counts` under each temperature; arguments as `temperature_losses`."""
    logits, right = _logits(probabilities), probabilities.argmax(0) == truth
    valid = np.ones_like(right)
    return np.stack(
        [confidence_counts(np.exp(-_log_norm(logits, t)), right, valid) for t in TEMPERATURES.astype(np.float32)]
    )


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """(C, n) float32, each pixel's largest 0."""
    logits = np.log(np.maximum(probabilities, _TINY))
    shifted: np.ndarray = logits - logits.max(0)
    return shifted


def _log_norm(logits: np.ndarray, temperature: np.float32) -> np.ndarray:
    norm: np.ndarray = np.log(np.exp(logits / temperature).sum(0))
    return norm


def expected_error(counts: np.ndarray) -> float:
    """ECE: the mean over the pixels of |accuracy - confidence| of their bin; NaN without pixels.

    Args:
        counts: (3, 15), sums of what `confidence_counts` gives.
    """
    pixels, right, confidence = counts.astype(np.float64)
    return float(np.abs(right - confidence / UNIT).sum() / pixels.sum()) if pixels.sum() else float("nan")


def best_temperature(losses: np.ndarray) -> float:
    """The temperature of least log loss, by a parabola through the best three tried; NaN without pixels.

    Args:
        losses: (49 + 1,), sums of what `temperature_losses` gives.
    """
    if not losses[-1]:
        return float("nan")
    curve = losses[:-1] / UNIT / losses[-1]
    best = int(curve.argmin())
    if not 0 < best < len(curve) - 1:
        return float(TEMPERATURES[best])
    before, least, after = curve[best - 1 : best + 2]
    bend = before - 2 * least + after
    offset = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float(TEMPERATURES[best] * (TEMPERATURES[1] / TEMPERATURES[0]) ** offset)


def at_temperature(counts: np.ndarray, temperature: float) -> np.ndarray:
    """(3, 15) float64: of (49, 3, 15) counts by temperature, those between the two nearest."""
    place = float(np.interp(math.log(temperature), np.log(TEMPERATURES), np.arange(len(TEMPERATURES))))
    below = min(int(place), len(TEMPERATURES) - 2)
    mixed: np.ndarray = counts[below] + (place - below) * (counts[below + 1] - counts[below])
    return mixed


@dataclass(frozen=True)
class ReliabilityBin:
    """Pixels whose confidence lies from `low` to `high`: how many, their mean confidence, the share that is right."""

    low: float
    high: float
    pixels: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether confidence means what it says; NaN where undefined."""

    ece: float  # expected calibration error over all labelled pixels, 15 bins of equal width
    bins: tuple[ReliabilityBin, ...]  # the reliability diagram
    # fitted by log loss on every other image, from the first; logits divided by it are best calibrated
    temperature: float
    # ece_before, ece_after: of the other images, without and with that temperature; on a sample of their pixels
    ece_before: float
    ece_after: float


def summarize(counts: np.ndarray, losses: np.ndarray, by_temperature: np.ndarray) -> Calibration:
    """The calibration of a whole set.

    Args:
        counts: (3, 15), the sum over all images.
        losses: (49 + 1,), the sum over the images the temperature is fitted on.
        by_temperature: (49, 3, 15), the sum over the others.
    """
    edges = np.arange(BINS + 1) / BINS
    with np.errstate(invalid="ignore"):
        means = counts[1:] / counts[0] / [[1], [UNIT]]
    rows = (
        ReliabilityBin(float(edges[i]), float(edges[i + 1]), int(counts[0, i]), float(means[1, i]), float(means[0, i]))
        for i in range(BINS)
    )
    temperature = best_temperature(losses)
    known = temperature == temperature
    return Calibration(
        ece=expected_error(counts),
        bins=tuple(rows),
        temperature=temperature,
        ece_before=expected_error(at_temperature(by_temperature, 1.0)),
        ece_after=expected_error(at_temperature(by_temperature, temperature)) if known else float("nan"),
    )
