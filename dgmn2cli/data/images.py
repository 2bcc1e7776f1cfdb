"""Owns image files: strict decoding of pictures and labels (nothing cut, nothing guessed), and writing PNGs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import cv2
import numpy as np

from dgmn2cli.data import jpeg_pixels, png
from dgmn2cli.data.formats import ImageHeader, Malformed, bmp_header, sniff, webp_header
from dgmn2cli.data.jpeg import jpeg_size, parse_jpeg
from dgmn2cli.errors import DataError
from dgmn2cli.files import atomic_write

MAX_PIXELS = 100_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BYTES_PER_PIXEL, _BYTES_SPARE = 8, 1 << 26  # a file larger than 16-bit RGBA plus 64 MiB is no honest image
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, *, thorough: bool = True) -> np.ndarray:
    """Decodes a picture exactly as OpenCV's colour decoding does (the published protocol), but refuses damage.

    Gray, palette, 1- to 16-bit and CMYK pictures become 8-bit BGR: gray is repeated, a palette is looked up,
    16 bits keep their upper byte, CMYK is converted as OpenCV does. An alpha channel is dropped, not composited.
    The EXIF orientation is applied, so the array has the displayed size.

    Every shortened file is refused, and every damaged PNG. JPEG, WebP and BMP have no checksums: bytes changed or lost
    in the middle of their pixels, where what is left still reads as a whole picture, cannot be noticed.

    Args:
        path: a regular file: PNG, JPEG, WebP (still) or BMP.
        max_pixels: the largest width x height allowed; checked before anything is decoded.
        thorough: also walk through the compressed pixels (about 0.1 s for a 2-megapixel JPEG, 0.03 s for a PNG), which
            finds a cut that was closed with an end mark. Files checked before, as in training, can do without.

    Returns:
        (H, W, 3) uint8, blue green red.

    Raises:
        DataError: not a regular file, not an image, too large, cut or damaged.
    """
    what = "cannot read the image"
    data = _read_file(path, what, max_pixels)
    try:
        header, decodable = _checked(data, max_pixels, thorough)
        image = _decode(decodable, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, header)
    except Malformed as error:
        raise _refused(what, path, error) from error
    return orient(image, header.orientation)


def read_label(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a label map: a PNG whose samples are class ids (gray of any depth, or palette indices).

    The stored samples are returned, whatever colours a palette gives them; orientation tags are not applied.

    Returns:
        (H, W) uint8 ids.

    Raises:
        DataError: as `read_image`; also for a colour image, an alpha channel, or ids above 255.
    """
    what = "cannot read the label map"
    data = _read_file(path, what, max_pixels)
    try:
        if sniff(data) != "PNG":
            raise Malformed(f"it is a {sniff(data)} file, and label maps must be PNG (one sample per pixel, lossless)")
        _limit(*png.png_size(data), max_pixels)
        label = png.parse_png(data)
        if label.color_type not in (png.GRAY, png.PALETTE):
            raise Malformed("it is a colour image, not a map of class ids; a label PNG is gray or has a palette")
        png.check_pixels(label)
        samples = _decode(png.assemble_png(label, palette_as_gray=True), cv2.IMREAD_UNCHANGED, label.header)
    except Malformed as error:
        raise _refused(what, path, error) from error
    if label.depth == 16:
        if samples.max() > 255:
            why = f"it holds the value {samples.max()}, and class ids end at 255"
            raise DataError(what, where=path, why=why, hint="Is it a map of instances?")
        return samples.astype(np.uint8)
    return samples // np.uint8(255 // ((1 << label.depth) - 1))


