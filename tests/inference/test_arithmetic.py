"""The NumPy arithmetic behind a graph's scores: PyTorch's resize and softmax up to rounding, the same bits in bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dgmn2cli.inference.arithmetic import resize_rows, softmax, source_rows
from dgmn2cli.ops import resample

SIZES = [((9, 13), (9, 13)), ((9, 13), (30, 7)), ((5, 1), (1, 11)), ((1, 1), (4, 6)), ((31, 17), (30, 17))]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resizing_is_pytorchs(source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> None:
    scores = np.random.default_rng(1).normal(size=(4, *source)).astype(np.float32)
    kept = scores.copy()
    whole = resize_rows(scores, target, slice(0, target[0]), align_corners=align_corners)
    wanted = F.interpolate(torch.from_numpy(scores)[None], target, mode="bilinear", align_corners=align_corners)
    np.testing.assert_allclose(whole, wanted[0].numpy(), atol=2e-6)
    np.testing.assert_array_equal(scores, kept)  # what goes in stays
    for first in range(0, target[0], 3):
        band = slice(first, min(first + 3, target[0]))
        upper, lower, _ = source_rows(source[0], target[0], align_corners)
        same = source[0] == target[0]
        above, below = (band.start, band.stop) if same else (int(upper[first]), int(lower[band.stop - 1]) + 1)
        part = resize_rows(
            scores[:, above:below], target, band, align_corners=align_corners, above=above, height=source[0]
        )
        np.testing.assert_array_equal(part, whole[:, band])


@pytest.mark.parametrize(("length", "target"), [(9, 30), (97, 388), (1552, 769), (5, 1), (1, 4)])
def test_rows_are_the_networks(length: int, target: int) -> None:
    for ours, theirs in zip(source_rows(length, target, True), resample.source_rows(length, target), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy(), strict=True)


def test_softmax_is_pytorchs() -> None:
    scores = np.random.default_rng(2).normal(scale=30, size=(19, 8, 9)).astype(np.float32)
    np.testing.assert_allclose(softmax(scores), torch.from_numpy(scores).softmax(0).numpy(), atol=2e-7)
    np.testing.assert_array_equal(softmax(scores)[:, 2:5], softmax(scores[:, 2:5]))
    assert np.isnan(softmax(np.float32([[np.nan], [1.0]]))).all()
