"""Owns the walk through a JPEG's Huffman-coded pixels: that every block is there, without computing any of them.

Decoders fill what is missing with gray and go on; here a picture that ends early, or whose codes stop making sense,
is told from a whole one (ITU T.81, sections F.2 and G.2, without the arithmetic on coefficients).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dgmn2cli.data.formats import Malformed
from dgmn2cli.data.jpeg import Jpeg, Scan

_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_SPARE_BYTES = 16  # some encoders leave a few bytes after the last block
_LOOK_BEYOND = 1 << 13  # more bytes than one MCU can take, so that a walk past the end needs no check per symbol
_BLOCK_END, _INVALID = 128, 1024  # added to the advance of an entry
_DAMAGED = "its pixels are damaged"

_Table = tuple[list[int], list[int]]


@dataclass(frozen=True)
class _Plane:
    """One component's blocks: how many lie side by side, in its own size and padded to whole MCUs."""

    columns: int
    rows: int
    padded_columns: int
    mask: list[int]  # per block: bit k set where coefficient k is not zero (progressive only)


@lru_cache(maxsize=64)
def _table(spec: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Code length (0: no such code) and symbol for each 16-bit window, from 16 counts and the symbols."""
    lengths, symbols = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    position, index = 0, 16
    for length in range(1, 17):
        span = 1 << (16 - length)
        for _ in range(spec[length - 1]):
            lengths[position : position + span], symbols[position : position + span] = length, spec[index]
            position, index = position + span, index + 1
    if position > 1 << 16:
        raise Malformed("a Huffman table breaks the standard")
    return lengths, symbols


@lru_cache(maxsize=64)
def _dc_bits(spec: bytes) -> list[int]:
    """Bits that a DC coefficient takes, code and value, for each 16-bit window; 0: no such code."""
    lengths, symbols = _table(spec)
    return np.where((lengths > 0) & (symbols < 16), lengths + symbols, 0).tolist()


@lru_cache(maxsize=64)
def _ac_steps(spec: bytes) -> _Table:
    """For each 16-bit window, `bits + 32 * advance` of all whole symbols in it, and of its first symbol alone.

    The advance counts coefficients; `_BLOCK_END` is added where the last symbol ends the block.
    """
    lengths, symbols = _table(spec)
    run, size = symbols >> 4, symbols & 15
    advance = np.where(size > 0, run + 1, np.where(run == 15, 16, _BLOCK_END))
    bits = lengths + size
    bits[lengths == 0], advance[lengths == 0] = 0, _INVALID
    one_bits, one_advance = bits.copy(), advance.copy()
    window = np.arange(1 << 16)
    for _ in range(7):
        following = (window << np.minimum(bits, 16)) & 0xFFFF
        fits = (advance < _BLOCK_END) & (bits + one_bits[following] <= 16) & (one_bits[following] > 0)
        bits = bits + np.where(fits, one_bits[following], 0)
        advance = advance + np.where(fits, one_advance[following], 0)
    return (bits + 32 * advance).tolist(), (one_bits + 32 * one_advance).tolist()


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)


def check_pixels(data: bytes, jpeg: Jpeg) -> None:
    """Walks all blocks of all scans.

    Raises:
        Malformed: blocks are missing, a code is invalid, or many bytes are left over.
    """
    across, down = max(part.h for part in jpeg.components), max(part.v for part in jpeg.components)
    width, height = jpeg.header.width, jpeg.header.height
    mcus = (_ceil(width, 8 * across), _ceil(height, 8 * down))
    planes = []
    for part in jpeg.components:
        columns, rows = _ceil(_ceil(width * part.h, across), 8), _ceil(_ceil(height * part.v, down), 8)
        blocks = mcus[0] * part.h * mcus[1] * part.v
        planes.append(_Plane(columns, rows, mcus[0] * part.h, [0] * blocks if jpeg.progressive else []))
    _check_completeness(jpeg)
    for scan in jpeg.scans:
        single = len(scan.components) == 1
        plane = planes[scan.components[0][0]]
        count = plane.columns * plane.rows if single else mcus[0] * mcus[1]
        parts = [
            (dc, ac)
            for index, dc, ac in scan.components
            for _ in range(1 if single else jpeg.components[index].h * jpeg.components[index].v)
        ]
        first = 0
        for segment, size in zip(*_segments(data, scan, count), strict=True):
            bits = _Bits(segment)
            if not jpeg.progressive:
                _sequential(bits, scan, parts, size)
            elif scan.spectral[0] == 0:
                _progressive_dc(bits, scan, parts, size)
            elif scan.approximation[0] == 0:
                _progressive_ac(bits, scan, plane, first, size)
            else:
                _refined_ac(bits, scan, plane, first, size)
            first += size


def _check_completeness(jpeg: Jpeg) -> None:
    """Every coefficient of every component must be coded, down to its last bit."""
    accuracy = [[16] * 64 for _ in jpeg.components]
    for scan in jpeg.scans:
        first, last = scan.spectral if jpeg.progressive else (0, 63)
        high, low = scan.approximation if jpeg.progressive else (0, 0)
        if (
            not 0 <= first <= last <= 63
            or (first > 0 and len(scan.components) > 1)
            or (first == 0 < last) != (not jpeg.progressive)
        ):
            raise Malformed("a scan header breaks the standard")
        for index, _, _ in scan.components:
            for k in range(first, last + 1):
                if accuracy[index][k] != (high or 16) or (high and low != high - 1):
                    raise Malformed("its scans are damaged or not in order")
                accuracy[index][k] = low
    if any(any(bits) for bits in accuracy):
        raise Malformed("the file is cut: its last scans are missing")


def _segments(data: bytes, scan: Scan, count: int) -> tuple[list[bytes], list[int]]:
    """The coded bytes between restart markers, without stuffing, and the number of MCUs in each."""
    coded = data[scan.start : scan.end].rstrip(b"\xff")
    pieces = _RESTART.split(coded)
    sizes = [count] if not scan.restart else [scan.restart] * (count // scan.restart)
    if scan.restart and count % scan.restart:
        sizes.append(count % scan.restart)
    if len(pieces[::2]) < len(sizes):
        raise Malformed(f"the file is cut: {len(pieces[::2])} of {len(sizes)} strips of pixels")
    if len(pieces[::2]) > len(sizes) or any(mark[0] != 0xD0 + i % 8 for i, mark in enumerate(pieces[1::2])):
        raise Malformed(f"{_DAMAGED} (restart markers)")
    return [piece.replace(b"\xff\0", b"\xff") for piece in pieces[::2]], sizes


class _Bits:
    """A bit string: `windows[p >> 3] >> 8 - (p & 7) & 0xFFFF` are the 16 bits from position p on."""

    def __init__(self, data: bytes) -> None:
        padded = np.frombuffer(data + bytes(_LOOK_BEYOND), np.uint8).astype(np.uint32)
        windows: np.ndarray = (padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]
        self.windows = windows.data
        self.end = 8 * len(data)

    def check(self, position: int, done: int, count: int) -> None:
        """Raises Malformed where the blocks took more bits than there are."""
        if position > self.end:
            raise Malformed(f"the file is cut: its pixels end after {done} of {count} blocks")

    def finish(self, position: int, count: int) -> None:
        """Raises Malformed where the blocks took more bits than there are, or far fewer."""
        self.check(position, count - 1, count)
        if self.end - position >= 8 * _SPARE_BYTES:
            raise Malformed(f"{_DAMAGED}: {(self.end - position) // 8} bytes are left over after the last block")


def _huffman(scan: Scan, kind: int, index: int) -> bytes:
    if (kind, index) not in scan.tables:
        raise Malformed("a Huffman table is missing")
    return scan.tables[kind, index]


def _sequential(bits: _Bits, scan: Scan, parts: Sequence[tuple[int, int]], count: int) -> None:
    """Baseline and extended: each block is a DC code and AC codes up to an end or to coefficient 63."""
    tables = [(_dc_bits(_huffman(scan, 0, dc)), *_ac_steps(_huffman(scan, 1, ac))) for dc, ac in parts]
    windows, end, p = bits.windows, bits.end, 0
    for done in range(count):
        for dc, many, one in tables:
            step = dc[windows[p >> 3] >> 8 - (p & 7) & 0xFFFF]
            if not step:
                raise Malformed(_DAMAGED)
            p += step
            k = 0  # the last coefficient that is known
            while k < 63:
                window = windows[p >> 3] >> 8 - (p & 7) & 0xFFFF
                step = many[window]
                ahead = k + (step >> 5)
                if ahead > 63 and not _BLOCK_END <= ahead < _BLOCK_END + 63:
                    step = one[window]
                    ahead = k + (step >> 5)
                    if ahead > 63 and not _BLOCK_END <= ahead < _BLOCK_END + 63:
                        raise Malformed(_DAMAGED)
                k = ahead
                p += step & 31
        if p > end:
            bits.check(p, done, count)
    bits.finish(p, count)


def _progressive_dc(bits: _Bits, scan: Scan, parts: Sequence[tuple[int, int]], count: int) -> None:
    """First DC scan: a code and a value per block; a refining one: a bit per block."""
    if scan.approximation[0]:
        bits.finish(count * len(parts), count)
        return
    tables = [_dc_bits(_huffman(scan, 0, dc)) for dc, _ in parts]
    windows, end, p = bits.windows, bits.end, 0
    for done in range(count):
        for dc in tables:
            step = dc[windows[p >> 3] >> 8 - (p & 7) & 0xFFFF]
            if not step:
                raise Malformed(_DAMAGED)
            p += step
        if p > end:
            bits.check(p, done, count)
    bits.finish(p, count)


@lru_cache(maxsize=64)
def _ac_symbols(spec: bytes) -> list[int]:
    """`length + 32 * symbol` for each 16-bit window; 0: no such code."""
    lengths, symbols = _table(spec)
    return np.where(lengths > 0, lengths + 32 * symbols, 0).tolist()


def _block_index(plane: _Plane, number: int) -> int:
    """Where block `number` of a scan of one component lies among the blocks padded to whole MCUs."""
    return number // plane.columns * plane.padded_columns + number % plane.columns


def _progressive_ac(bits: _Bits, scan: Scan, plane: _Plane, first: int, count: int) -> None:
    """First AC scan of a band: notes which coefficients are not zero, for the refining scans."""
    table = _ac_symbols(_huffman(scan, 1, scan.components[0][2]))
    start, last = scan.spectral
    windows, end, p, ended = bits.windows, bits.end, 0, 0
    for number in range(first, first + count):
        if ended:
            ended -= 1
            continue
        k, found = start, 0
        while k <= last:
            entry = table[windows[p >> 3] >> 8 - (p & 7) & 0xFFFF]
            p += entry & 31
            run, size = entry >> 9, entry >> 5 & 15
            if size:
                k += run
                found |= 1 << k
                k += 1
                p += size
            elif run == 15:
                k += 16
            elif not entry:
                raise Malformed(_DAMAGED)
            else:
                ended = (1 << run) - 1 + (windows[p >> 3] >> 8 - (p & 7) & 0xFFFF) * (1 << run) // 65536
                p += run
                break
        if k > last + 1:
            raise Malformed(_DAMAGED)
        plane.mask[_block_index(plane, number)] |= found
        if p > end:
            bits.check(p, number - first, count)
    if ended:
        raise Malformed(_DAMAGED)
    bits.finish(p, count)


def _refined_ac(bits: _Bits, scan: Scan, plane: _Plane, first: int, count: int) -> None:
    """Refining AC scan: a bit for each coefficient known not to be zero, and codes for new ones among the others."""
    table = _ac_symbols(_huffman(scan, 1, scan.components[0][2]))
    start, last = scan.spectral
    band = (2 << last) - (1 << start)
    windows, end, p, ended = bits.windows, bits.end, 0, 0
    for number in range(first, first + count):
        block = _block_index(plane, number)
        known = plane.mask[block] & band
        left = band  # the coefficients not yet passed
        while left and not ended:
            entry = table[windows[p >> 3] >> 8 - (p & 7) & 0xFFFF]
            p += entry & 31
            run, size = entry >> 9, entry >> 5 & 15
            if not entry or size > 1:
                raise Malformed(_DAMAGED)
            if not size and run < 15:
                ended = (1 << run) + (windows[p >> 3] >> 8 - (p & 7) & 0xFFFF) * (1 << run) // 65536
                p += run
                break
            p += size
            zeros = left & ~known
            for _ in range(run):
                zeros &= zeros - 1
            if not zeros and size:
                raise Malformed(_DAMAGED)
            place = zeros & -zeros  # where the run stops; 0: a run of zeros that reaches past the last coefficient
            passed = left & (place - 1) if place else left
            p += (passed & known).bit_count()
            left &= ~(passed | place)
            if size:
                plane.mask[block] |= place
        if ended:
            p += (left & known).bit_count()
            ended -= 1
        if p > end:
            bits.check(p, number - first, count)
    if ended:
        raise Malformed(_DAMAGED)
    bits.finish(p, count)
