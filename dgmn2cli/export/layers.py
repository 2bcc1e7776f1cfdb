"""The network's layers as ONNX operators: convolutions, projections, dynamic graph attention, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from dgmn2cli.export.builder import GraphBuilder
from dgmn2cli.model.attention import SAMPLES, TABLE_MARGIN, DynamicGraphAttention
from dgmn2cli.model.backbone import Block
from dgmn2cli.model.fused.layers import fold_batch_norm

KERNEL = 3
CORNERS = 4
Length = str | int  # of an axis: a one-element int64 value, or a constant
Size = tuple[Length, Length]


@dataclass(frozen=True)
class MapSize:
    """Batch, height and width of a map, each a one-element int64 value."""

    batch: str
    height: str
    width: str

    @classmethod
    def of(cls, g: GraphBuilder, x: str) -> MapSize:
        """Of `(B, C, H, W)`."""
        return cls(*g.sizes(x, 0, 2, 3))


def array(tensor: Tensor, g: GraphBuilder) -> np.ndarray:
    """A weight in the graph's dtype."""
    return tensor.detach().cpu().float().numpy().astype(g.dtype)


def conv(g: GraphBuilder, x: str, layer: Any, norm: Any = None, *, relu: bool = False) -> str:
    """A `Conv2d`, the batch norm that follows it folded in."""
    weight, bias = layer.weight, layer.bias
    if norm is not None:
        weight, bias = fold_batch_norm(weight, bias, norm)
    parts = [array(weight, g)] + ([] if bias is None else [array(bias, g)])
    sides = [int(side) for side in layer.padding]
    x = g.op("Conv", x, *parts, kernel_shape=list(layer.kernel_size), strides=list(layer.stride), pads=sides * 2)
    return g.op("Relu", x) if relu else x


