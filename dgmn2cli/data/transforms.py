"""The published image transforms: image to network input at test time, and the training augmentations.

Images are (H, W, 3) uint8, blue green red, as `read_image` gives them; labels are (H, W) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dgmn2cli.config.schema import AugmentConfig

IGNORE = 255  # the id of ignored pixels in every label this program hands on
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


@dataclass(frozen=True)
class Augmentation:
    """The published augmentation, in its order: scale, crop, mirror, colours, network input; samples stay as they are.

    Each random step draws in the published order, so that the same draws give the same bytes.
    """

    settings: AugmentConfig

    def __call__(self, sample: Sample, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """(3, H, W) float32 and (H, W) uint8 of one training sample; both sides are at least those of the crop."""
        sample = self.flip(self.crop(self.scale(sample, draws), draws), draws)
        if self.settings.photometric:
            sample = Sample(self.distort(sample.image, draws), sample.label)
        return self.finish(sample)

    def scale(self, sample: Sample, draws: Draws) -> Sample:
        """Fits the sample into the scale pair times a ratio drawn from [low, high)."""
        low, high = self.settings.ratio
        ratio = draws.random_sample() * (high - low) + low
        size = target_size(sample.label.shape[0], sample.label.shape[1], scaled(self.settings.scale, ratio))
        return Sample(resize_image(sample.image, size), resize_label(sample.label, size))

    def crop(self, sample: Sample, draws: Draws) -> Sample:
        """Cuts out a square, preferring one that is not nearly all of one class.

        One passes with more than one class, the largest under `category_max_ratio` of the pixels that are not ignored.
        Up to ten are checked; the one drawn after the tenth failure is taken as it is. A smaller image is not padded.
        """
        window = self._window(sample, draws)
        for _ in range(CROP_TRIES if self.settings.category_max_ratio < 1 else 0):
            if self._varied(sample.label[window]):
                break
            window = self._window(sample, draws)
        return Sample(sample.image[window], sample.label[window])

    def _window(self, sample: Sample, draws: Draws) -> tuple[slice, slice]:
        side = self.settings.crop
        top, left = (int(draws.randint(0, max(length - side, 0) + 1)) for length in sample.label.shape)
        return slice(top, top + side), slice(left, left + side)

    def _varied(self, label: np.ndarray) -> bool:
        counts = np.bincount(label.ravel(), minlength=256)
        counts[IGNORE] = 0
        return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.settings.category_max_ratio)

    def flip(self, sample: Sample, draws: Draws) -> Sample:
        """Mirrors the sample left to right with a probability."""
        if draws.rand() >= self.settings.flip_prob:
            return sample
        return Sample(sample.image[:, ::-1], sample.label[:, ::-1])

    def distort(self, image: np.ndarray, draws: Draws) -> np.ndarray:
        """Brightness, contrast, saturation and hue, each changed with an even chance.

        Contrast comes first or last of the last three, an even chance. Every step computes in float32, clips to 0..255
        and cuts to bytes; saturation and hue each go to HSV (OpenCV's, hue 0..179) and back.
        """
        settings, image = self.settings, np.ascontiguousarray(image)
        if draws.randint(2):
            image = _linear(image, 1, draws.uniform(-settings.brightness, settings.brightness))
        contrast_first = draws.randint(2)
        if contrast_first:
            image = self._contrast(image, draws)
        if draws.randint(2):
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 1] = _linear(hsv[..., 1], draws.uniform(*settings.saturation), 0)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if draws.randint(2):
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(draws.randint(-settings.hue, settings.hue))) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return image if contrast_first else self._contrast(image, draws)

    def _contrast(self, image: np.ndarray, draws: Draws) -> np.ndarray:
        return _linear(image, draws.uniform(*self.settings.contrast), 0) if draws.randint(2) else image

    def finish(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The network input, filled right and bottom to the crop's side: image 0 (the mean colour), label ignored."""
        height, width = sample.label.shape
        size = max(height, self.settings.crop), max(width, self.settings.crop)
        image, label = np.zeros((3, *size), np.float32), np.full(size, IGNORE, np.uint8)
        image[:, :height, :width], label[:height, :width] = normalize(sample.image), sample.label
        return image, label


def _linear(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """`values` x factor + offset in float32, clipped to 0..255 and cut to uint8."""
    changed = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(changed, 0, 255).astype(np.uint8)
