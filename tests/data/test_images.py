"""Strict decoding: what OpenCV gives for good files, an error that names the fault for every other."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dgmn2cli.data.images import (
    decode_bytes,
    decode_file,
    decode_image,
    image_header,
    read_image,
    read_label,
    write_png,
)
from dgmn2cli.errors import DataError

RNG = np.random.default_rng(7)
RGB = cv2.resize(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8), (47, 33), interpolation=cv2.INTER_CUBIC)
ALPHA = RNG.integers(0, 256, (33, 47), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(tmp_path: Path, data: bytes, name: str = "x.png") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


MODES = {
    "RGB": Image.fromarray(RGB),
    "RGBA": Image.fromarray(np.dstack([RGB, ALPHA])),
    "L": Image.fromarray(RGB[..., 0]),
    "LA": Image.fromarray(np.dstack([RGB[..., 0], ALPHA])),
    "1": Image.fromarray(RGB[..., 0] > 100),
    "P": Image.fromarray(RGB).quantize(200),
    "P4": Image.fromarray(RGB).quantize(11),
    "I;16": Image.fromarray(RGB[..., 0].astype(np.uint16) * 256 + ALPHA),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_png_mode_is_what_pillow_shows_without_alpha(tmp_path: Path, mode: str) -> None:
    image = MODES[mode]
    expected = (
        np.repeat(RGB[..., :1], 3, axis=2)
        if mode in ("LA", "L", "I;16")
        else RGB
        if mode == "RGBA"
        else np.array(image.convert("RGB"))
    )
    path = put(tmp_path, encode(image))
    got = read_image(path)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got[..., ::-1], expected)
    np.testing.assert_array_equal(got, cv2.imread(str(path), cv2.IMREAD_COLOR))


def test_sixteen_bit_colour_keeps_the_upper_byte(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 256 + 255
    data = cv2.imencode(".png", np.ascontiguousarray(deep[..., ::-1]))[1].tobytes()
    np.testing.assert_array_equal(read_image(put(tmp_path, data))[..., ::-1], RGB)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 60, "progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_equals_opencv(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    data = encode(Image.fromarray(RGB).convert(mode), "JPEG", **options)
    path = put(tmp_path, data, "x.jpg")
    got = read_image(path)
    np.testing.assert_array_equal(got, cv2.imread(str(path)))
    oracle = np.array(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(got[..., ::-1] - oracle).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path, encode(Image.fromarray(RGB), kind, exif=exif))
    got = read_image(path)
    np.testing.assert_array_equal(got, cv2.imread(str(path)))
    assert got.shape == ((47, 33, 3) if orientation in (5, 6, 7, 8) else (33, 47, 3))
    assert image_header(path).orientation == (orientation if 1 <= orientation <= 8 else 1)


def test_bmp_and_webp_equal_opencv(tmp_path: Path) -> None:
    for kind, options in (("BMP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 80})):
        path = put(tmp_path, encode(Image.fromarray(RGB), kind, **options))
        np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))
        assert (image_header(path).width, image_header(path).height) == (47, 33)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (33, 47)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(write_png(tmp_path / "x.png", image)), image)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize(("kind", "form"), [(1, "B3x"), (3, "H2x"), (4, "I"), (6, "b3x"), (8, "h2x"), (9, "i")])
def test_the_orientation_may_be_any_integer_in_any_byte_order(tmp_path: Path, order: str, kind: int, form: str) -> None:
    sign = "<" if order == "II" else ">"
    exif = order.encode() + struct.pack(f"{sign}HIHHHI{form}I", 42, 8, 1, 0x0112, kind, 1, 6, 0)
    for name in ("JPEG", "PNG", "WEBP"):
        path = put(tmp_path, encode(Image.fromarray(RGB), name, exif=b"Exif\0\0" + exif, **LOSSLESS.get(name, {})))
        header = image_header(path)
        assert (header.orientation, header.width, header.height) == (6, 33, 47)
        assert read_image(path).shape == (47, 33, 3)


LOSSLESS: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}}


def test_broken_exif_is_no_orientation(tmp_path: Path) -> None:
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0junk" * 9,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01",
    ):
        path = put(tmp_path, encode(Image.fromarray(RGB), "JPEG", exif=exif))
        assert image_header(path).orientation == 1
        assert read_image(path).shape == (33, 47, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "I;16"])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_tiff(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    png = read_image(put(tmp_path, encode(MODES[mode])))
    data = encode(MODES[mode], "TIFF", **options)
    np.testing.assert_array_equal(read_image(put(tmp_path, data, "x.tif")), png)
    for length in range(8, len(data) - 1, 97):
        with pytest.raises(DataError, match="cut"):
            read_image(put(tmp_path, data[:length], "cut.tif"))


def test_frames_and_pages_are_not_counted() -> None:
    gif = encode(Image.new("P", (1, 1)), "GIF")
    start = gif.rindex(b",")
    tiff = encode(Image.new("L", (1, 1)), "TIFF")
    first = int.from_bytes(tiff[4:8], "little")
    page = tiff[first : first + 2 + 12 * int.from_bytes(tiff[first : first + 2], "little")]
    many = 20_000
    pages = [page + (first + number * (len(page) + 4)).to_bytes(4, "little") for number in range(1, many)]
    began = time.perf_counter()
    with pytest.raises(DataError, match="animation"):
        decode_image(gif[:start] + gif[start:-1] * many + b";")
    found, _, notes = decode_bytes(tiff[:first] + b"".join([*pages, page, bytes(4)]), "")
    assert (found.shape, len(notes)) == ((1, 1, 3), 1)
    assert time.perf_counter() - began < 5  # seconds; it was half a minute


def test_gif_ppm_and_turned_tiff(tmp_path: Path) -> None:
    colors = MODES["P"]
    expected = np.array(colors.convert("RGB"))
    np.testing.assert_array_equal(read_image(put(tmp_path, encode(colors, "GIF")))[..., ::-1], expected)
    np.testing.assert_array_equal(read_image(put(tmp_path, encode(MODES["RGB"], "PPM")))[..., ::-1], RGB)
    deep = b"P5 3 1 65535\n" + bytes([1, 255, 128, 0, 255, 1])
    np.testing.assert_array_equal(read_image(put(tmp_path, deep))[0, :, 0], [1, 128, 255])
    for options in ({"save_all": True, "append_images": [MODES["L"]]}, {}):
        exif = Image.Exif()
        exif[0x0112] = 8
        path = put(tmp_path, encode(MODES["RGB"], "TIFF", exif=exif, **options))
        pixels, _, notes = decode_file(path)
        np.testing.assert_array_equal(pixels[..., ::-1], np.rot90(RGB))
        assert len(notes) == len(options) // 2
        assert (image_header(path).width, image_header(path).height) == (33, 47)
    animated = encode(colors, "GIF", save_all=True, append_images=[colors.transpose(0)])
    with pytest.raises(DataError, match="animation"):
        read_image(put(tmp_path, animated))
    with pytest.raises(DataError, match="floating-point"):
        read_image(put(tmp_path, encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")))


def test_dark_sixteen_bit_values_and_odd_jpegs_are_noted(tmp_path: Path) -> None:
    for values, noted in ((np.full((9, 9), 4095, np.uint16), 1), (np.full((9, 9), 4096, np.uint16), 0)):
        for kind in ("PNG", "TIFF"):
            notes = decode_file(put(tmp_path, encode(Image.fromarray(values), kind)))[2]
            assert len(notes) == noted
    assert len(decode_file(put(tmp_path, GOOD["jpeg"][:-2]))[2]) == 1


def test_large_images_warn_of_nothing(tmp_path: Path) -> None:
    rows = zlib.compressobj(1)
    idat = b"".join(rows.compress(bytes(15_001)) for _ in range(13_000)) + rows.flush()
    path = put(tmp_path, png_chunks(ihdr(15_000, 13_000, 8, 0), (b"IDAT", idat), (b"IEND", b"")))
    header = image_header(path, 200_000_000)
    assert (header.width, header.height) == (15_000, 13_000)  # beyond what Pillow warns of, and refuses


def bmp_file() -> bytes:
    return encode(Image.fromarray(RGB), "BMP")


GOOD = {
    "png": encode(Image.fromarray(RGB)),
    "palette png": encode(MODES["P"]),
    "larger png": encode(Image.fromarray(np.tile(RGB, (5, 5, 1)))),
    "jpeg": encode(Image.fromarray(np.tile(RGB, (3, 3, 1))), "JPEG"),
    "progressive jpeg": encode(Image.fromarray(np.tile(RGB, (3, 3, 1))), "JPEG", progressive=True),
    "webp": encode(Image.fromarray(RGB), "WEBP"),
    "lossless webp": encode(Image.fromarray(RGB), "WEBP", lossless=True),
    "bmp": bmp_file(),
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_cut_is_refused(tmp_path: Path, kind: str) -> None:
    data = GOOD[kind]
    read_image(put(tmp_path, data))
    lengths = sorted({int(n) for n in np.linspace(0, len(data) - 1, 120)} | {len(data) - k for k in range(1, 9)})
    whole = lengths[-2:] if "jpeg" in kind else []  # only the end mark is cut: its pixels are there
    for length in lengths:
        path = put(tmp_path, data[:length], "cut.png")
        if length in whole:
            np.testing.assert_array_equal(read_image(path), read_image(put(tmp_path, data)))
            continue
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
    assert len(lengths) > 100


def test_every_flipped_bit_of_a_png_is_refused_or_harmless(tmp_path: Path) -> None:
    data, expected, refused = GOOD["png"], read_image(put(tmp_path, GOOD["png"])), 0
    for position in range(0, len(data), max(1, len(data) // 400)):
        broken = bytearray(data)
        broken[position] ^= 1 << (position % 8)
        try:
            np.testing.assert_array_equal(read_image(put(tmp_path, bytes(broken))), expected)
        except DataError:
            refused += 1
    assert refused > 390


def test_a_jpeg_cut_and_closed_again_is_refused(tmp_path: Path) -> None:
    for kind in ("jpeg", "progressive jpeg"):
        data = GOOD[kind]
        start = data.index(b"\xff\xda") + 14
        for end in range(start, len(data) - 2, 29):
            path = put(tmp_path, data[:end] + b"\xff\xd9")
            with pytest.raises(DataError, match=r"cut|damaged"):
                read_image(path)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


def ihdr(width: int, height: int, depth: int = 8, color: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


def test_a_png_with_right_checksums_but_too_few_pixels_is_refused(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(30) for _ in range(10))
    whole = zlib.compress(rows)
    read_image(put(tmp_path, png_chunks(ihdr(10, 10), (b"IDAT", whole), (b"IEND", b""))))
    for idat in (zlib.compress(rows[:-1]), whole[:5], b""):
        path = put(tmp_path, png_chunks(ihdr(10, 10), (b"IDAT", idat), (b"IEND", b"")))
        with pytest.raises(DataError, match=r"cut|damaged"):
            read_image(path)
    with pytest.raises(DataError, match=r"cut|damaged"):
        read_image(put(tmp_path, png_chunks(ihdr(10, 10), (b"IEND", b""))))
    bomb = zlib.compress(bytes(50_000_000))
    with pytest.raises(DataError, match="far more than the pixels"):
        read_image(put(tmp_path, png_chunks(ihdr(1, 1), (b"IDAT", bomb), (b"IEND", b""))))


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    rows = zlib.compressobj(9)
    idat = b"".join(rows.compress(bytes(60001)) for _ in range(200)) + rows.flush()
    path = put(tmp_path, png_chunks(ihdr(20000, 20000), (b"IDAT", idat), (b"IEND", b"")))
    with pytest.raises(DataError, match=r"400,000,000 pixels, more than --max-pixels 100,000,000"):
        read_image(path)
    with pytest.raises(DataError, match="cut"):
        read_image(path, max_pixels=400_000_000)
    for data in (GOOD["jpeg"], GOOD["webp"], GOOD["bmp"], GOOD["png"]):
        with pytest.raises(DataError, match="max-pixels"):
            read_image(put(tmp_path, data), max_pixels=1000)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"GIF89a" + bytes(40), "cut or damaged|its size is"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", "cut or damaged"),
        (b"II*\0" + bytes(40), "cut or damaged"),
        (b"\xff\x0a" + bytes(40), "a JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "a JPEG XL"),
        (b"hello world", "a text file"),
        (bytes(100), "unknown format"),
        (b"\x89PNG\r\n\x1a\n", "header is cut"),
        (b"\xff\xd8\xff", "cut"),
        (b"\xff\xd8\xff\xd9", "cut"),
        (b"RIFF\x04\0\0\0WEBP", "cut or damaged"),
        (b"BM" + bytes(10), "cut"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_image(put(tmp_path, data))
    with pytest.raises(DataError):
        read_label(put(tmp_path, data))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
        ("/dev/zero", "device"),
        (tmp_path / "absent", "no such file"),
        ("a\0b", "not a possible file name"),
    ):
        with pytest.raises(DataError, match=why):
            read_image(path)


def test_a_huge_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = put(tmp_path, GOOD["png"])
    os.truncate(path, 1 << 40)
    with pytest.raises(DataError, match="more than 100,000,000 pixels can need"):
        read_image(path)


@pytest.mark.parametrize(("depth", "palette"), [(d, p) for d in (1, 2, 4, 8, 16) for p in (False, True) if d + p < 17])
def test_labels_are_the_stored_samples(tmp_path: Path, depth: int, palette: bool) -> None:
    ids = RNG.integers(0, 1 << min(depth, 8), (13, 11))
    samples = ids.astype(">u2").view(np.uint8).reshape(13, -1) if depth == 16 else None
    if depth < 8:
        bits = (ids[..., None] >> np.arange(depth)[::-1]) & 1
        samples = np.packbits(bits.reshape(13, -1).astype(np.uint8), axis=1)
    elif depth == 8:
        samples = ids.astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    chunks = [ihdr(11, 13, depth, 3 if palette else 0), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if palette:
        chunks.insert(1, (b"PLTE", RNG.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes()))
    got = read_label(put(tmp_path, png_chunks(*chunks)))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, ids)


def test_labels_that_are_no_label_maps_are_refused(tmp_path: Path) -> None:
    for image, kind, why in (
        (MODES["RGB"], "PNG", "colour image"),
        (MODES["RGBA"], "PNG", "colour image"),
        (MODES["LA"], "PNG", "colour image"),
        (MODES["RGB"], "JPEG", "must be PNG"),
    ):
        with pytest.raises(DataError, match=why):
            read_label(put(tmp_path, encode(image, kind)))


def test_interlaced_labels_and_images(tmp_path: Path) -> None:
    ids = RNG.integers(0, 256, (3, 2), dtype=np.uint8)
    passes = [ids[0:1, 0:1], ids[2:3, 0:1], ids[0:3:2, 1:2], ids[1:2, 0:2]]
    # Adam7 passes of a 2x3 image: 1 (0,0); 2, 3, 4 are empty; 5 row 2 column 0; 6 column 1 of rows 0, 2; 7 row 1
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = (b"IHDR", struct.pack(">IIBBBBB", 2, 3, 8, 0, 0, 0, 1))
    data = png_chunks(header, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), ids)
    np.testing.assert_array_equal(read_label(put(tmp_path, data)), ids)
    np.testing.assert_array_equal(read_image(put(tmp_path, data))[..., 0], ids)


def test_written_palette_png_round_trips_and_repeats(tmp_path: Path) -> None:
    ids = RNG.integers(0, 19, (33, 47), dtype=np.uint8)
    palette = RNG.integers(0, 256, (19, 3), dtype=np.uint8)
    first = write_png(tmp_path / "a" / "ids.png", ids, palette).read_bytes()
    np.testing.assert_array_equal(read_label(tmp_path / "a" / "ids.png"), ids)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a" / "ids.png").convert("RGB")), palette[ids])
    assert write_png(tmp_path / "ids.png", ids, palette).read_bytes() == first
    assert os.listdir(tmp_path / "a") == ["ids.png"]
    with_ignored = np.where(ids == 3, 255, ids).astype(np.uint8)
    np.testing.assert_array_equal(read_label(write_png(tmp_path / "i.png", with_ignored, palette)), with_ignored)


def test_written_deep_png_round_trips(tmp_path: Path) -> None:
    ids = RNG.integers(0, 65536, (5, 4), dtype=np.uint16)
    np.testing.assert_array_equal(np.array(Image.open(write_png(tmp_path / "x.png", ids))), ids)


def test_damaged_files_write_nothing_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff, and libjpeg within it, speak for themselves."""
    kinds = [("TIFF", {"compression": name}) for name in ("jpeg", "tiff_lzw", "tiff_adobe_deflate")]
    wholes = [encode(MODES["RGB"], kind, **options) for kind, options in (*kinds, ("JPEG", {}), ("GIF", {}))]
    random, refused = np.random.default_rng(1), 0
    for number in range(400):
        data = bytearray(wholes[number % len(wholes)])
        for position in random.integers(0, len(data), 6):
            data[position] ^= 1 << random.integers(0, 8)
        try:
            read_image(put(tmp_path, bytes(data)))
        except DataError:
            refused += 1
    assert refused > 100
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"
