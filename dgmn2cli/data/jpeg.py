"""Owns the JPEG container: a walk over the markers that finds the size, the orientation and any cut."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from dgmn2cli.data.formats import ImageHeader, Malformed, exif_orientation

_SOI, _EOI, _SOS, _DHT, _DRI, _DNL, _APP1 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD, 0xDC, 0xE1
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


@dataclass(frozen=True)
class Component:
    """One colour plane of the frame: its id and its sampling factors."""

    id: int
    h: int
    v: int


@dataclass(frozen=True)
class Scan:
    """One scan: what it codes and where its entropy-coded bytes are.

    Attributes:
        components: (index into the frame's components, DC table, AC table) for each.
        spectral: first and last coefficient.
        approximation: successive approximation, high and low bit.
        tables: the Huffman tables in force, by (class, id): 16 counts and the symbols.
        restart: MCUs between restart markers; 0 for none.
        start, end: the range of the coded bytes, restart markers included.
    """

    components: tuple[tuple[int, int, int], ...]
    spectral: tuple[int, int]
    approximation: tuple[int, int]
    tables: dict[tuple[int, int], bytes]
    restart: int
    start: int
    end: int


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file that has all its markers up to the end mark; its coded pixels are not looked into yet."""

    header: ImageHeader
    progressive: bool
    components: tuple[Component, ...]
    scans: tuple[Scan, ...] = ()


@dataclass
class _Walk:
    """What the markers met so far have said."""

    frame: tuple[bool, int, int, tuple[Component, ...]] | None = None
    orientation: int = 1
    restart: int = 0
    tables: dict[tuple[int, int], bytes] = field(default_factory=dict)
    scans: list[Scan] = field(default_factory=list)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height from the frame header, before anything after it is looked at.

    Raises:
        Malformed: there is no readable frame header.
    """
    for marker, start, end in _segments(data):
        if marker in _FRAMES or marker in _OTHER_FRAMES:
            _progressive, width, height, _components = _frame(marker, data[start:end])
            return width, height
    raise Malformed("it has no frame header")


def parse_jpeg(data: bytes) -> Jpeg:
    """Walks every marker from the start to the end mark; bytes after that are allowed.

    Raises:
        Malformed: the file is cut, a segment breaks the standard, or the coding is one that is not read here
            (arithmetic, lossless, hierarchical, 12 bits).
    """
    walk = _Walk()
    for marker, start, end in _segments(data):
        body = data[start:end]
        if marker in _FRAMES or marker in _OTHER_FRAMES:
            if walk.frame is not None:
                raise Malformed("it has two frames")
            walk.frame = _frame(marker, body)
        elif marker == _DHT:
            _huffman_tables(body, walk.tables)
        elif marker == _DRI and len(body) == 2:
            walk.restart = struct.unpack(">H", body)[0]
        elif marker == _APP1 and body.startswith(b"Exif\0\0") and walk.orientation == 1:
            walk.orientation = exif_orientation(body[6:])
        elif marker == _DNL:
            raise Malformed("it gives its height after the pixels (DNL), which is not read here")
        elif marker == _SOS:
            walk.scans.append(_scan(walk, body, end, _coded_end(data, end)))
    if walk.frame is None or not walk.scans:
        raise Malformed("it holds no picture")
    progressive, width, height, components = walk.frame
    header = ImageHeader("JPEG", width, height, walk.orientation)
    return Jpeg(header, progressive, components, tuple(walk.scans))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of each marker segment's body up to the end mark, stepping over coded pixels."""
    position = 2
    while True:
        while data[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        if position + 2 > len(data):
            raise Malformed("the file is cut: its end mark is missing")
        if data[position] != 0xFF:
            raise Malformed(f"a marker is missing at byte {position}")
        marker = data[position + 1]
        if marker == _EOI:
            return
        if position + 4 > len(data):
            raise Malformed("the file is cut: its end mark is missing")
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        if end < position + 4:
            raise Malformed(f"the segment at byte {position} is damaged")
        if end > len(data):
            raise Malformed("the file is cut inside its header")
        yield marker, position + 4, end
        position = _coded_end(data, end) if marker == _SOS else end


def _coded_end(data: bytes, position: int) -> int:
    """Where the entropy-coded bytes that start at `position` end: at the next marker that is no restart marker."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise Malformed("the file is cut: its end mark is missing")
        following = data[position + 1]
        if following == 0xFF:
            position += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            position += 2
        else:
            return position


def _frame(marker: int, body: bytes) -> tuple[bool, int, int, tuple[Component, ...]]:
    """Progressive or not, width, height and components of a frame header."""
    if marker in _OTHER_FRAMES:
        raise Malformed("it is coded losslessly, arithmetically or hierarchically, which is not read here")
    if len(body) < 6:
        raise Malformed("its frame header is cut")
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8:
        raise Malformed(f"it has {precision} bits per sample; only 8 are read here")
    if not width or not height or count not in (1, 3, 4) or len(body) != 6 + 3 * count:
        raise Malformed("its frame header breaks the standard")
    components = tuple(Component(body[i], body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, len(body), 3))
    if any(not 1 <= side <= 4 for part in components for side in (part.h, part.v)):
        raise Malformed("its frame header breaks the standard")
    return marker == 0xC2, width, height, components


def _huffman_tables(body: bytes, tables: dict[tuple[int, int], bytes]) -> None:
    """Adds the tables of a DHT segment, each as its 16 counts and then its symbols."""
    position = 0
    while position < len(body):
        counts = body[position + 1 : position + 17]
        end = position + 17 + sum(counts)
        if len(counts) < 16 or end > len(body) or sum(counts) > 256:
            raise Malformed("a Huffman table is cut")
        tables[body[position] >> 4, body[position] & 15] = body[position + 1 : end]
        position = end


def _scan(walk: _Walk, body: bytes, start: int, end: int) -> Scan:
    """The scan whose header is `body` and whose coded bytes are `start` to `end`."""
    if walk.frame is None:
        raise Malformed("a scan comes before the frame header")
    ids = [component.id for component in walk.frame[3]]
    count = body[0] if body else 0
    if not 1 <= count <= len(ids) or len(body) != 4 + 2 * count:
        raise Malformed("a scan header breaks the standard")
    parts = []
    for i in range(1, 1 + 2 * count, 2):
        if body[i] not in ids:
            raise Malformed("a scan names a component that the frame lacks")
        parts.append((ids.index(body[i]), body[i + 1] >> 4, body[i + 1] & 15))
    first, last, bits = body[-3:]
    return Scan(tuple(parts), (first, last), (bits >> 4, bits & 15), dict(walk.tables), walk.restart, start, end)