def linear(g: GraphBuilder, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    """`(..., in)` to `(..., out)` by a weight `(out, in)`."""
    return g.op("Add", g.op("MatMul", x, np.ascontiguousarray(weight.T)), bias)


def layer_norm(g: GraphBuilder, x: str, norm: nn.LayerNorm) -> str:
    """Layer norm over the last axis, in float32."""
    weight, bias = (part.detach().cpu().float().numpy() for part in (norm.weight, norm.bias))
    return g.rounded(g.op("LayerNormalization", g.exact(x), weight, bias, axis=-1, epsilon=norm.eps))


def block(g: GraphBuilder, tokens: str, layer: Block, size: MapSize) -> str:
    """A backbone block: `(B, N, C)` to `(B, N, C)`."""
    tokens = g.op("Add", tokens, attention(g, layer_norm(g, tokens, layer.norm1), layer.attn, size))
    mlp = layer.mlp
    hidden = linear(g, layer_norm(g, tokens, layer.norm2), array(mlp.fc1.weight, g), array(mlp.fc1.bias, g))
    half, root = g.dtype(0.5), g.dtype(2**0.5)
    hidden = g.op(
        "Mul", g.op("Mul", hidden, g.op("Add", g.op("Erf", g.op("Div", hidden, root)), g.dtype(1))), half
    )  # the exact GELU, in the order that runtimes recognise
    return g.op("Add", tokens, linear(g, hidden, array(mlp.fc2.weight, g), array(mlp.fc2.bias, g)))


def attention(g: GraphBuilder, normed: str, layer: DynamicGraphAttention, size: MapSize) -> str:
    """`deform_attention` between its projections: `(B, N, C)` to `(B, N, C)`.

    Bilinear sampling and the sums over a head's width commute: a query's product with a sampled key is the weighted
    sum of its products with the 4 keys around it, and likewise for the values. So 36 whole rows are gathered for each
    query, and no interpolated map is ever made. A border of zeros around the map stands for what lies outside.
    """
    heads, channels = layer.heads, layer.qkv.in_features
    depth = channels // heads
    place = (size.batch, size.height, size.width)
    weight, bias = array(layer.qkv.weight, g).copy(), array(layer.qkv.bias, g).copy()
    weight[channels : 2 * channels] *= g.dtype(depth**-0.5)  # a power of two: the scale of the logits, exactly
    bias[channels : 2 * channels] *= g.dtype(depth**-0.5)
    qkv = g.reshape(linear(g, normed, weight, bias), *place, 3 * channels)
    q = g.reshape(g.op("Slice", qkv, [0], [channels], [3]), *place, heads, depth)
    rows = g.reshape(g.op("Pad", qkv, [0, 1, 1, 0, 0, 1, 1, 0]), -1, depth)  # h of q, of k, of v for each pixel
    index, share = corners(g, g.reshape(normed, *place, heads, depth), layer, size)
    keys = g.op("Gather", rows, g.op("Add", index, np.int32(heads)), axis=0)  # (B, H, W, h, 36, d)
    dots = g.exact(g.op("MatMul", keys, g.op("Unsqueeze", q, [-1])))
    dots = g.op("Mul", g.reshape(dots, *place, heads, CORNERS, SAMPLES), share)
    logits = g.op("Add", g.op("ReduceSum", dots, [-2], keepdims=0), g.exact(position(g, q, layer, size)))
    shares = g.op("Mul", g.op("Unsqueeze", g.op("Softmax", logits, axis=-1), [-2]), share)
    shares = g.rounded(g.reshape(shares, *place, heads, 1, CORNERS * SAMPLES))
    values = g.op("Gather", rows, g.op("Add", index, np.int32(2 * heads)), axis=0)
    mixed = g.reshape(g.op("MatMul", shares, values), size.batch, -1, channels)
    return linear(g, mixed, array(layer.proj.weight, g), array(layer.proj.bias, g))


def corners(g: GraphBuilder, normed: str, layer: DynamicGraphAttention, size: MapSize) -> tuple[str, str]:
    """The 4 pixels around each sample, and what each counts.

    Returns:
        The row of the first query there, `(B, H, W, h, 36)` int32; the bilinear weights, `(B, H, W, h, 4, 9)` float32.
    """
    heads = layer.heads
    order = np.arange(2 * SAMPLES).reshape(SAMPLES, 2).T.ravel()  # all dy, then all dx
    offset = linear(g, normed, array(layer.conv_offset.weight, g)[order], array(layer.conv_offset.bias, g)[order])
    offset = g.exact(offset)
    tap = np.arange(KERNEL, dtype=np.float32) - 1
    line = g.op("Add", g.reshape(g.count(size.height), -1, 1, 1, 1), tap.repeat(KERNEL))
    column = g.op("Add", g.reshape(g.count(size.width), -1, 1, 1), np.tile(tap, KERNEL))
    first, near, far = [], [], []
    for part, grid, length in ((0, line, size.height), (1, column, size.width)):
        shift = g.op("Slice", offset, [part * SAMPLES], [(part + 1) * SAMPLES], [-1])
        side = g.number(length)
        at = g.op("Clip", g.op("Add", shift, grid), np.float32(-1), side)
        low = g.op("Min", g.op("Floor", at), g.op("Sub", side, np.float32(1)))
        far.append(g.op("Sub", at, low))
        near.append(g.op("Sub", np.float32(1), far[-1]))
        first.append(g.op("Add", low, np.float32(1)))
    pairs = ((near[0], near[1]), (near[0], far[1]), (far[0], near[1]), (far[0], far[1]))
    share = g.op("Concat", *(g.op("Unsqueeze", g.op("Mul", *pair), [-2]) for pair in pairs), axis=-2)
    # index arithmetic in float32 up to the pixel's number, which is exact below 2**24
    across = g.op("Add", size.width, [2])
    plane = g.op("Mul", g.op("Add", size.height, [2]), across)
    pixel = g.op("Add", g.op("Mul", first[0], g.number(across)), first[1])
    small = [g.op("Squeeze", g.cast(value, np.int32), [0]) for value in (plane, across)]
    last = g.op("Sub", g.op("Sub", small[0], small[1]), np.int32(2))
    pixel = g.op("Clip", g.cast(pixel, np.int32), np.int32(0), last)
    image = g.reshape(g.op("Mul", g.cast(g.count(size.batch), np.int32), small[0]), -1, 1, 1, 1, 1)
    row = g.op("Mul", g.op("Add", pixel, image), np.int32(3 * heads))
    row = g.op("Add", row, np.arange(heads, dtype=np.int32)[:, None])
    right, down = np.int32(3 * heads), g.op("Mul", small[1], np.int32(3 * heads))
    below = g.op("Add", row, down)
    return g.op("Concat", row, g.op("Add", row, right), below, g.op("Add", below, right), axis=-1), share


def position(g: GraphBuilder, q: str, layer: DynamicGraphAttention, size: MapSize) -> str:
    """`ops.reference.position_logits`, both published quirks included: `(B, H, W, h, 9)`."""
    heads, tables = layer.heads, layer.pos_emb
    across = g.op("MatMul", q, _table(g, tables.rel_width, size.width))
    down = g.op("MatMul", q, g.op("Unsqueeze", _table(g, tables.rel_height, size.height), [1]))
    held = g.op("Transpose", down, perm=[0, 3, 4, 2, 1])  # (B, h, 9, W, H)
    held = g.reshape(held, -1, heads * SAMPLES, size.width, size.height)
    held = resize(g, held, size.height, size.width, corners_aligned=False)  # nothing where H = W
    held = g.reshape(held, -1, heads, SAMPLES, size.height, size.width)
    return g.op("Add", across, g.op("Transpose", held, perm=[0, 3, 4, 1, 2]))


def _table(g: GraphBuilder, table: Tensor, length: str) -> str:
    """`(L, d, 9)`: for each position along an axis the resampled table's rows of the 9 samples."""
    values = table.detach().cpu().float().numpy()
    row = g.op("Sub", g.op("Sub", g.number(length), np.float32(1)), g.reshape(g.count(length), -1, 1))
    row = g.op("Add", row, np.arange(SAMPLES, dtype=np.float32))  # (L, 9)
    scale = g.op("Div", np.float32(len(values)), g.op("Add", g.number(length), np.float32(TABLE_MARGIN)))
    at = g.op("Sub", g.op("Mul", g.op("Add", row, np.float32(0.5)), scale), np.float32(0.5))
    at = g.op("Clip", at, np.float32(0), np.float32(len(values) - 1))
    taken = g.op("MatMul", _hat(g, at, np.arange(len(values), dtype=np.float32)), values)
    return g.rounded(g.op("Transpose", taken, perm=[0, 2, 1]))


def _hat(g: GraphBuilder, at: str, columns: str | np.ndarray) -> str:
    """Weights of linear interpolation at positions `(..., L)` between whole numbers `(n,)`: `(..., L, n)`."""
    distance = g.op("Abs", g.op("Sub", g.op("Unsqueeze", at, [-1]), columns))
    return g.op("Relu", g.op("Sub", np.float32(1), distance))


def resize(g: GraphBuilder, x: str, height: Length, width: Length, *, corners_aligned: bool = True) -> str:
    """Bilinear resize of `(B, C, h, w)`."""
    batch, channels = g.sizes(x, 0, 1)
    mode = "align_corners" if corners_aligned else "half_pixel"
    sizes = g.shape(batch, channels, height, width)
    return g.op("Resize", x, None, None, sizes, mode="linear", coordinate_transformation_mode=mode)


def resize_chain(g: GraphBuilder, x: str, sizes: Sequence[Size]) -> str:
    """`(B, C, h, w)` resized to each of `sizes` (H, W) in turn, as one product along each axis."""
    height, width = g.sizes(x, 2, 3)
    down = _chain_matrix(g, [height, *(size[0] for size in sizes)])
    across = _chain_matrix(g, [width, *(size[1] for size in sizes)])
    return g.op("MatMul", down, g.op("MatMul", x, g.op("Transpose", across, perm=[1, 0])))


def _chain_matrix(g: GraphBuilder, lengths: Sequence[Length]) -> str:
    """The matrix `(last, first)` of a chain of 1-D resizes, corners aligned."""
    chain = None
    for source, target in pairwise(lengths):
        last, steps = g.op("Sub", g.number(source), np.float32(1)), g.op("Sub", g.number(target), np.float32(1))
        step = g.op("Div", last, g.op("Max", steps, np.float32(1)))
        matrix = _hat(g, g.op("Mul", g.count(target), step), g.count(source))
        chain = matrix if chain is None else g.op("MatMul", matrix, chain)
    assert chain is not None
    return g.rounded(chain)
