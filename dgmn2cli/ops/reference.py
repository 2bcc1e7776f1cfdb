"""The definition of both ops in plain PyTorch: any device, differentiable; every kernel is tested against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL = 3
SAMPLES = KERNEL * KERNEL
TABLE_MARGIN = 8  # rows a relative position table holds beyond the side of the map it serves


def resample_table(table: Tensor, length: int) -> Tensor:
    """A relative position table resampled for a map's side, `(L + 8, d)`: linear, half-pixel centres; differentiable.

    Args:
        table: `(rows, d)` float, as the checkpoint holds it.
        length: side of the map, L.
    """
    target = (length + TABLE_MARGIN, table.shape[1])
    return F.interpolate(table[None, None], size=target, mode="bilinear", align_corners=False)[0, 0]


def position_logits(q: Tensor, height_table: Tensor, width_table: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, N, h, 9)`: relative position logits of every query's samples, both published quirks included.

    Args:
        q: `(B, N, h, d)` unscaled queries, N = H * W in row-major order.
        height_table: `(H + 8, d)`, resampled.
        width_table: `(W + 8, d)`, resampled.
        size: `(H, W)`.
    """
    height, width = size
    batch, _, heads, depth = q.shape
    q = q.reshape(batch, height, width, heads, depth)
    rel_w = torch.einsum("byxhd,xsd->byxhs", q, width_table[_table_rows(width, q.device)])
    rel_h = torch.einsum("byxhd,ysd->byxhs", q, height_table[_table_rows(height, q.device)])
    # Quirk 1: held as a map of W rows and H columns, and never transposed back. Quirk 2: unless the map is square it is
    # resized to H rows and W columns. The published weights were trained with both.
    held = rel_h.permute(0, 3, 4, 2, 1).flatten(0, 1)  # (B*h, 9, W, H)
    if height != width:
        held = F.interpolate(held, size=(height, width), mode="bilinear", align_corners=False)
    rel_h = held.unflatten(0, (batch, heads)).permute(0, 3, 4, 1, 2)  # (B, H, W, h, 9)
    return (rel_w + rel_h).flatten(1, 2)


def _table_rows(length: int, device: torch.device) -> Tensor:
    """Table row `L - 1 + s - position` of every position and sample, `(L, 9)`."""
    position = torch.arange(length, device=device)
    return length - 1 + torch.arange(SAMPLES, device=device) - position[:, None]


class Neighbours(NamedTuple):
    """The nine samples of every query, per head: where they lie, and what goes into the softmax."""

    # y, x: `(B, h, Q, 9)` coordinates in pixels of the map
    y: Tensor
    x: Tensor
    content: Tensor  # `(B, h, Q, 9)`, `q . k_s * d**-0.5`
    position: Tensor  # `(B, h, Q, 9)`, the relative position logits
    values: Tensor  # `(B, h, Q, 9, d)`

    @property
    def weights(self) -> Tensor:
        """The attention weights, `(B, h, Q, 9)`; they sum to 1."""
        return (self.content + self.position).softmax(3)

    def mixed(self) -> Tensor:
        """The op's output, `(B, Q, h * d)`."""
        return (self.weights.unsqueeze(4) * self.values).sum(3).transpose(1, 2).flatten(2)


def neighbours(
    qkv: Tensor,
    offset: Tensor,
    height_table: Tensor,
    width_table: Tensor,
    size: tuple[int, int],
    queries: Tensor | None = None,
) -> Neighbours:
    """What `deform_attention` samples for each query; half-precision inputs are computed in float32.

    Args:
        qkv, offset, height_table, width_table, size: as for `dgmn2cli.ops.deform_attention`.
        queries: `(Q,)` int64, the positions to look at; all N, in order, if None.
    """
    height, width = size
    batch, count, _, heads, depth = qkv.shape
    work = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = qkv.to(work).unbind(2)  # each (B, N, h, d)
    position = position_logits(q, height_table.to(work), width_table.to(work), size)  # (B, N, h, 9)
    offset = offset.to(work).reshape(batch, height, width, heads, SAMPLES, 2)
    y, x = offset.permute(5, 0, 3, 1, 2, 4)  # each (B, h, H, W, 9)
    tap = torch.arange(KERNEL, device=qkv.device, dtype=work) - 1
    rows = torch.arange(height, device=qkv.device, dtype=work)[:, None, None]
    columns = torch.arange(width, device=qkv.device, dtype=work)[:, None]
    y = (rows + tap.repeat_interleave(KERNEL) + y).flatten(2, 3)  # (B, h, N, 9)
    x = (columns + tap.repeat(KERNEL) + x).flatten(2, 3)
    if queries is not None:
        q, position, y, x = q[:, queries], position[:, queries], y[:, :, queries], x[:, :, queries]
        count = len(queries)

    maps = torch.cat((k, v), dim=3).transpose(1, 2).reshape(batch * heads, height * width, 2 * depth)
    places = (y.reshape(batch * heads, count * SAMPLES), x.reshape(batch * heads, count * SAMPLES))
    sampled = _sample(maps, size, *places).view(batch, heads, count, SAMPLES, 2 * depth)
    k_s, v_s = sampled.split(depth, dim=4)
    content = (q.transpose(1, 2).unsqueeze(3) * k_s).sum(4) * depth**-0.5
    return Neighbours(y, x, content, position.transpose(1, 2), v_s)


