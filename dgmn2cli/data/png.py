"""Owns the PNG container: a complete check of a file before it is decoded, and a writer for palette images."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from dgmn2cli.data.formats import ImageHeader, Malformed, exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}
_DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATE_STEP = 1 << 20


@dataclass(frozen=True)
class Png:
    """A PNG file whose chunks are all there, with right checksums; its pixels are not unpacked yet.

    Attributes:
        header: size and orientation.
        depth: bits per sample: 1, 2, 4, 8 or 16.
        color_type: one of GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA.
        interlaced: Adam7 order.
        palette: the PLTE bytes, RGB triples; empty where there is none.
        idat: the compressed pixels, all IDAT chunks joined.
    """

    header: ImageHeader
    depth: int
    color_type: int
    interlaced: bool
    palette: bytes
    idat: bytes


def _ihdr(data: bytes) -> tuple[int, int, int, int, bool]:
    """Width, height, depth, colour type and interlacing of the first chunk."""
    if len(data) < 33 or data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\r":
        raise Malformed("its header is cut or damaged")
    width, height, depth, color, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if zlib.crc32(data[12:29]) != struct.unpack_from(">I", data, 29)[0]:
        raise Malformed("its header is damaged (checksum)")
    known = color in _DEPTHS and depth in _DEPTHS[color] and compression == filtering == 0 and interlace in (0, 1)
    if not known or not 0 < width < 1 << 31 or not 0 < height < 1 << 31:
        raise Malformed("its header breaks the PNG standard")
    return width, height, depth, color, bool(interlace)


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header alone: what may be asked before the rest is looked at."""
    return _ihdr(data)[:2]


def parse_png(data: bytes) -> Png:
    """Walks every chunk of a PNG file up to its end mark.

    Raises:
        Malformed: a chunk is cut, a checksum is wrong, or the file is an animation.
    """
    width, height, depth, color, interlaced = _ihdr(data)
    idat: list[bytes] = []
    palette, orientation, position, previous = b"", 1, 8, b""
    while previous != b"IEND":
        if position + 12 > len(data):
            raise Malformed("the file is cut: its end mark is missing")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise Malformed(f"the file is cut: its {kind.decode('latin-1')} chunk lacks {end + 4 - len(data)} bytes")
        body = data[position + 8 : end]
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end)[0]:
            raise Malformed(f"its {kind.decode('latin-1')} chunk at byte {position} is damaged (checksum)")
        if kind == b"IDAT":
            if idat and previous != b"IDAT":
                raise Malformed("its pixel chunks are not in one run")
            idat.append(body)
        elif kind == b"PLTE":
            palette = body
        elif kind == b"eXIf":
            orientation = exif_orientation(body)
        elif kind == b"acTL":
            raise Malformed("it is an animation; save one frame of it")
        elif not kind[0] & 32 and kind not in (b"IHDR", b"IEND"):
            raise Malformed(f"it has an unknown critical chunk {kind!r}")
        position, previous = end + 4, kind
    if not idat:
        raise Malformed("it holds no pixels")
    if color == PALETTE and (not palette or len(palette) % 3):
        raise Malformed("its palette is missing or cut")
    header = ImageHeader("PNG", width, height, orientation)
    return Png(header, depth, color, interlaced, palette, b"".join(idat))


def check_pixels(png: Png) -> None:
    """Unpacks the pixels in small steps, keeping none, to see that exactly the promised number is there.

    Raises:
        Malformed: the compressed stream is cut or damaged.
    """
    expected, got = _raw_bytes(png), 0
    inflate = zlib.decompressobj()
    pending = png.idat
    try:
        while not inflate.eof and got <= expected:
            piece = inflate.decompress(pending, _INFLATE_STEP)
            pending = inflate.unconsumed_tail
            if not piece and not pending:
                break
            got += len(piece)
    except zlib.error as error:
        raise Malformed(f"its pixels are damaged after {got} of {expected} bytes") from error
    if got < expected or (got == expected and not inflate.eof):
        raise Malformed(f"the file is cut: {got} of {expected} bytes of pixels")
    if got > expected:
        raise Malformed(f"it holds more pixels than its header says ({expected} bytes)")


def _raw_bytes(png: Png) -> int:
    """Bytes of the unpacked stream: each row has its filter byte; Adam7 has up to seven small images."""
    bits = png.depth * _CHANNELS[png.color_type]
    width, height = png.header.width, png.header.height
    total = 0
    for x, y, step_x, step_y in _PASSES if png.interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def assemble_png(png: Png, *, palette_as_gray: bool = False) -> bytes:
    """The file again with nothing but what determines its pixels.

    Args:
        palette_as_gray: declare palette indices as gray samples, so that a decoder gives the indices themselves
            (scaled by 255 / (2**depth - 1), as it does with any gray image of a small depth).
    """
    color = GRAY if palette_as_gray and png.color_type == PALETTE else png.color_type
    size = (png.header.width, png.header.height)
    palette = png.palette if color == PALETTE else b""
    return _file(size, png.depth, color, png.interlaced, palette, png.idat)


def encode_indices(ids: np.ndarray, palette: np.ndarray) -> bytes:
    """A palette PNG: `ids` (H, W) uint8 as 8-bit indices, `palette` (N, 3) uint8 RGB, N up to 256.

    Ids beyond the palette are black. The same arrays give the same bytes with the same zlib.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    used = max(int(ids.max(initial=0)) + 1, len(palette))
    rows = np.zeros((ids.shape[0], ids.shape[1] + 1), np.uint8)  # filter byte 0 (none) before each row
    rows[:, 1:] = ids
    size = (ids.shape[1], ids.shape[0])
    return _file(size, 8, PALETTE, False, colors[:used].tobytes(), zlib.compress(rows.tobytes(), 6))


def _file(size: tuple[int, int], depth: int, color: int, interlaced: bool, palette: bytes, idat: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", idat), (b"IEND", b"")]
    if palette:
        chunks.insert(1, (b"PLTE", palette))
    parts = [SIGNATURE]
    for kind, body in chunks:
        parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))]
    return b"".join(parts)
