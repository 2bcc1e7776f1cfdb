"""The published image transforms: image to network input at test time, and the training augmentations.

Images are (H, W, 3) uint8, blue green red, as `read_image` gives them; labels are (H, W) uint8. Each random
transform takes the generator it draws from, and draws in the published order: the same draws give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
CROP_TRIES = 10


def normal_table(mean_rgb: Sequence[float] = MEAN_RGB, std_rgb: Sequence[float] = STD_RGB) -> np.ndarray:
    """(3, 256) float32: the normalised value of each byte, per channel in red green blue order.

    As published: subtract the float32 mean in float32, multiply by the float64 reciprocal of the float32 deviation,
    round to float32.
    """
    mean, std = np.array(mean_rgb, np.float32), np.array(std_rgb, np.float32)
    centred = np.arange(256, dtype=np.float32) - mean[:, None]
    return (centred * (1 / std.astype(np.float64))[:, None]).astype(np.float32)


NORMAL = normal_table()


def target_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image fitted into `scale`, its shape kept (protocol: "Target size for a scale pair").

    Args:
        scale: two sides in either order: the longer bounds the longer side, the shorter the shorter.

    A side never falls below one pixel, where the published formula would give zero.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def scaled(scale: tuple[int, int], ratio: float) -> tuple[int, int]:
    """The scale pair times a ratio, each side cut down to an integer."""
    return int(scale[0] * ratio), int(scale[1] * ratio)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` at `size` (height, width): OpenCV's fixed-point bilinear interpolation, without antialiasing."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`label` at `size` (height, width): OpenCV's nearest neighbour."""
    return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def normalize(image: np.ndarray, table: np.ndarray = NORMAL) -> np.ndarray:
    """The network input (3, H, W) float32, red green blue, of an image (H, W, 3) uint8, blue green red."""
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):
        np.take(table[channel], image[:, :, 2 - channel], out=planes[channel], mode="clip")
    return planes


def network_input(
    image: np.ndarray,
    rows: slice = slice(None),
    columns: slice = slice(None),
    *,
    flip: bool = False,
    table: np.ndarray = NORMAL,
) -> np.ndarray:
    """The published test pipeline after the resize: mirror on bytes, normalise; of a part of the image.

    Args:
        image: (h, w, 3) uint8, blue green red.
        rows, columns: the part, in pixels of the mirrored image where `flip`.
        flip: mirror the image left to right.
        table: the normalised value of each byte, as `normal_table`.

    Returns:
        (3, rows, columns) float32, red green blue.
    """
    return normalize((image[:, ::-1] if flip else image)[rows, columns], table)


@dataclass(frozen=True)
class Sample:
    """An image (H, W, 3) uint8, blue green red, and its label (H, W) uint8."""

    image: np.ndarray
    label: np.ndarray


Draws = np.random.RandomState  # it draws as the published code does
Transform = Callable[[Sample, Draws], Sample]  # one step of the augmentation; the given sample is left as it is


@dataclass(frozen=True)
class RandomScale:
    """Fits the sample into a scale pair times a ratio drawn from [low, high)."""

    scale: tuple[int, int] = (2049, 1025)
    low: float = 0.5
    high: float = 2.0

    def __call__(self, sample: Sample, draws: Draws) -> Sample:
        ratio = draws.random_sample() * (self.high - self.low) + self.low
        size = target_size(sample.label.shape[0], sample.label.shape[1], scaled(self.scale, ratio))
        return Sample(resize_image(sample.image, size), resize_label(sample.label, size))


@dataclass(frozen=True)
class RandomCrop:
    """Cuts out a window, preferring one that is not nearly all of one class.

    A window passes with more than one class and the largest under `largest_share` of the pixels that are not ignored.
    Up to ten are checked; the one drawn after the tenth failure is taken as it is. A smaller image is not padded.
    """

    size: tuple[int, int] = (769, 769)
    largest_share: float = 0.75
    ignore: int = 255

    def __call__(self, sample: Sample, draws: Draws) -> Sample:
        window = self._draw(sample, draws)
        for _ in range(CROP_TRIES if self.largest_share < 1 else 0):
            if self._varied(sample.label[window]):
                break
            window = self._draw(sample, draws)
        return Sample(sample.image[window], sample.label[window])

    def _draw(self, sample: Sample, draws: Draws) -> tuple[slice, slice]:
        height, width = sample.label.shape
        top = int(draws.randint(0, max(height - self.size[0], 0) + 1))
        left = int(draws.randint(0, max(width - self.size[1], 0) + 1))
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def _varied(self, label: np.ndarray) -> bool:
        counts = np.bincount(label.ravel(), minlength=256)
        counts[self.ignore] = 0
        return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.largest_share)


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors the sample left to right with a probability."""

    probability: float = 0.5

    def __call__(self, sample: Sample, draws: Draws) -> Sample:
        if draws.rand() >= self.probability:
            return sample
        return Sample(sample.image[:, ::-1], sample.label[:, ::-1])


@dataclass(frozen=True)
class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each changed with an even chance.

    Contrast comes first or last of the last three, an even chance. Every step computes in float32, clips to 0..255
    and cuts to bytes; saturation and hue each go to HSV (OpenCV's, hue 0..179) and back.
    """

    brightness: float = 32
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18

    def __call__(self, sample: Sample, draws: Draws) -> Sample:
        image = np.ascontiguousarray(sample.image)
        if draws.randint(2):
            image = _linear(image, 1, draws.uniform(-self.brightness, self.brightness))
        contrast_first = draws.randint(2)
        if contrast_first:
            image = self._contrast(image, draws)
        if draws.randint(2):
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 1] = _linear(hsv[..., 1], draws.uniform(*self.saturation), 0)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if draws.randint(2):
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(draws.randint(-self.hue, self.hue))) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if not contrast_first:
            image = self._contrast(image, draws)
        return Sample(image, sample.label)

    def _contrast(self, image: np.ndarray, draws: Draws) -> np.ndarray:
        return _linear(image, draws.uniform(*self.contrast), 0) if draws.randint(2) else image


def _linear(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """`values` x factor + offset in float32, clipped to 0..255 and cut to uint8."""
    changed = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(changed, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class NormalizeAndPad:
    """Makes the network input, then fills right and bottom up to `size`: image 0 (the mean colour), label ignored."""

    size: tuple[int, int] = (769, 769)
    ignore: int = 255

    def __call__(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """(3, H, W) float32 and (H, W) uint8, both at least `size`."""
        height, width = sample.label.shape
        size = max(height, self.size[0]), max(width, self.size[1])
        image = np.zeros((3, *size), np.float32)
        image[:, :height, :width] = normalize(sample.image)
        label = np.full(size, self.ignore, np.uint8)
        label[:height, :width] = sample.label
        return image, label


@dataclass(frozen=True)
class TrainTransform:
    """The whole augmentation: random steps in order, then the network input."""

    steps: tuple[Transform, ...]
    finish: NormalizeAndPad

    def __call__(self, sample: Sample, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """(3, H, W) float32 and (H, W) uint8 of one training sample."""
        for step in self.steps:
            sample = step(sample, draws)
        return self.finish(sample)
