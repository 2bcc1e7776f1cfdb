"""Resizing in bands and in composed chains equals PyTorch's bilinear resize with aligned corners."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.ops.resample import resize_chain, resize_matrix, resize_rows


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(7))


def resized(maps: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    return maps


@pytest.mark.parametrize("size", [(5, 7), (10, 7), (10, 14), (3, 30), (1, 1), (97, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_equal_the_whole(size: tuple[int, int], channels_last: bool) -> None:
    maps = random(2, 4, 5, 7)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    whole = resized(maps, size)
    for step in (1, 3, size[0]):
        rows = [resize_rows(maps, size, slice(y, min(y + step, size[0]))) for y in range(0, size[0], step)]
        assert (torch.cat(rows, dim=2) - whole).abs().max() <= 2e-6
        if channels_last and size != (5, 7):  # rows of an unresized map are views of it
            assert all(band.is_contiguous(memory_format=torch.channels_last) for band in rows)


@pytest.mark.parametrize(
    "sizes",
    [
        ((776, 776), (1552, 1552), (769, 769)),
        ((769, 769), (512, 769)),
        ((32, 32), (25, 25)),
        ((6, 9),),
        ((1, 1),),
        ((200, 3), (65, 130)),
    ],
)
def test_a_chain_is_one_product(sizes: tuple[tuple[int, int], ...]) -> None:
    maps = random(2, 3, 25, 38)
    chained = resize_chain(maps, sizes)
    assert chained.shape == (2, 3, *sizes[-1])
    assert chained.is_contiguous()
    # the position of a pixel is rounded to float32 in both: 1500 pixels leave an error of 1e-4 pixel at most
    assert (chained - resized(maps, *sizes)).abs().max() <= 1e-5


def test_in_double_precision() -> None:
    maps = random(1, 2, 9, 13, dtype=torch.float64)
    error = (resize_chain(maps, ((18, 26), (20, 20))) - resized(maps, (18, 26), (20, 20))).abs().max()
    assert error <= 1e-5  # PyTorch weighs in float64 here, the chain rounds positions to float32 as for float32 maps


def test_every_row_of_a_chain_sums_to_one() -> None:
    matrix = resize_matrix((97, 388, 1552, 769))
    assert matrix.shape == (769, 97)
    assert torch.allclose(matrix.sum(1), torch.ones(769, dtype=torch.float64))
    assert (matrix >= 0).all()
    assert torch.equal(resize_matrix((5, 5)), torch.eye(5, dtype=torch.float64))
