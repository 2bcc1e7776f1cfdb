"""Contact sheets: rows of titled images, `(H, W, 3)` uint8 in any order of channels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dgmn2cli.inference.visualize import draw_text, stack

TALLEST = 3  # times the width of a tile


def contact_sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]], tile_width: int = 480) -> np.ndarray:
    """Rows of titled images on one sheet; each is scaled to `tile_width` (less if it is very high), its shape kept.

    Args:
        rows: pairs of title and image `(H, W, 3)` uint8; masks must come in colors, and are shrunk by averaging, too.
        tile_width: pixels across each image.

    Returns:
        `(H, W, 3)` uint8.
    """
    height, gap = max(9, tile_width // 44), max(8, tile_width // 40)
    bands = []
    for tiles in rows:
        fitted = [(title, _fit(image, tile_width)) for title, image in tiles]
        tallest = max(image.shape[0] for _, image in fitted)
        band = np.full((3 * height + tallest + gap, gap + len(fitted) * (tile_width + gap), 3), 255, np.uint8)
        for index, (title, image) in enumerate(fitted):
            left = gap + index * (tile_width + gap)
            draw_text(band[:, : left + tile_width], title, left, 3 * height // 2, height, bold=True)
            band[3 * height : 3 * height + image.shape[0], left : left + image.shape[1]] = image
        bands.append(band)
    return stack(bands)


def _fit(image: np.ndarray, width: int) -> np.ndarray:
    """`image` scaled to `width`; to less where it would be more than `TALLEST` times as high."""
    scale = min(width / image.shape[1], TALLEST * width / image.shape[0])
    fitted = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, fitted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
