"""The walk through JPEG pixels accepts every whole file, and no file that lacks a byte of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dgmn2cli.data.formats import Malformed
from dgmn2cli.data.jpeg import parse_jpeg
from dgmn2cli.data.jpeg_pixels import check_pixels

RNG = np.random.default_rng(11)


def picture(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    waves = 90 * np.sin(rows / 9)[..., None] + 60 * np.cos(columns / 13)[..., None] * [1, 0.5, -1]
    return Image.fromarray(np.clip(waves + RNG.normal(128, 15, (height, width, 3)), 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def is_whole(data: bytes) -> bool:
    try:
        check_pixels(data, parse_jpeg(data))
    except Malformed:
        return False
    return True


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "optimised": {"optimize": True, "quality": 35},
    "progressive": {"progressive": True, "quality": 90},
    "restart blocks": {"restart_marker_blocks": 3},
    "restart rows, progressive": {"restart_marker_rows": 1, "progressive": True},
    "quality 100": {"quality": 100},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_files_are_accepted(mode: str, variant: str) -> None:
    for size in ((8, 8), (1, 1), (17, 33), (70, 45)):
        for subsampling in (0, 1, 2):
            assert is_whole(encode(picture(*size).convert(mode), subsampling=subsampling, **VARIANTS[variant]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_at_any_byte_is_found_even_when_closed_with_an_end_mark(variant: str) -> None:
    data = encode(picture(40, 56), **VARIANTS[variant])
    assert is_whole(data)
    assert is_whole(data + b"trailing bytes are allowed")
    start = parse_jpeg(data).scans[0].start
    accepted = [end for end in range(start, len(data) - 2) if is_whole(data[:end] + b"\xff\xd9")]
    assert len(data) - start > 200
    assert accepted == []


def test_a_missing_last_scan_is_found() -> None:
    data = encode(picture(40, 56), progressive=True)
    scans = parse_jpeg(data).scans
    assert len(scans) > 5
    for scan in scans[:-1]:
        with pytest.raises(Malformed, match="last scans are missing"):
            check_pixels(data[: scan.end] + b"\xff\xd9", parse_jpeg(data[: scan.end] + b"\xff\xd9"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_damage_never_raises_anything_else_and_most_lost_stretches_are_found(variant: str) -> None:
    data = encode(picture(72, 88), **VARIANTS[variant])
    start, missed = parse_jpeg(data).scans[0].start, 0
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(int(RNG.integers(1, 6))):
            broken[int(RNG.integers(2, len(data)))] = int(RNG.integers(256))
        is_whole(bytes(broken))
        at = int(RNG.integers(start, len(data) - 200))
        missed += is_whole(data[:at] + data[at + int(RNG.integers(40, 190)) :])
    assert missed <= 9  # JPEG has no checksum: what resembles a picture passes for one
