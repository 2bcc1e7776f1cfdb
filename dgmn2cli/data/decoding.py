"""Decoding of image files that are in memory: simplejpeg for JPEG, Pillow and OpenCV for the other formats.

All raise `Malformed` for what is no image of the kind wanted, too large, cut or damaged.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from dgmn2cli.data.formats import FETCH_AGAIN, ONE_FRAME, Malformed, sniff
from dgmn2cli.data.jpeg import decode_jpeg, jpeg_exif, jpeg_size
from dgmn2cli.data.png import GRAY, PALETTE, Png, parse_png, png_size, require_all_rows

# named, not looked for by `Image.open`: that one warns of large images, and would try formats that nobody named
_READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
}
_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, LookupError, TypeError, ArithmeticError,
    AttributeError, RuntimeError, Image.DecompressionBombError,
)  # fmt: skip # what Pillow raises for one broken file or another
_ORIENTATION = 0x0112
_NEARLY_BLACK = 16  # of 256: 16-bit values under 4,096
_LIMIT_HINT = "Shrink the image, or raise --max-pixels if the memory suffices."
_quiet = threading.Lock()


@dataclass(frozen=True)
class ImageHeader:
    """The facts in an image file's header."""

    format: str  # "PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF" or "PNM"
    # width, height: as displayed, in pixels: the EXIF orientation is applied
    width: int
    height: int
    orientation: int = 1  # EXIF orientation 1 to 8; 1 where none is given


def read_header(data: bytes, max_pixels: int) -> ImageHeader:
    """What a file says of itself; of a PNG every checksum is compared, of the others only the header is looked at."""
    kind, (width, height) = sniff(data), _size(data, max_pixels)
    if kind == "PNG":
        orientation = _orientation(parse_png(data).exif)
    elif kind == "JPEG":
        orientation = _orientation(jpeg_exif(data))
    else:
        with _pillow(kind, data) as image:
            orientation = _orientation_of(image.getexif())
    if orientation >= 5 and kind != "TIFF":  # Pillow gives a TIFF's size as displayed
        width, height = height, width
    return ImageHeader(kind, width, height, orientation)


def decode_bgr(data: bytes, max_pixels: int) -> tuple[np.ndarray, ImageHeader, list[str]]:
    """An image as displayed, (H, W, 3) uint8 blue green red; its header; and what is odd about it."""
    kind, notes = sniff(data), []
    _size(data, max_pixels)
    orientation = 1
    if kind == "JPEG":
        pixels, note = decode_jpeg(data)
        notes, orientation = [note] if note else [], _orientation(jpeg_exif(data))
    elif kind == "PNG":
        png = parse_png(data)
        pixels, orientation = _to_bgr(_load_png(png)), _orientation(png.exif)
        notes = _deep_note(pixels) if png.depth == 16 else []
    else:
        with _pillow(kind, data) as image:
            if kind == "TIFF":
                notes += ["it has several pages, of which the first is read"] * _has_second_page(image)
            elif getattr(image, "is_animated", False):
                raise Malformed("it is an animation", ONE_FRAME)
            deep = image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
            pixels = _decode_other(kind, data, image)
            notes += _deep_note(pixels) if deep else []
            orientation = _orientation_of(image.getexif())
    shown = orient(pixels, orientation)
    return shown, ImageHeader(kind, shown.shape[1], shown.shape[0], orientation), notes


def _has_second_page(image: ImageFile) -> bool:
    """Whether a TIFF has more than one page; counting a hundred thousand of them would take minutes."""
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


def decode_ids(data: bytes, max_pixels: int) -> np.ndarray:
    """The stored samples of a label PNG: (H, W) uint8, or uint16 where one is above 255."""
    png = _label_png(data, max_pixels)
    if png.color_type not in (GRAY, PALETTE):
        hint = (
            'If its colours stand for classes, say label_format = "colour" and the palette in dataset.toml; '
            "otherwise export one channel of class ids."
        )
        raise Malformed("it is a colour image, not a map of class ids", hint)
    samples = np.asarray(_load_png(png))
    if png.depth == 16:
        return samples.astype(np.uint16 if samples.max() > 255 else np.uint8)
    if png.color_type == PALETTE:
        return samples.astype(np.uint8)
    return samples.astype(np.uint8) // np.uint8(1 if samples.dtype == bool else 255 // ((1 << png.depth) - 1))


