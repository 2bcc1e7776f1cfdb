"""The mean of class probabilities over time, which yields where the image changed."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from dgmn2cli.inference.sliding_window import Scores

BLUR = 2.0  # standard deviation in pixels: averages the noise of some fifty pixels, and reaches past moving edges
# Differences of colour, of 255, that count as noise: so many times their median over the image, within bounds (the
# upper one is for cameras that move), for the image as it is and blurred; how many times as large ones count as change.
NOISE, PLAIN, BLURRED, CHANGE = 2.7, (6.0, 40.0), (2.0, 5.0), 1.75
STATE_BYTES = 52  # per pixel, and 4 per class: mean image, differences, weights


class Smoother:
    """Probabilities P become the running mean M = w M + (1 - w) P, with a weight w for each pixel.

    w is `strength` where the image is as before up to noise, and 0 where it changed in any colour: there the mean
    starts anew. "Before" is a mean image with the same weights, so that slow change adds up and is seen.

    Args:
        strength: from 0 (each frame by itself) to below 1.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._image: np.ndarray | None = None
        self._mean = torch.empty(0)

    def __call__(self, image: np.ndarray, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
        """The next frame: (H, W, 3) uint8 and its scores; gives class ids (H, W) uint8 and their mean's values."""
        weights = torch.from_numpy(self._weights(image))
        ids, confidence = torch.empty(scores.size, dtype=torch.uint8), torch.empty(scores.size)
        for rows, values in scores.bands():
            if not self._mean.numel():
                self._mean = values.new_zeros((len(values), *scores.size))
            mean = self._mean[:, rows]
            mean += (1 - weights[rows].to(values.device)) * (values - mean)
            best, index = mean.max(0)
            ids[rows], confidence[rows] = index.to("cpu", torch.uint8), best.cpu()
        return ids.numpy(), confidence.numpy()

    def _weights(self, image: np.ndarray) -> np.ndarray:
        """(H, W) float32: how much of the mean each pixel keeps."""
        if self._image is None:
            self._image = image.astype(np.float32)
            return np.zeros(image.shape[:2], np.float32)
        difference = image - self._image
        change = np.maximum(
            _over_noise(difference, PLAIN), _over_noise(cv2.GaussianBlur(difference, (0, 0), BLUR), BLURRED)
        )
        weights = self.strength * np.clip((CHANGE - change) / (CHANGE - 1), 0, 1)
        self._image += (1 - weights[..., None]) * difference
        return weights


def _over_noise(difference: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """(H, W) float32: the largest difference of a pixel's colours (H, W, 3), where what counts as noise is 1."""
    largest = np.abs(difference).max(axis=2)
    return largest / np.float32(np.clip(NOISE * np.median(largest[::4, ::4]), *bounds))
