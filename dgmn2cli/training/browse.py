"""A contact sheet of samples as a training sees them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dgmn2cli.config import Config
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import write_png
from dgmn2cli.data.loaders import pass_order, sample_draws
from dgmn2cli.data.transforms import MEAN_RGB, STD_RGB, Augmentation
from dgmn2cli.inference.visualize import class_shares, colorize, legend, stack
from dgmn2cli.report.sheet import contact_sheet


def write_samples(data: SegmentationSet, config: Config, path: Path, *, count: int, seed: int) -> tuple[str, ...]:
    """Draws the first samples of the stream that a training with this seed would read; gives the images' names.

    Args:
        config: whose augmentation is shown.
        path: the sheet, a PNG: each row an image, then image and label as augmented; the classes' colours and
            shares of the augmented labels below.
        count: how many samples; no more than there are images.

    Raises:
        DataError: an image or label cannot be read.
        ResourceError: the sheet cannot be written.
    """
    augment, rows, names, shares = Augmentation(config.augment), [], [], []
    for position, index in enumerate(pass_order(len(data), seed, 0)[:count]):
        sample = data.read(int(index))
        image, label = augment(sample, sample_draws(seed, position))
        name = data.pairs[index].name
        size = f"{sample.image.shape[1]} x {sample.image.shape[0]}"
        tiles = [
            (f"{name}, {size}", sample.image),
            ("augmented", visible(image)),
            ("label", colorize(label, data.palette)),
        ]
        rows.append(tiles)
        names.append(name)
        shares.append(class_shares(label, len(data.classes)))
    sheet = contact_sheet(rows)
    strip = legend(np.mean(shares, axis=0), data.classes, data.palette, sheet.shape[1])
    write_png(path, stack([sheet, strip]))
    return tuple(names)


def visible(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, blue green red, of a network input (3, H, W) float32."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN_RGB, STD_RGB))
    rgb = np.rint((image * std + mean).clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR)
