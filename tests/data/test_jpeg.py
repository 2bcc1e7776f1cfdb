"""JPEG files: every cut is refused, whole pixels in odd containers are read, nothing else is ever raised."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from dgmn2cli.data.formats import Malformed
from dgmn2cli.data.jpeg import decode_jpeg, jpeg_size

RNG = np.random.default_rng(11)
END = b"\xff\xd9"


def drawn(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    waves = 90 * np.sin(rows / 9)[..., None] + 60 * np.cos(columns / 13)[..., None] * [1, 0.5, -1]
    return Image.fromarray(np.clip(waves + RNG.normal(128, 15, (height, width, 3)), 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def is_whole(data: bytes) -> bool:
    try:
        decode_jpeg(data)
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
def test_whole_files_are_opencvs_pixels(mode: str, variant: str) -> None:
    for size in ((8, 8), (1, 1), (17, 33), (70, 45)):
        for subsampling in (0, 1, 2):
            data = encode(drawn(*size).convert(mode), subsampling=subsampling, **VARIANTS[variant])
            image, note = decode_jpeg(data)
            np.testing.assert_array_equal(image, opencv(data))
            assert note == ""
            assert jpeg_size(data) == size[::-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_at_any_byte_is_found_even_when_closed_with_an_end_mark(variant: str) -> None:
    data = encode(drawn(40, 56), **VARIANTS[variant])
    assert decode_jpeg(data + b"trailing bytes are allowed")[1] == ""
    start = data.index(b"\xff\xda")
    assert len(data) - start > 200
    for close in (b"", END):
        assert [end for end in range(start, len(data) - 2) if is_whole(data[:end] + close)] == []


def test_a_missing_last_scan_is_found() -> None:
    data = encode(drawn(40, 56), progressive=True)
    ends = [match.start() for match in re.finditer(rb"\xff[\xda\xc4]", data)][2:]
    assert len(ends) > 5
    for end in ends:
        for close in (b"", END):
            with pytest.raises(Malformed, match="cut"):
                decode_jpeg(data[:end] + close)


def test_thousands_of_scans_are_refused() -> None:
    data = encode(drawn(16, 16), progressive=True)
    start = [match.start() for match in re.finditer(rb"\xff\xda", data)][-1]
    with pytest.raises(Malformed, match="scans"):
        decode_jpeg(data[:-2] + data[start:-2] * 1000 + END)


def test_whole_pixels_in_odd_containers_are_read_with_a_note() -> None:
    data = encode(drawn(96, 160))
    noise = RNG.bytes(258).replace(b"\xff", b"\xfe")
    scan = data.index(b"\xff\xda")
    odd = {
        "no end mark": data[:-2],
        "half an end mark": data[:-1],
        "noise before the end mark": data[:-2] + noise + END,
        "zeros before the end mark": data[:-2] + bytes(40) + END,
        "bytes between segments": data[:scan] + b"ab" + data[scan:],
        "scan parameters of no baseline file": data[: scan + 11] + b"\0\0\0" + data[scan + 14 :],
    }
    for name, file in odd.items():
        image, note = decode_jpeg(file)
        assert note, name
        np.testing.assert_array_equal(image, opencv(data), err_msg=name)
    gray = encode(drawn(96, 160), progressive=True, subsampling=0)
    image, note = decode_jpeg(gray[:-2])
    np.testing.assert_array_equal(image, opencv(gray))
    assert note


def test_a_progressive_file_whose_encoder_left_out_colour_detail_is_read() -> None:
    data, kept, position = encode(drawn(40, 56), progressive=True), b"", 0
    parts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    for begin, end in zip(parts, [*parts[1:], len(data) - 2], strict=True):
        chroma_detail = data[begin + 4] == 1 and data[begin + 5] != 1
        kept += data[position:begin]
        following = data.find(b"\xff\xc4", begin, end)
        stop = following if following >= 0 else end
        kept += b"" if chroma_detail else data[begin:stop]
        position = stop
    kept += END
    assert len(kept) < len(data)
    image, note = decode_jpeg(kept)
    np.testing.assert_array_equal(image, opencv(kept))
    assert note == ""
    with pytest.raises(Malformed, match="cut between two"):
        decode_jpeg(kept[:-2])  # without its end mark, what is missing may be lost


@pytest.mark.parametrize("factors", [(0x31, 0x11, 0x11), (0x21, 0x12, 0x11)])
def test_unusual_colour_sampling_is_read(factors: tuple[int, int, int]) -> None:
    data = bytearray(encode(Image.new("RGB", (48, 48), (200, 30, 60)), subsampling=0))
    frame = data.index(b"\xff\xc0")
    data[frame + 11 : frame + 20 : 3] = bytes(factors)  # fewer units of more blocks: what is left over is not pixels
    assert jpeg_size(bytes(data)) == (48, 48)
    np.testing.assert_array_equal(decode_jpeg(bytes(data))[0], opencv(bytes(data)))
    with pytest.raises(Malformed):
        decode_jpeg(bytes(data[:-300]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_damage_never_raises_anything_else_and_most_lost_stretches_are_found(variant: str) -> None:
    data = encode(drawn(72, 88), **VARIANTS[variant])
    start, missed = data.index(b"\xff\xda") + 14, 0
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(int(RNG.integers(1, 6))):
            broken[int(RNG.integers(2, len(data)))] = int(RNG.integers(256))
        is_whole(bytes(broken))
        at = int(RNG.integers(start, len(data) - 200))
        missed += is_whole(data[:at] + data[at + int(RNG.integers(40, 190)) :])
    # JPEG has no checksum: what resembles an image passes for one, most often where each block takes many bytes
    assert missed <= (45 if variant == "quality 100" else 12)
