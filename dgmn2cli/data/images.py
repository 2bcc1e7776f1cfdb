"""Image files on disk: reading images and label maps (nothing cut, nothing guessed), and writing PNGs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from dgmn2cli.data import decoding, png
from dgmn2cli.data.decoding import ImageHeader
from dgmn2cli.data.formats import Malformed
from dgmn2cli.errors import DataError
from dgmn2cli.files import atomic_write, open_regular

MAX_PIXELS = 100_000_000
_BYTES_PER_PIXEL, _BYTES_SPARE = 8, 1 << 26  # a file larger than 16-bit RGBA plus 64 MiB is no honest image
_IMAGE, _LABEL = "cannot read the image", "cannot read the label map"
_T = TypeVar("_T")


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image as OpenCV's colour decoding does (the published protocol), but refuses damage.

    Gray, palette, 1- to 16-bit and CMYK images become 8-bit BGR: gray is repeated, a palette is looked up, 16 bits
    keep their upper byte, CMYK is converted as OpenCV does. An alpha channel is dropped, not composited. The EXIF
    orientation is applied, so the array has the displayed size.

    Every shortened PNG, JPEG, WebP and BMP file that lacks pixels is refused, and every damaged PNG. The others have
    no checksums: bytes changed or lost in the middle, where what is left still reads as whole, cannot be noticed.

    Args:
        path: a regular file: PNG, JPEG, WebP, BMP, TIFF, GIF (no animations) or PNM.
        max_pixels: the largest width x height allowed; checked before anything is decoded.

    Returns:
        (H, W, 3) uint8, blue green red.

    Raises:
        DataError: not a regular file, not an image, too large, cut or damaged.
    """
    return decode_file(path, max_pixels)[0]


def decode_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, ImageHeader, list[str]]:
    """As `read_image`: the pixels, the header, and what is odd about the file."""
    return _decode_file(path, _IMAGE, max_pixels, decoding.decode_bgr)


def read_label(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a label map: a PNG whose samples are class ids (gray of any depth, or palette indices).

    The stored samples are returned, whatever colours a palette gives them; orientation tags are not applied.

    Returns:
        (H, W) uint8 ids, or uint16 where one is above 255.

    Raises:
        DataError: as `read_image`; also for another format, a colour image or an alpha channel.
    """
    return _decode_file(path, _LABEL, max_pixels, decoding.decode_ids)


def read_label_colours(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a label map whose colours stand for classes: (H, W, 3) uint8, red green blue.

    Raises:
        DataError: as `read_label`, but for colours.
    """
    return _decode_file(path, _LABEL, max_pixels, decoding.decode_colours)


def image_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """What the file says of itself, without decoding it.

    Raises:
        DataError: as `read_image`, except for damage that only decoding shows.
    """
    return _decode_file(path, _IMAGE, max_pixels, decoding.read_header)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `read_image`, of a file that is in memory."""
    return _decode(data, "", _IMAGE, max_pixels, decoding.decode_bgr)[0]


def decode_bytes(
    data: bytes, where: str | Path, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, ImageHeader, list[str]]:
    """As `decode_file`, of a file that is in memory; `where` is what an error names."""
    return _decode(data, where, _IMAGE, max_pixels, decoding.decode_bgr)


def check_image(data: bytes, max_pixels: int = MAX_PIXELS, where: str | Path = "") -> ImageHeader:
    """As `image_header`, of a file that is in memory."""
    return _decode(data, where, _IMAGE, max_pixels, decoding.read_header)


def read_bytes(
    path: str | Path,
    max_pixels: int = MAX_PIXELS,
    first: int = 0,
    count: int | None = None,
    where: str | Path = "",
    what: str = _IMAGE,
) -> bytes:
    """The bytes of an image file, not yet decoded; of an archive, `count` bytes of it, which are called `where`.

    Raises:
        DataError: no regular file, empty, cannot be read, or larger than any image of `max_pixels`.
    """
    largest, where = _BYTES_PER_PIXEL * max_pixels + _BYTES_SPARE, where or path
    with open_regular(path, what, kind=DataError, unreadable=DataError) as file:
        size = os.fstat(file.fileno()).st_size if count is None else count
        if size > largest:
            why = f"the file has {size:,} bytes, more than {max_pixels:,} pixels can need"
            raise DataError(what, where=where, why=why, hint="Is it an image? If so, raise --max-pixels.")
        try:
            file.seek(first)
            data = file.read(largest if count is None else count)
        except OSError as error:
            raise DataError(what, where=where, why=error.strerror or str(error)) from error
    if not data:
        raise DataError(what, where=where, why="the file is empty", hint="Fetch or export it again.")
    return data


def write_png(path: str | Path, array: np.ndarray, palette: np.ndarray | None = None) -> Path:
    """Writes what `encode_png` gives, whole or not at all; the folder is created, an existing file replaced.

    Raises:
        ResourceError: the file cannot be written.
    """
    return atomic_write(path, encode_png(array, palette))


def encode_png(array: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """The bytes of a PNG file; the same array gives the same bytes.

    Args:
        array: (H, W) uint8 or uint16 gray, or (H, W, 3) uint8 blue green red.
        palette: (N, 3) uint8 red green blue, N <= 256: `array` (H, W) uint8 becomes palette indices.
    """
    if palette is not None:
        return png.encode_indices(array, palette)
    # deflate looks for runs only: smaller than by its search for all but flat colours, in two thirds of the time
    runs = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(array), runs)
    if not done:
        raise ValueError(f"OpenCV cannot encode an array of shape {array.shape} and dtype {array.dtype} as PNG")
    return encoded.tobytes()


def _decode_file(path: str | Path, what: str, max_pixels: int, decode: Callable[[bytes, int], _T]) -> _T:
    return _decode(read_bytes(path, max_pixels, what=what), path, what, max_pixels, decode)


def _decode(data: bytes, where: str | Path, what: str, max_pixels: int, decode: Callable[[bytes, int], _T]) -> _T:
    """`decode` of a file's bytes; what it finds wrong with them becomes a DataError."""
    try:
        return decode(data, max_pixels)
    except Malformed as error:
        raise DataError(what, where=where, why=str(error), hint=error.hint) from error