def decode_colours(data: bytes, max_pixels: int) -> np.ndarray:
    """The colours of a label PNG, (H, W, 3) uint8 red green blue; not turned, alpha left out."""
    png = _label_png(data, max_pixels)
    if png.depth == 16:
        hint = 'If its values are class ids, say label_format = "ids"; otherwise export colours of 8 bits per channel.'
        raise Malformed("its values have 16 bits, wanted the colours of classes, which have 8", hint)
    return _to_bgr(_load_png(png))[..., ::-1]


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """`image` (H, W, C) as it is displayed, given its EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, *range(2, image.ndim))
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _size(data: bytes, max_pixels: int) -> tuple[int, int]:
    kind = sniff(data)
    if kind == "PNG":
        width, height = png_size(data)
    elif kind == "JPEG":
        width, height = jpeg_size(data)
    else:
        with _pillow(kind, data) as image:
            width, height = image.size
    if width * height > max_pixels:
        why = f"it has {width} x {height} = {width * height:,} pixels, more than --max-pixels {max_pixels:,}"
        raise Malformed(why, _LIMIT_HINT)
    return width, height


@contextmanager
def _pillow(kind: str, data: bytes) -> Iterator[ImageFile]:
    """A file opened by Pillow's reader; its errors become Malformed, its warnings stay here (one file at a time)."""
    if kind == "WebP" and 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise Malformed("the file is cut", FETCH_AGAIN)
    try:
        with _quiet, warnings.catch_warnings(), _muted(kind == "TIFF"):
            warnings.simplefilter("ignore")
            yield _READERS[kind](io.BytesIO(data))
    except Malformed:
        raise
    except _ERRORS as error:
        raise Malformed(f"it is cut or damaged ({error or type(error).__name__})", FETCH_AGAIN) from error


@contextmanager
def _muted(mute: bool) -> Iterator[None]:
    """Within the block nothing reaches stderr: libtiff writes there what Pillow raises, too."""
    if not mute:
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        kept = os.dup(2)
        os.dup2(sink, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    finally:
        os.close(sink)


def _decode_other(kind: str, data: bytes, image: ImageFile) -> np.ndarray:
    """Pixels, not turned; by OpenCV where that is much faster and Pillow has found the file to be whole."""
    codec, _, start, arguments = image.tile[0] if kind == "BMP" else ("", None, 0, None)
    if codec == "raw" and isinstance(arguments, tuple):
        mode, row, direction = arguments
        if start + row * image.height > len(data):
            raise Malformed("the file is cut", FETCH_AGAIN)
        if mode == "BGR":
            rows = np.frombuffer(data, np.uint8, row * image.height, start).reshape(image.height, row)
            return rows[::direction, : 3 * image.width].reshape(image.height, image.width, 3).copy()
    elif kind != "WebP":
        image.load()
        return _to_bgr(image)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[1::-1] != image.size:
        raise Malformed("its pixels are damaged", FETCH_AGAIN)
    return pixels


def _label_png(data: bytes, max_pixels: int) -> Png:
    kind = sniff(data)
    if kind == "JPEG":
        hint = "Export the label maps as PNG from the tool that made them; converting the JPEG keeps the wrong ids."
        raise Malformed("it is a JPEG, whose compression changes class ids, and label maps must be PNG", hint)
    if kind != "PNG":
        hint = "Convert it to a PNG of the same values, without resizing."
        raise Malformed(f"it is a {kind} file, and label maps must be PNG", hint)
    _size(data, max_pixels)
    return parse_png(data)


def _load_png(png: Png) -> ImageFile:
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(png.data))
        image.load()
    except _ERRORS as error:
        raise Malformed(f"its pixels are cut or damaged ({error or type(error).__name__})", FETCH_AGAIN) from error
    last = image.crop((0, png.height - 1, png.width, png.height))
    if png.interlaced or not any(last.tobytes()):  # zeros are what Pillow leaves where pixels are missing
        require_all_rows(png)
    return image


def _to_bgr(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, blue green red, of a decoded image: gray repeated, palettes looked up, alpha dropped."""
    if image.mode.startswith("I"):  # 16 bits, or 32 that hold no more
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise Malformed("its values need 32 bits", "Convert it to 8 bits per channel.")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise Malformed("its values are floating-point numbers", "Convert it to 8 bits per channel.")
    plain = image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.frombuffer(plain.tobytes("raw", "BGR"), np.uint8)
    return pixels.reshape(plain.height, plain.width, 3).copy()


def _deep_note(pixels: np.ndarray) -> list[str]:
    brightest = int(pixels.max(initial=0))
    note = f"its 16-bit values are all under {256 * (brightest + 1):,}, so that it is nearly black as 8 bits"
    return [f"{note}; stretch them to 65,535"] if brightest < _NEARLY_BLACK else []


def _orientation(exif: bytes) -> int:
    """The EXIF orientation in a block; 1 where it cannot be read."""
    tags = Image.Exif()
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(exif)
            return _orientation_of(tags)
    except _ERRORS:
        return 1


def _orientation_of(tags: Image.Exif) -> int:
    """1 to 8, written as any kind of integer; 1 for what is none."""
    value = tags.get(_ORIENTATION, 1)
    if isinstance(value, bytes) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
