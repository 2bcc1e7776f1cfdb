"""Bilinear resampling with aligned corners as what it is: separable and linear, in bands and in composed chains.

The published network resizes its logits up to four times in a row. Each resize is a small matrix along each axis, so a
chain of them is one matrix along each axis; and any rows of a result can be had without computing the others.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.ops.operators import cached, followed

BLOCK_ROWS = 64
Lengths = tuple[int, ...]  # of one axis: the source's, then those it is resized to


def source_span(height: int, target: int, rows: slice) -> slice:
    """The rows of a map `height` high that rows `rows` of it resized to `target` rows are made from."""
    if height == target:
        return rows
    upper, lower, _ = source_rows(height, target)
    return slice(int(upper[rows.start]), int(lower[rows.stop - 1]) + 1)


def resize_rows(
    maps: Tensor, size: tuple[int, int], rows: slice, *, above: int = 0, height: int | None = None
) -> Tensor:
    """Rows `rows` of `maps` resized to `size`, `(B, C, rows, W)`: the same numbers whatever rows are asked for.

    Args:
        maps: `(B, C, h, w)` float; the whole map, or those of its rows that `source_span` names, and any more.
        size: full output size `(H, W)`.
        rows: the output rows wanted, `start` and `stop` within 0..H.
        above: rows of the whole map that lie above those in `maps`.
        height: rows of the whole map; h if None.
    """
    height = maps.shape[2] if height is None else height
    if height == size[0]:
        band = maps[:, :, rows.start - above : rows.stop - above]
    else:
        upper, lower, weight = _source_rows_on(maps.device, maps.dtype, height, size[0])
        # the axis order (B, h, w, C) keeps channels-last maps channels-last through the row gather
        lines = maps.permute(0, 2, 3, 1) if maps.is_contiguous(memory_format=torch.channels_last) else None
        source, axis = (maps, 2) if lines is None else (lines, 1)
        first, second = (source.index_select(axis, line[rows] - above) for line in (upper, lower))
        band = torch.lerp(first, second, weight[rows].view(-1, *[1] * (3 - axis)))
        band = band if lines is None else band.permute(0, 3, 1, 2)
    if maps.shape[3] == size[1]:
        return band
    return F.interpolate(band, size=(band.shape[2], size[1]), mode="bilinear", align_corners=True)


@cached
def source_rows(length: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Upper and lower source row, and the lower one's weight, of each of `target` output rows, as PyTorch rounds.

    Returns:
        `(target,)` int64, int64, float32; not to be written to.
    """
    step = (length - 1) / (target - 1) if target > 1 else 0.0
    position = torch.arange(target, dtype=torch.float32, device="cpu") * step
    upper = position.long().clamp_(max=length - 1)
    return upper, (upper + 1).clamp_(max=length - 1), position - upper


@cached
def _source_rows_on(
    device: torch.device, dtype: torch.dtype, length: int, target: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `source_rows`, on a device once and for all: a pass over the network must not wait for copies to a GPU."""
    upper, lower, weight = source_rows(length, target)
    return upper.to(device), lower.to(device), weight.to(device, dtype)


def resize_matrix(lengths: Lengths) -> Tensor:
    """The matrix of a chain of 1-D resizes `lengths[0] -> lengths[1] -> ...`.

    Returns:
        `(lengths[-1], lengths[0])` float64; every row sums to one.
    """
    matrix = torch.eye(lengths[0], dtype=torch.float64, device="cpu")
    for source, target in pairwise(lengths):
        if source != target:
            upper, lower, weight = source_rows(source, target)
            share = weight.double()[:, None]
            matrix = matrix[upper] * (1 - share) + matrix[lower] * share
    return matrix


@cached
def _bands(lengths: Lengths, device: torch.device, dtype: torch.dtype) -> list[tuple[slice, slice, Tensor]]:
    """A chain's matrix cut into blocks of rows, each with the few columns it needs: (rows, columns, block)."""
    matrix = resize_matrix(lengths)
    blocks = []
    for first in range(0, lengths[-1], BLOCK_ROWS):
        rows = slice(first, min(first + BLOCK_ROWS, lengths[-1]))
        used = matrix[rows].abs().sum(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((rows, columns, matrix[rows, columns].to(device, dtype)))
    return blocks


def resize_chain(maps: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """`maps` resized to each of `sizes` in turn, computed as one banded product along each axis.

    Args:
        maps: `(B, C, h, w)` float.
        sizes: `(H, W)` of every step; the last one is the result's.

    Returns:
        `(B, C, H, W)` of the last size, contiguous; equal to the chain up to rounding.
    """
    heights = (maps.shape[2], *(size[0] for size in sizes))
    widths = (maps.shape[3], *(size[1] for size in sizes))
    if maps.requires_grad and not followed():
        return _Chain.apply(maps, heights, widths, False)
    return _resized(maps, heights, widths)


class _Chain(torch.autograd.Function):
    """A chain of resizes or, `adjoint`, its transpose: each the derivative of the other."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, heights: Lengths, widths: Lengths, adjoint: bool) -> Tensor:
        ctx.chain = (heights, widths, not adjoint)
        return (_spread if adjoint else _resized)(maps, heights, widths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Chain.apply(grad, *ctx.chain), None, None, None


def _resized(maps: Tensor, heights: Lengths, widths: Lengths) -> Tensor:
    maps = maps.contiguous()
    wide = maps.new_empty((*maps.shape[:3], widths[-1]))
    for rows, columns, block in _bands(widths, maps.device, maps.dtype):
        wide[..., rows] = maps[..., columns] @ block.mT
    result = maps.new_empty((*maps.shape[:2], heights[-1], widths[-1]))
    for rows, columns, block in _bands(heights, maps.device, maps.dtype):
        result[..., rows, :] = block @ wide[..., columns, :]
    return result


def _spread(grad: Tensor, heights: Lengths, widths: Lengths) -> Tensor:
    """The adjoint: gradients of the last size to those of the first."""
    wide = grad.new_zeros((*grad.shape[:2], heights[0], widths[-1]))
    for rows, columns, block in _bands(heights, grad.device, grad.dtype):
        wide[..., columns, :] += block.mT @ grad[..., rows, :]
    result = grad.new_zeros((*grad.shape[:2], heights[0], widths[0]))
    for rows, columns, block in _bands(widths, grad.device, grad.dtype):
        result[..., columns] += wide[..., rows] @ block
    return result
