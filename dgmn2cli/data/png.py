"""PNG files: a walk over the chunks that finds cuts and damage before the pixels are decoded, and a writer.

All raise `Malformed` for what is cut or damaged.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dgmn2cli.data.formats import FETCH_AGAIN, ONE_FRAME, Malformed

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, PALETTE = 0, 3
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DECISIVE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


@dataclass(frozen=True)
class Png:
    """A PNG file whose chunks are all there, with right checksums; its pixels are not unpacked yet."""

    width: int  # as stored
    height: int
    depth: int  # bits per sample: 1, 2, 4, 8 or 16
    color_type: int  # 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha
    interlaced: bool  # in Adam7 order
    data: bytes  # the file with nothing but the chunks that determine its colours
    exif: bytes  # the EXIF block; empty if there is none


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header alone: what may be asked before the rest is looked at."""
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise Malformed("its header is cut or damaged", FETCH_AGAIN)
    if zlib.crc32(data[12:29]) != struct.unpack_from(">I", data, 29)[0]:
        raise Malformed("its header is damaged (checksum)", FETCH_AGAIN)
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < width < 1 << 31 or not 0 < height < 1 << 31:
        raise Malformed(f"its size is {width}x{height}", FETCH_AGAIN)
    return width, height


def parse_png(data: bytes) -> Png:
    """Walks over every chunk of a PNG file up to its end mark."""
    width, height = png_size(data)
    kept, position, kind, exif = [SIGNATURE], 8, b"", b""
    most = 2 * height * (1 + 8 * width) + 4096  # bytes that pixels of 64 bits can take, however badly packed
    while kind != b"IEND":
        if position + 12 > len(data):
            raise Malformed("the file is cut: its end mark is missing", FETCH_AGAIN)
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise Malformed(f"the file is cut inside its {kind.decode('latin-1')} chunk", FETCH_AGAIN)
        body = memoryview(data)[position + 4 : end - 4]
        if zlib.crc32(body) != struct.unpack_from(">I", data, end - 4)[0]:
            why = f"its {kind.decode('latin-1')} chunk at byte {position} is damaged (checksum)"
            raise Malformed(why, FETCH_AGAIN)
        if kind in _DECISIVE:
            kept.append(data[position:end])
            most -= length
            if most < 0:
                raise Malformed("it holds far more than the pixels that its header promises", FETCH_AGAIN)
        elif kind == b"eXIf":
            exif = bytes(body[4:])
        elif kind == b"acTL":
            raise Malformed("it is an animation", ONE_FRAME)
        position = end
    return Png(width, height, data[24], data[25], data[28] != 0, b"".join(kept), exif)


def require_all_rows(png: Png) -> None:
    """Refuses a file whose packed pixels come to a regular end before the last row.

    Unpacks them in small steps, keeping none; rows that are there need no such check.
    """
    bits, wanted, got = png.depth * _CHANNELS.get(png.color_type, 1), 0, 0
    for x, y, step_x, step_y in _PASSES if png.interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(png.width - x) // step_x), -(-(png.height - y) // step_y)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + (columns * bits + 7) // 8)  # each row has its filter byte
    inflate, position = zlib.decompressobj(), len(SIGNATURE)
    try:
        while got < wanted and not inflate.eof and position < len(png.data):
            length, kind = struct.unpack_from(">I4s", png.data, position)
            pending = png.data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
            while pending and got < wanted and not inflate.eof:
                got += len(inflate.decompress(pending, 1 << 20))
                pending = inflate.unconsumed_tail
            position += 12 + length
    except zlib.error as error:
        raise Malformed(f"its pixels are damaged after {got} of {wanted} bytes", FETCH_AGAIN) from error
    if got < wanted:
        raise Malformed(f"the file is cut: {got} of {wanted} bytes of pixels", FETCH_AGAIN)


def encode_indices(ids: np.ndarray, palette: np.ndarray) -> bytes:
    """A palette PNG: `ids` (H, W) uint8 as 8-bit indices, `palette` (N, 3) uint8 RGB, N up to 256.

    Ids beyond the palette are black. The same arrays give the same bytes with the same zlib.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image, file = Image.fromarray(ids), io.BytesIO()
    image.putpalette(colors[: max(int(ids.max(initial=0)) + 1, len(palette))].tobytes())
    image.save(file, "PNG", bits=8, compress_level=6)
    return file.getvalue()
