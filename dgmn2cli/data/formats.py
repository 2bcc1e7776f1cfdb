"""Owns what an image file says of itself, before anything is decoded: format, size, orientation."""

from __future__ import annotations

import struct
from dataclasses import dataclass


class Malformed(ValueError):  # noqa: N818
    """The bytes are not a complete image of their format; the message says why. Never leaves `dgmn2cli.data`."""


@dataclass(frozen=True)
class ImageHeader:
    """The facts in an image file's header.

    Attributes:
        format: "PNG", "JPEG", "WebP" or "BMP".
        width, height: as stored, in pixels, before the orientation is applied.
        orientation: EXIF orientation 1 to 8; 1 where none is given.
    """

    format: str
    width: int
    height: int
    orientation: int = 1


_KNOWN = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"BM", "BMP"))
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not fetched (`git lfs pull`)"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a BigTIFF"),
    (b"MM\0+", "a BigTIFF"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"8BPS", "a Photoshop file"),
)


def sniff(head: bytes) -> str:
    """The format of a file that starts with `head` (32 bytes suffice).

    Raises:
        Malformed: none of PNG, JPEG, WebP, BMP; the message names what it is where that can be told.
    """
    for magic, name in _KNOWN:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    raise Malformed(f"it is {_foreign(head)}, not a PNG, JPEG, WebP or BMP image")


def _foreign(head: bytes) -> str:
    """A phrase for a file that is no image this program reads."""
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("latin-1")
        return "a HEIF or AVIF image" if brand[:3] in ("hei", "hev", "mif", "avi") else "a video"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page"
    if text.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG document"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return "of an unknown format"


def exif_orientation(exif: bytes) -> int:
    """The orientation (tag 0x0112) of an EXIF block: a TIFF header and its first directory; 1 if unreadable."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 1
    start = struct.unpack_from(order + "I", exif, 4)[0]
    if start + 2 > len(exif):
        return 1
    entries = struct.unpack_from(order + "H", exif, start)[0]
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == 0x0112 and kind == 3 and count == 1:
            return value if 1 <= value <= 8 else 1
    return 1


def webp_header(data: bytes) -> ImageHeader:
    """Size and orientation of a still WebP file; its RIFF chunks must all be complete.

    Raises:
        Malformed: a chunk is cut, the file is an animation, or there is no picture in it.
    """
    end = 8 + struct.unpack_from("<I", data.ljust(12), 4)[0]
    if end > len(data):
        raise Malformed(f"the file is cut: {len(data)} bytes of {end}")
    size: tuple[int, int] | None = None
    orientation, position = 1, 12
    while position + 8 <= end:
        kind, length = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        body = data[position + 8 : position + 8 + min(length, 10)]
        if position + 8 + length > end:
            raise Malformed(f"its {kind.decode('latin-1').strip()} chunk is cut")
        if kind in (b"ANIM", b"ANMF"):
            raise Malformed("it is an animation; save one frame of it")
        if kind == b"VP8 " and len(body) == 10:
            size = struct.unpack_from("<H", body, 6)[0] & 0x3FFF, struct.unpack_from("<H", body, 8)[0] & 0x3FFF
        elif kind == b"VP8L" and len(body) >= 5:
            bits = struct.unpack_from("<I", body, 1)[0]
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            exif = data[position + 8 : position + 8 + length]
            orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        position += 8 + length + (length & 1)
    if size is None:
        raise Malformed("it holds no picture (no VP8 chunk)")
    return ImageHeader("WebP", size[0], size[1], orientation)


def bmp_header(data: bytes) -> ImageHeader:
    """Size of an uncompressed BMP file, all of whose rows must be there.

    Raises:
        Malformed: the file is cut, or its pixels are compressed.
    """
    if len(data) < 54:
        raise Malformed("its header is cut")
    offset, info = struct.unpack_from("<II", data, 10)
    if info < 40:
        raise Malformed("it is an OS/2 bitmap")
    width, height, _planes, depth, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (0, 3):
        raise Malformed("its pixels are compressed")
    if width <= 0 or height == 0:
        raise Malformed(f"its size is {width}x{height}")
    needed = offset + (width * depth + 31) // 32 * 4 * abs(height)
    if needed > len(data):
        raise Malformed(f"the file is cut: {len(data)} bytes of {needed}")
    return ImageHeader("BMP", width, abs(height))