def image_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """What the file says of itself, after the checks of its container but without decoding it.

    Raises:
        DataError: as `read_image`, except for damage that only decoding shows.
    """
    what = "cannot read the image"
    data = _read_file(path, what, max_pixels)
    try:
        return _checked(data, max_pixels, thorough=False)[0]
    except Malformed as error:
        raise _refused(what, path, error) from error


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """`image` (H, W, C) as it is displayed, given its EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, *range(2, image.ndim))
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def write_png(path: str | Path, array: np.ndarray, palette: np.ndarray | None = None) -> Path:
    """Writes a PNG whole or not at all; the same array gives the same bytes.

    Args:
        path: the file; its folder is created, an existing file replaced.
        array: (H, W) uint8 or uint16 gray, or (H, W, 3) uint8 blue green red.
        palette: (N, 3) uint8 red green blue, N <= 256: writes `array` (H, W) uint8 as palette indices.

    Raises:
        ResourceError: the file cannot be written.
    """
    if palette is not None:
        return atomic_write(path, png.encode_indices(array, palette))
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(array), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise ValueError(f"OpenCV cannot encode an array of shape {array.shape} and dtype {array.dtype} as PNG")
    return atomic_write(path, encoded.tobytes())


def _read_file(path: str | Path, what: str, max_pixels: int) -> bytes:
    """All bytes of a regular file of a sensible size; nothing else is ever waited on."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                kind = next((name for test, name in _KINDS if test(status.st_mode)), "not a file")
                raise DataError(what, where=path, why=f"it is {kind}", hint="Give a regular image file.")
            largest = _BYTES_PER_PIXEL * max_pixels + _BYTES_SPARE
            if status.st_size > largest:
                why = f"the file has {status.st_size:,} bytes, more than {max_pixels:,} pixels can need"
                raise DataError(what, where=path, why=why, hint="Is it an image? If so, raise --max-pixels.")
            data = file.read(largest)
    except OSError as error:
        raise DataError(what, where=path, why=error.strerror or str(error), hint="Check the path.") from error
    except ValueError as error:  # a NUL byte in the name
        raise DataError(what, where=path, why="the name is not a possible file name") from error
    if not data:
        raise DataError(what, where=path, why="the file is empty", hint="Fetch or export it again.")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe without waiting for its writer, so that it can be refused."""
    return os.open(path, flags | os.O_NONBLOCK)


def _limit(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Malformed(f"it has {width} x {height} = {width * height:,} pixels, more than --max-pixels {max_pixels:,}")


def _checked(data: bytes, max_pixels: int, thorough: bool) -> tuple[ImageHeader, bytes]:
    """The header and the bytes to decode, once all that can be checked without decoding has been."""
    kind = sniff(data[:64])
    if kind == "PNG":
        _limit(*png.png_size(data), max_pixels)
        picture = png.parse_png(data)
        if thorough:
            png.check_pixels(picture)
        return picture.header, png.assemble_png(picture)
    if kind == "JPEG":
        _limit(*jpeg_size(data), max_pixels)
        photograph = parse_jpeg(data)
        if thorough:
            jpeg_pixels.check_pixels(data, photograph)
        return photograph.header, data
    header = webp_header(data) if kind == "WebP" else bmp_header(data)
    _limit(header.width, header.height, max_pixels)
    return header, data


def _decode(data: bytes, flags: int, header: ImageHeader) -> np.ndarray:
    """OpenCV's decoding of bytes already checked; its size must be the header's."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise Malformed(f"its pixels are damaged ({error.err})") from error
    if image is None:
        raise Malformed("its pixels are damaged")
    if image.shape[:2] != (header.height, header.width):
        raise Malformed(
            f"it decodes to {image.shape[1]}x{image.shape[0]}, its header says {header.width}x{header.height}"
        )
    return image


def _refused(what: str, path: str | Path, error: Malformed) -> DataError:
    why = str(error)
    if "--max-pixels" in why:
        hint = "Shrink the image, or raise --max-pixels if the memory suffices."
    elif any(word in why for word in ("cut", "damaged")):
        hint = "Fetch or export the file again."
    else:
        hint = "Convert it to PNG."
    return DataError(what, where=path, why=why, hint=hint)
