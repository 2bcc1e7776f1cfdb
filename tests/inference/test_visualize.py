"""Pictures of a segmentation: exact colours, an untouched picture where nothing is known, a legend that fits."""

from __future__ import annotations

import numpy as np
import pytest

from dgmn2cli.data.cityscapes import CLASSES, PALETTE
from dgmn2cli.inference.visualize import (
    class_shares,
    colorize,
    draw_text,
    legend,
    overlay,
    overlay_with_legend,
    stack,
    text_width,
)

RNG = np.random.default_rng(3)


def test_colours_are_the_palette_and_unknown_ids_black() -> None:
    ids = np.array([[0, 13, 255], [18, 19, 10]])
    got = colorize(ids, PALETTE)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0, 0], [128, 64, 128])
    np.testing.assert_array_equal(got[0, 1], [142, 0, 0])  # cars are dark blue: blue comes first
    np.testing.assert_array_equal(got[1, 2], [180, 130, 70])
    np.testing.assert_array_equal(got[0, 2], [0, 0, 0])
    np.testing.assert_array_equal(got[1, 1], [0, 0, 0])
    np.testing.assert_array_equal(colorize(ids.astype(np.uint8), PALETTE), got)
    np.testing.assert_array_equal(colorize(np.array([[-1, 300]]), PALETTE), np.zeros((1, 2, 3)))


def test_overlay_mixes_and_leaves_ignored_pixels_alone() -> None:
    image = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    ids = np.full((12, 20), 2, np.uint8)
    ids[:, 10:] = 255
    got = overlay(image, ids, PALETTE, 0.5)
    expected = (image[:, :9].astype(int) + np.array([70, 70, 70])) / 2
    assert np.abs(got[:, :9] - expected).max() <= 1
    np.testing.assert_array_equal(got[:, 10:], image[:, 10:])
    np.testing.assert_array_equal(overlay(image, ids, PALETTE, 0.0), image)
    solid = overlay(image, np.full((12, 20), 2), PALETTE, 1.0)
    np.testing.assert_array_equal(solid, np.full((12, 20, 3), 70))


def test_shares_count_ignored_pixels_in_the_whole() -> None:
    ids = np.array([[0, 0, 1, 255], [2, 2, 2, 255]])
    np.testing.assert_allclose(class_shares(ids, 4), [0.25, 0.125, 0.375, 0])
    np.testing.assert_array_equal(class_shares(np.full((2, 2), 255), 3), [0, 0, 0])
    wide = np.random.default_rng(0).integers(0, 9, (1, 9_000_001), np.uint8)  # counted in parts
    for ids in (wide, np.asfortranarray(wide[0, :20_000].reshape(100, 200)), wide[0]):
        counts = np.bincount(ids.ravel(), minlength=9)[:7]
        np.testing.assert_array_equal(class_shares(ids, 7), counts / ids.size)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (33, 47), (300, 420), (1024, 2048)])
def test_the_legend_goes_below_and_hides_nothing(size: tuple[int, int]) -> None:
    ids = RNG.integers(0, 19, size, dtype=np.uint8)
    image = np.full((*size, 3), 77, np.uint8)
    got = overlay_with_legend(image, ids, CLASSES, PALETTE)
    np.testing.assert_array_equal(got[: size[0], : size[1]], overlay(image, ids, PALETTE))
    assert got.shape[0] > size[0]
    assert got.shape[1] >= max(size[1], 100)


def test_the_legend_shows_each_present_class_once_in_order_of_share() -> None:
    shares = np.zeros(19)
    shares[[10, 3, 0]] = 0.2, 0.7, 0.0004
    strip = legend(shares, CLASSES, PALETTE, 60)  # narrow: one column
    rows = []
    for color in PALETTE[:, ::-1]:
        found = np.flatnonzero((strip == color).all(axis=2).sum(axis=1) > 10)
        rows.append(found.mean() if found.size else np.nan)
    assert rows[3] < rows[10] < rows[0]
    assert np.isnan(rows).sum() == 16


def test_text_is_drawn_where_asked_and_never_outside() -> None:
    canvas = np.full((40, 60, 3), 255, np.uint8)
    draw_text(canvas, "sky gy", 5, 20, 10)
    drawn = np.argwhere((canvas < 200).any(axis=2))
    assert len(drawn) > 30
    assert abs(drawn[:, 0].mean() - 20) < 4
    draw_text(canvas, "far out", 100, 20, 10)
    draw_text(canvas, "far out", 5, 400, 10)
    draw_text(canvas, "a long line that leaves the canvas", 30, 2, 30)
    assert text_width("wide line", 10) > text_width("w", 10) > 0
    assert 1.5 * text_width("ж", 10) > text_width("дорога", 10) / 4 > 0
    drawn = [np.full((40, 60, 3), 255, np.uint8) for _ in range(3)]
    for part, letter in zip(drawn, ("ж", "é", "?"), strict=True):
        draw_text(part, letter, 5, 20, 20)
    assert len({part.tobytes() for part in drawn}) == 3


def test_stack_holds_the_pictures() -> None:
    small, large = np.full((4, 5, 3), 9, np.uint8), np.full((3, 8, 3), 8, np.uint8)
    both = stack([small, large])
    assert both.shape == (7, 8, 3)
    np.testing.assert_array_equal(both[:4, :5], small)
    np.testing.assert_array_equal(both[:4, 5:], np.full((4, 3, 3), 255))
