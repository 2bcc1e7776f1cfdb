"""Contact sheets hold their images, scaled."""

from __future__ import annotations

import numpy as np

from dgmn2cli.report.sheet import contact_sheet


def test_the_images_are_there_in_the_tile_width() -> None:
    small, large = np.full((4, 5, 3), 9, np.uint8), np.full((3, 8, 3), 8, np.uint8)
    sheet = contact_sheet([[("one", small), ("two", large)], [("three", small)]], tile_width=100)
    assert (sheet == 9).all(axis=2).sum() == 2 * 80 * 100
    assert (sheet == 8).all(axis=2).sum() == 38 * 100


def test_a_thin_image_is_shown_whole_on_a_sheet_of_moderate_size() -> None:
    sheet = contact_sheet(
        [[("thin", np.full((2000, 1, 3), 9, np.uint8))], [("flat", np.full((1, 2000, 3), 8, np.uint8))]]
    )
    assert sheet.shape[0] < 2000
    assert (sheet == 9).all(axis=2).any()
    assert (sheet == 8).all(axis=2).any()