def deform_attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, size: tuple[int, int]
) -> Tensor:
    """The definition of `dgmn2cli.ops.deform_attention`; half-precision inputs are computed in float32."""
    return neighbours(qkv, offset, height_table, width_table, size).mixed().to(qkv.dtype)


def deform_unfold(input: Tensor, offset: Tensor, geometry: Sequence[int]) -> Tensor:
    """The definition of `dgmn2cli.ops.deform_unfold`; half-precision inputs are computed in float32.

    `geometry` holds kernel size, stride, padding and dilation, vertical and horizontal each, then the groups.
    """
    batch, channels, height, width = input.shape
    kernel_size, stride, padding, dilation = (geometry[i : i + 2] for i in (0, 2, 4, 6))
    groups, taps = geometry[8], kernel_size[0] * kernel_size[1]
    out_height, out_width = offset.shape[2:]
    work = torch.promote_types(input.dtype, torch.float32)
    shift = offset.to(work).reshape(batch * groups, taps, 2, out_height, out_width)

    def grid(axis: int, length: int) -> Tensor:
        """Undisplaced coordinates along one axis, `(taps along it, length)`."""
        start = torch.arange(length, device=input.device, dtype=work) * stride[axis] - padding[axis]
        return torch.arange(kernel_size[axis], device=input.device, dtype=work)[:, None] * dilation[axis] + start

    rows = grid(0, out_height).repeat_interleave(kernel_size[1], dim=0)[:, :, None]  # (taps, Ho, 1)
    columns = grid(1, out_width).repeat(kernel_size[0], 1)[:, None, :]  # (taps, 1, Wo)
    y = (rows + shift[:, :, 0]).flatten(1)
    x = (columns + shift[:, :, 1]).flatten(1)
    maps = input.to(work).reshape(batch * groups, channels // groups, height * width).transpose(1, 2)
    sampled = _sample(maps, (height, width), y, x)  # (B*G, taps*Ho*Wo, C/G)
    unfolded = sampled.transpose(1, 2).reshape(batch, channels * taps, out_height * out_width)
    return unfolded.to(input.dtype)


def _sample(maps: Tensor, size: tuple[int, int], y: Tensor, x: Tensor) -> Tensor:
    """`(M, K, d)` samples, bilinear; zero outside the open box (-1, H) x (-1, W), NaN where a coordinate is not finite.

    Args:
        maps: `(M, H * W, d)`.
        size: `(H, W)`.
        y, x: `(M, K)` coordinates in pixels.
    """
    height, width = size
    finite = torch.isfinite(y) & torch.isfinite(x)
    inside = (y > -1) & (x > -1) & (y < height) & (x < width)
    y, x = y.where(inside, 0), x.where(inside, 0)  # from here on every coordinate is a valid one
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    total = maps.new_zeros((*y.shape, maps.shape[2]))
    for row, row_weight in ((top.long(), 1 - down), (top.long() + 1, down)):
        for column, column_weight in ((left.long(), 1 - right), (left.long() + 1, right)):
            present = inside & (row >= 0) & (column >= 0) & (row < height) & (column < width)
            index = (row * width + column).where(present, 0)
            corner = maps.gather(1, index.unsqueeze(2).expand(-1, -1, maps.shape[2]))
            total = total + corner.where(present.unsqueeze(2), 0) * (row_weight * column_weight).unsqueeze(2)
    return total.where(finite.unsqueeze(2), torch.nan)
