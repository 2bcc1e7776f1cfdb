"""Images of a segmentation: colours, overlay and legend. Arrays in, arrays out.

Images are (H, W, 3) uint8, blue green red, as `read_image` gives and `write_png` takes them; palettes are (N, 3)
uint8, red green blue, as data sets publish them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dgmn2cli.errors import printable

_PAPER, _INK, _FAINT = (255, 255, 255), (40, 36, 32), (150, 146, 142)
_CAPITALS = 0.7  # of the font's size
_OTHER_FONT = "fonts/ttf/DejaVuSans.ttf"
_COUNTED = 1 << 22  # pixels of a mask that are counted at a time; float32 is exact up to 2**24
TEXT_HEIGHT = (10, 34)  # smallest and largest cap height of a legend, in pixels


def colorize(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The mask (H, W) of integer ids painted in the palette's colours; ids without a colour are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette[:, ::-1]
    return cv2.applyColorMap(np.where((ids >= 0) & (ids < 256), ids, 255).astype(np.uint8), table.reshape(256, 1, 3))


def overlay(image: np.ndarray, ids: np.ndarray, palette: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """The image tinted by its mask, with a fine line between classes.

    Args:
        image: (H, W, 3) uint8.
        ids: (H, W) class ids; a pixel whose id has no colour (255, ignored) shows the image as it is.
        alpha: share of the class colour, 0 to 1.
    """
    tinted = cv2.addWeighted(image, 1 - alpha, colorize(ids, palette), alpha, 0)
    unknown = (ids < 0) | (ids >= len(palette))
    tinted[unknown] = image[unknown]
    line = _borders(ids)
    lighter = ((1 - 0.6 * alpha) * np.arange(256) + 0.6 * alpha * 255 + 0.5).astype(np.uint8)
    tinted[line] = lighter[tinted[line]]
    return tinted


def _borders(ids: np.ndarray) -> np.ndarray:
    """Where the class differs from the one to the right or below, about 1/1000 of the image's side wide."""
    line: np.ndarray = np.zeros(ids.shape, np.uint8)
    line[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    line[:-1] |= ids[:-1] != ids[1:]
    width = round(min(ids.shape) / 1000)
    if width > 1:
        line = cv2.dilate(line, np.ones((width, width), np.uint8))
    return line.astype(bool)


def class_shares(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes,) float64: the share of all pixels that each class has; ignored pixels count in the whole.

    Args:
        ids: class ids of any shape, 0 to 255.
    """
    counts, flat = np.zeros(num_classes, np.int64), ids.astype(np.uint8, copy=False).reshape(1, -1)
    for first in range(0, flat.shape[1], _COUNTED):  # outside Python's lock, but in float32
        found = cv2.calcHist([flat[:, first : first + _COUNTED]], [0], None, [num_classes], [0, num_classes])
        counts += found.ravel().astype(np.int64)
    return counts / max(ids.size, 1)


@lru_cache
def _font(height: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    """The font whose capitals are `height` pixels high: Pillow's, or for other letters the one that matplotlib has."""
    if not ascii_only:
        found = find_spec("matplotlib")  # not imported: that takes longer than drawing
        assert found is not None
        assert found.origin is not None
        return ImageFont.truetype(Path(found.origin).with_name("mpl-data") / _OTHER_FONT, height / _CAPITALS)
    font = ImageFont.load_default(height / _CAPITALS)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def draw_text(
    canvas: np.ndarray,
    text: str,
    left: int,
    middle: int,
    height: int,
    *,
    color: Sequence[int] = _INK,
    bold: bool = False,
) -> None:
    """Draws one line of text on `canvas`, its capitals centred on the row `middle`; what leaves it is cut off."""
    image, stroke = Image.fromarray(np.ascontiguousarray(canvas)), height / 25 if bold else 0
    start, line, fill = (left, middle + height / 2), printable(text), tuple(color)
    font = _font(height, line.isascii())
    ImageDraw.Draw(image).text(start, line, fill, font, anchor="ls", stroke_width=stroke, stroke_fill=fill)
    canvas[:] = np.asarray(image)


def text_width(text: str, height: int) -> int:
    """Width in pixels of a line drawn by `draw_text`."""
    line = printable(text)
    return math.ceil(_font(height, line.isascii()).getlength(line))


def legend(shares: np.ndarray, names: Sequence[str], palette: np.ndarray, width: int) -> np.ndarray:
    """A strip that names the classes present, largest first, each with its colour and its share of the pixels.

    Args:
        shares: (N,) as `class_shares` gives; classes with share 0 are left out.
        width: of the image it goes with; text grows with it, and the strip is wider where one entry needs more.

    Returns:
        (h, w, 3) uint8 with w >= width.
    """
    height = int(np.clip(width / 130, *TEXT_HEIGHT))
    order = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    percents = [f"{100 * shares[i]:.1f} %" if shares[i] >= 0.001 else "<0.1 %" for i in order]
    entries = [(names[i], percent, palette[i][::-1]) for i, percent in zip(order, percents, strict=True)]
    name_width = max((text_width(name, height) for name, _, _ in entries), default=0)
    share_width = text_width("100.0 %", height)
    swatch, gap, row = 2 * height, height, 3 * height
    column = swatch + name_width + share_width + 4 * gap
    columns = max(1, min((width - gap) // column, max(len(entries), 1)))
    rows = -(-len(entries) // columns)
    strip = np.full((max(rows, 1) * row + gap, max(width, columns * column + gap), 3), _PAPER, np.uint8)
    pitch = max(column, (strip.shape[1] - gap) // columns) if columns > 1 else column
    for index, (name, share, color) in enumerate(entries):
        left, middle = gap + index % columns * pitch, gap // 2 + index // columns * row + row // 2
        corners, rim = ((left, middle - height), (left + swatch - 1, middle + height - 1)), max(1, swatch // 20)
        cv2.rectangle(strip, *corners, color.tolist(), cv2.FILLED)
        cv2.rectangle(strip, *corners, (color * 0.8).astype(int).tolist(), rim)  # light colours stand off the paper
        draw_text(strip, name, left + swatch + gap // 2, middle, height)
        right = left + swatch + gap + name_width + share_width
        draw_text(strip, share, right - text_width(share, height), middle, height, color=_FAINT)
    return strip


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images below each other on white, left-aligned; an image and its legend, for example."""
    width = max(image.shape[1] for image in images)
    padded = [
        cv2.copyMakeBorder(image, 0, 0, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=_PAPER)
        for image in images
    ]
    return np.concatenate(padded)


def overlay_with_legend(
    image: np.ndarray, ids: np.ndarray, names: Sequence[str], palette: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
    """The tinted image with its legend below it; the image itself is not covered."""
    strip = legend(class_shares(ids, len(names)), names, palette, image.shape[1])
    return stack([overlay(image, ids, palette, alpha), strip])
