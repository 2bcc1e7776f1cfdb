"""JPEG files: decoding that refuses what is cut or damaged, and reads whole pixels in odd containers.

All raise `Malformed` for what is cut or damaged, as far as it can be told.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from dgmn2cli.data.formats import FETCH_AGAIN, Malformed

_SOI, _EOI, _SOS, _DHT, _DQT, _DRI, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECISIVE = _FRAMES | {_SOS, _DHT, _DQT, _DRI, _APP0, _APP14}  # the segments that determine the pixels
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # the first marker after coded pixels that is no restart
_EXIF = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
_EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_UNUSUAL = "subsampling"  # in the complaint of simplejpeg, which knows only some of the ways to halve colours
_MOST_SCANS = 500
_BIT_BUFFER = 16  # bytes that the decoder may have taken in beyond those it needed


@dataclass(frozen=True)
class _Cleaned:
    """A JPEG file without what does not determine its pixels."""

    data: bytes  # the file, always with an end mark
    ended: bool  # whether it had one
    size: tuple[int, int]  # width and height
    progressive: bool
    scans: tuple[tuple[bytes, int, int, int], ...]  # components, first and last coefficient, lowest bit that is coded


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header."""
    return _header(data)[0]


def _header(data: bytes) -> tuple[tuple[int, int], str]:
    """Width and height, and the kind of colours; empty where simplejpeg does not know how they are sampled."""
    try:
        height, width, colors, _sampling = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:
        if _UNUSUAL in str(error) and min(size := _cleaned(data).size) > 0:
            return size, ""
        raise Malformed(f"the file is cut inside its header, or damaged there ({error})", FETCH_AGAIN) from error
    return (width, height), colors


def jpeg_exif(data: bytes) -> bytes:
    """The EXIF block; empty if there is none."""
    found = _EXIF.search(data, 0, max(data.find(b"\xff\xda"), 0))
    if found is None:
        return b""
    length = struct.unpack_from(">H", data, found.start() + 2)[0]
    return data[found.end() : found.start() + 2 + length]


def decode_jpeg(data: bytes) -> tuple[np.ndarray, str]:
    """The pixels (H, W, 3) uint8, blue green red, as libjpeg-turbo decodes them; and what is odd, if anything."""
    cleaned = _cleaned(data) if b"\xff\xc2" in data else None
    if cleaned is not None and len(cleaned.scans) > _MOST_SCANS:
        raise Malformed(f"it has {len(cleaned.scans)} scans, each of which takes as long as a whole image", FETCH_AGAIN)
    try:
        image, note = _strict(data), ""
    except ValueError as error:
        image, note = _decode_odd(cleaned or _cleaned(data), str(error))
    if cleaned is not None and cleaned.progressive:
        _require_finished(cleaned)
    return image, note


def _strict(data: bytes) -> np.ndarray:
    """Pixels of a file that the decoder has nothing to say about; ValueError if it has."""
    colors = _header(data)[1]
    if not colors:
        return _by_pillow(data)
    if colors not in ("CMYK", "YCCK"):
        return simplejpeg.decode_jpeg(data, "BGR", strict=True)
    return _bgr_of_inks(simplejpeg.decode_jpeg(data, "CMYK", strict=True))


def _bgr_of_inks(inks: np.ndarray) -> np.ndarray:
    """(H, W, 3) blue green red of (H, W, 4) inverted CMYK, as OpenCV converts it."""
    black = inks[..., 3:].astype(np.int32)
    return (black - ((255 - inks[..., 2::-1].astype(np.int32)) * black >> 8)).astype(np.uint8)


def _by_pillow(data: bytes) -> np.ndarray:
    """Pixels of a file that simplejpeg does not know the colour sampling of: cuts are found, less of other damage."""
    try:
        with JpegImageFile(io.BytesIO(data)) as image:
            pixels = np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error
    return _bgr_of_inks(255 - pixels) if pixels.shape[2] == 4 else pixels[..., ::-1].copy()


def _decode_odd(cleaned: _Cleaned, complaint: str) -> tuple[np.ndarray, str]:
    """Pixels of a file that the decoder complains about, if they are whole nevertheless; and a note."""
    try:
        return _strict(cleaned.data), f"all its pixels are there, but its container is odd ({complaint})"
    except ValueError as error:
        extra = _EXTRA.search(str(error))
        image = _without_extra(cleaned.data[:-2], int(extra[1])) if extra and cleaned.ended else None
        if image is None:
            cut = not cleaned.ended or not cleaned.scans or "Premature end" in complaint
            why = "the file is cut" if cut else "its pixels are damaged"
            raise Malformed(f"{why} ({complaint})", FETCH_AGAIN) from error
    return image, f"all its pixels are there, and {extra[1]} more bytes ({complaint})"  # type: ignore[index]


def _without_extra(coded: bytes, extra: int) -> np.ndarray | None:
    """The pixels of `coded`, a file up to its end mark with about `extra` bytes too many; None if they may be pixels.

    After damage, too, the decoder may be done before the bytes are. Whole pixels end with a byte that is filled up
    with ones; where the decoder is done too early, what follows in that byte is mostly something else.
    """
    end, image = len(coded) - extra, None
    while end > len(coded) - extra - _BIT_BUFFER:
        try:
            image = _strict(coded[:end] + b"\xff\xd9")
        except ValueError:
            break
        end -= 1
    if image is None or end <= 0:
        return None
    last = coded[end]
    lowest_zero = ~last & (last + 1)
    if lowest_zero > 0xFF:
        return image
    try:
        changed = _strict(coded[:end] + bytes([last ^ lowest_zero]) + b"\xff\xd9")
    except ValueError:
        return image
    return None if np.array_equal(changed, image) else image


def _cleaned(data: bytes) -> _Cleaned:
    """Walks over the markers up to the end mark, or the end of the file."""
    kept, scans, progressive, position, ended, size = [b"\xff\xd8"], [], False, 2, False, (0, 0)
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker == _EOI:
            ended = True
            break
        if marker in (0, 1, _SOI, 0xFF) or 0xD0 <= marker <= 0xD7:  # stuffing, restarts: bytes between segments
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data) or end < position + 4:
            raise Malformed("the file is cut inside its header, or damaged there", FETCH_AGAIN)
        segment = data[position:end]
        progressive = progressive or marker == 0xC2
        if marker == _SOS:
            first, last, bits = segment[-3:] if progressive else (0, 63, 0)
            scans.append((segment[5:-3:2], first, last, bits & 15))
            after = _AFTER_SCAN.search(data, end)
            stop = after.start() if after else len(data) - data.endswith(b"\xff")
            kept += [segment[:-3], bytes((first, last, bits)), data[end:stop]]
            end = stop
        elif marker in _DECISIVE:
            if marker in _FRAMES:
                size = int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7])
            kept.append(segment)
        position = end
    return _Cleaned(b"".join([*kept, b"\xff\xd9"]), ended, size, progressive, tuple(scans))


def _require_finished(cleaned: _Cleaned) -> None:
    """Refuses a progressive file that begins coefficients without their last bits: it is cut between two scans.

    Coefficients that no scan begins are allowed where the end mark is there: some encoders leave out colour detail.
    """
    lowest: dict[tuple[int, int], int] = {}
    for components, first, last, bit in cleaned.scans:
        lowest |= {(component, index): bit for component in components for index in range(first, last + 1)}
    count = len({component for component, _ in lowest})
    missing = not cleaned.ended and len(lowest) < 64 * count
    if missing or any(lowest.values()):
        raise Malformed("the file is cut between two of its scans", FETCH_AGAIN)
