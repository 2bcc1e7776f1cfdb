"""The GPU kernels of the attention, forward and backward, in Triton; `operators` launches them.

How they work. A program of the attention takes BLOCK_M consecutive queries of one image and head, keeps their q in
registers and walks the 9 samples: four corner rows of d contiguous numbers each for k and for v, blended, scored and
folded into a running softmax, so that nothing 9-fold as wide as k is ever written. The backward pass is two walks:
`attend_values_backward` follows v and leaves the logits' gradient, `attend_keys_backward` follows k. The gradients of
k and v are added at the corners with float32 atomics, whose order, and so whose last bits, vary from run to run.
All else is written by exactly one program. All arithmetic is float32, addresses are 64-bit, and a sample's guard is
evaluated before its coordinates become integers: a NaN or infinite one loads nothing and yields NaN.

Arrays "per sample" are `(B, h, 9, N)` float32: a block of queries reads and writes them in runs. The height term is
held as the published network holds it, `(B, h, 9, W, H)`, and never transposed back (see `reference.position_logits`).
`size` is (height, width) of the map. `qkv_steps` are qkv's strides from image to image, token, part (q, k, v) and
head; those of other tensors go from image to image, token and head.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

SAMPLES = tl.constexpr(9)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite float32: unlike -inf, its difference to -inf is no NaN


class Spot(NamedTuple):
    """Where samples lie: finite?, in the open box?, row and column up and left of them, fractions beyond those."""

    finite: tl.tensor
    inside: tl.tensor
    top: tl.tensor
    left: tl.tensor
    down: tl.tensor
    right: tl.tensor


class Maps(NamedTuple):
    """Maps side by side, along one axis of a tile: their first cells' addresses, which maps exist, steps between cells.

    The tile's other axis, `AXIS` being this one, is that of the samples.
    """

    first: tl.tensor
    exist: tl.tensor
    row_step: tl.tensor
    column_step: tl.tensor
    height: tl.tensor
    width: tl.tensor


@triton.jit
def place(y, x, size, live):
    """The `Spot` of coordinates `(K,)` float32; those that are not live lie nowhere."""
    finite = (tl.abs(y) < float("inf")) & (tl.abs(x) < float("inf"))
    inside = (y > -1) & (x > -1) & (y < size[0]) & (x < size[1])
    y = tl.where(inside, y, 0.0)  # from here on every coordinate is a valid one
    x = tl.where(inside, x, 0.0)
    top = tl.floor(y)
    left = tl.floor(x)
    return Spot(finite, inside & live, top.to(tl.int32), left.to(tl.int32), y - top, x - left)


@triton.jit
def corner(maps, spot, below: tl.constexpr, beside: tl.constexpr, AXIS: tl.constexpr):
    """Addresses of one of the four corners around each sample, in every map, and which of them exist."""
    row = spot.top + below
    column = spot.left + beside
    present = spot.inside & (row >= 0) & (column >= 0) & (row < maps.height) & (column < maps.width)
    cell = row.to(tl.int64) * maps.row_step + column.to(tl.int64) * maps.column_step
    return maps.first + tl.expand_dims(cell, AXIS), maps.exist & tl.expand_dims(present, AXIS)


@triton.jit
def load_corner(maps, spot, below: tl.constexpr, beside: tl.constexpr, AXIS: tl.constexpr):
    """A corner's values in float32; 0 outside the map."""
    address, present = corner(maps, spot, below, beside, AXIS)
    return tl.load(address, mask=present, other=0.0).to(tl.float32)


@triton.jit
def sample(maps, spot, AXIS: tl.constexpr):
    """Bilinear samples of maps, as a tile: value, slope along y, slope along x."""
    upper_left = load_corner(maps, spot, 0, 0, AXIS)
    upper_right = load_corner(maps, spot, 0, 1, AXIS)
    lower_left = load_corner(maps, spot, 1, 0, AXIS)
    lower_right = load_corner(maps, spot, 1, 1, AXIS)
    down = tl.expand_dims(spot.down, AXIS)
    right = tl.expand_dims(spot.right, AXIS)
    upper = upper_left * (1 - right) + upper_right * right
    lower = lower_left * (1 - right) + lower_right * right
    slope_x = (upper_right - upper_left) * (1 - down) + (lower_right - lower_left) * down
    return upper * (1 - down) + lower * down, lower - upper, slope_x


@triton.jit
def spread(maps, spot, tile, AXIS: tl.constexpr):
    """The adjoint of `sample`'s value: adds `tile` at the four corners, each by its weight."""
    for below in tl.static_range(2):
        for beside in tl.static_range(2):
            address, present = corner(maps, spot, below, beside, AXIS)
            weight = (spot.down if below else 1 - spot.down) * (spot.right if beside else 1 - spot.right)
            tl.atomic_add(address, tile * tl.expand_dims(weight, AXIS), mask=present, sem="relaxed")


class Block(NamedTuple):
    """A program's queries: map `b * heads + head`, token numbers (int64), which of them exist, rows and columns."""

    map: tl.tensor
    batch: tl.tensor
    head: tl.tensor
    token: tl.tensor
    live: tl.tensor
    row: tl.tensor
    column: tl.tensor


@triton.jit
def query_block(size, heads, BLOCK_M: tl.constexpr):
    """The `Block` of this program."""
    count = size[0] * size[1]
    blocks = tl.cdiv(count, BLOCK_M)
    program = tl.program_id(0).to(tl.int64)
    token = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    own = program // blocks
    row = (token // size[1]).to(tl.int32)
    column = (token % size[1]).to(tl.int32)
    return Block(own, own // heads, own % heads, token, token < count, row, column)


@triton.jit
def locate(offset, offset_steps, block, s, size):
    """The `Spot` of sample `s` of a block's queries; `offset` is `(B, N, h, 18)`."""
    own = offset + block.batch * offset_steps[0] + block.head * offset_steps[2] + block.token * offset_steps[1]
    dy = tl.load(own + 2 * s, mask=block.live, other=0.0).to(tl.float32)
    dx = tl.load(own + 2 * s + 1, mask=block.live, other=0.0).to(tl.float32)
    y = (block.row + (s // 3 - 1)).to(tl.float32) + dy
    x = (block.column + (s % 3 - 1)).to(tl.float32) + dx
    return place(y, x, size, block.live)


@triton.jit
def token_maps(base, token_step, size, lane, D: tl.constexpr):
    """The `Maps`, along axis 1 of a tile, of d numbers for each token."""
    row_step = tl.cast(size[1], tl.int64) * token_step
    return Maps((base + lane)[None, :], (lane < D)[None, :], row_step, token_step, size[0], size[1])


@triton.jit
def load_rows(table, stride, row, live, lane, D: tl.constexpr):
    """Rows `row` (M,) of a `(rows, d)` array, as `(M, BLOCK_D)` float32; zero where not live."""
    address = (table + row.to(tl.int64) * stride)[:, None] + lane[None, :]
    return tl.load(address, mask=live[:, None] & (lane < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def height_logits_kernel(
    qkv,
    height_table,
    held,
    qkv_steps,
    table_step,
    size,
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Height term of every query, `held[b, head, s, x, y] = q[y, x] . height_table[H - 1 + s - y]`."""
    block = query_block((size[1], size[0]), heads, BLOCK_M)  # in the order it is held: rows of the map as columns
    lane = tl.arange(0, BLOCK_D)
    own = qkv + block.batch * qkv_steps[0] + block.head * qkv_steps[3]
    q = load_rows(own, qkv_steps[1], block.column * size[1] + block.row, block.live, lane, D)
    for s in range(SAMPLES):
        table = load_rows(height_table, table_step, size[0] - 1 + s - block.column, block.live, lane, D)
        address = held + (block.map * SAMPLES + s) * size[0] * size[1] + block.token
        tl.store(address, tl.sum(q * table, 1), mask=block.live)


@triton.jit
def attend_kernel(
    qkv,
    offset,
    width_table,
    height_logits,
    out,
    logits,
    qkv_steps,
    offset_steps,
    table_step,
    size,
    heads,
    scale,
    size_class,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """`out` (B, N, h, d) and the full logits per sample, which the backward pass reads."""
    block = query_block(size, heads, BLOCK_M)
    count = size[0] * size[1]
    lane = tl.arange(0, BLOCK_D)
    own = qkv + block.batch * qkv_steps[0] + block.head * qkv_steps[3]
    q = load_rows(own, qkv_steps[1], block.token, block.live, lane, D)
    keys = token_maps(own + qkv_steps[2], qkv_steps[1], size, lane, D)
    values = token_maps(own + 2 * qkv_steps[2], qkv_steps[1], size, lane, D)

    highest = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(SAMPLES):
        spot = locate(offset, offset_steps, block, s, size)
        key, _, _ = sample(keys, spot, 1)
        relative = load_rows(width_table, table_step, size[1] - 1 + s - block.column, block.live, lane, D)
        logit = tl.sum(q * (key * scale + relative), 1)
        per_sample = (block.map * SAMPLES + s) * count + block.token
        logit += tl.load(height_logits + per_sample, mask=block.live, other=0.0)
        logit = tl.where(spot.finite, logit, float("nan"))
        tl.store(logits + per_sample, logit, mask=block.live)

        higher = tl.maximum(highest, logit)
        fade = tl.exp(highest - higher)
        share = tl.exp(logit - higher)
        value, _, _ = sample(values, spot, 1)
        mixed = mixed * fade[:, None] + value * share[:, None]
        total = total * fade + share
        highest = higher
    first = out + (block.batch * count * heads + block.token * heads + block.head) * D
    mixed = mixed / total[:, None]
    exist = block.live[:, None] & (lane < D)[None, :]
    tl.store(first[:, None] + lane[None, :], mixed.to(out.dtype.element_ty), mask=exist)


@triton.jit
def attend_values_backward_kernel(
    qkv,
    offset,
    logits,
    grad_out,
    grad_v,
    grad_logits,
    grad_place,
    qkv_steps,
    offset_steps,
    grad_steps,
    size,
    heads,
    size_class,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What flows through v: `grad_v`, the logits' gradient per sample, and v's share of the offsets' gradient.

    `grad_place` is `(B, h, 18, N)` float32; `grad_v` float32, zero before, may have gaps between its tokens.
    """
    block = query_block(size, heads, BLOCK_M)
    count = size[0] * size[1]
    lane = tl.arange(0, BLOCK_D)
    own = qkv + block.batch * qkv_steps[0] + 2 * qkv_steps[2] + block.head * qkv_steps[3]
    values = token_maps(own, qkv_steps[1], size, lane, D)
    own_grad = grad_v + block.batch * grad_steps[0] + block.head * grad_steps[2]
    grads = token_maps(own_grad, grad_steps[1], size, lane, D)
    first = grad_out + (block.batch * count * heads + block.head) * D
    grad = load_rows(first, heads * D, block.token, block.live, lane, D)

    s_of_column = tl.arange(0, 16)  # the 9 samples, padded to a power of two
    columns = (block.map * SAMPLES + s_of_column)[None, :] * count + block.token[:, None]
    known = block.live[:, None] & (s_of_column < SAMPLES)[None, :]
    logit = tl.load(logits + columns, mask=known, other=float("-inf"))
    logit = tl.where(block.live[:, None], logit, 0.0)
    share = tl.exp(logit - tl.max(logit, 1)[:, None])
    share = share / tl.sum(share, 1)[:, None]
    grad_share = tl.zeros((BLOCK_M, 16), tl.float32)
    for s in range(SAMPLES):
        own_share = tl.sum(tl.where(s_of_column[None, :] == s, share, 0.0), 1)
        spot = locate(offset, offset_steps, block, s, size)
        value, slope_y, slope_x = sample(values, spot, 1)
        grad_share = tl.where(s_of_column[None, :] == s, tl.sum(grad * value, 1)[:, None], grad_share)
        own_place = grad_place + (block.map * 2 * SAMPLES + 2 * s) * count + block.token
        tl.store(own_place, own_share * tl.sum(grad * slope_y, 1), mask=block.live)
        tl.store(own_place + count, own_share * tl.sum(grad * slope_x, 1), mask=block.live)
        spread(grads, spot, grad * own_share[:, None], 1)
    mean = tl.sum(share * grad_share, 1)
    tl.store(grad_logits + columns, share * (grad_share - mean[:, None]), mask=known)


@triton.jit
def attend_keys_backward_kernel(
    qkv,
    offset,
    height_table,
    width_table,
    grad_logits,
    grad_held,
    grad_place,
    grad_q,
    grad_k,
    grad_offset,
    qkv_steps,
    offset_steps,
    table_steps,
    grad_steps,
    size,
    heads,
    scale,
    size_class,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What flows through k and the position terms: `grad_q`, `grad_k` and the whole of `grad_offset` (B, N, h, 18).

    `grad_held` is the gradient of the height term where it is held, `(B, h, 9, W, H)`; `grad_k` is zero before.
    `table_steps` are those of the height table's rows and of the width table's.
    """
    block = query_block(size, heads, BLOCK_M)
    count = size[0] * size[1]
    lane = tl.arange(0, BLOCK_D)
    own = qkv + block.batch * qkv_steps[0] + block.head * qkv_steps[3]
    q = load_rows(own, qkv_steps[1], block.token, block.live, lane, D)
    keys = token_maps(own + qkv_steps[2], qkv_steps[1], size, lane, D)
    own_grad = block.batch * grad_steps[0] + block.head * grad_steps[2]
    grads = token_maps(grad_k + own_grad, grad_steps[1], size, lane, D)
    own_offset = grad_offset + (block.batch * count * heads + block.token * heads + block.head) * (2 * SAMPLES)
    grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(SAMPLES):
        plane = (block.map * SAMPLES + s) * count
        slope = tl.load(grad_logits + plane + block.token, mask=block.live, other=0.0)
        at = plane + block.column.to(tl.int64) * size[0] + block.row
        held = tl.load(grad_held + at, mask=block.live, other=0.0)
        spot = locate(offset, offset_steps, block, s, size)
        key, slope_y, slope_x = sample(keys, spot, 1)
        relative = load_rows(width_table, table_steps[1], size[1] - 1 + s - block.column, block.live, lane, D)
        grad += slope[:, None] * (key * scale + relative)
        relative = load_rows(height_table, table_steps[0], size[0] - 1 + s - block.row, block.live, lane, D)
        grad += held[:, None] * relative
        own_place = grad_place + (block.map * 2 * SAMPLES + 2 * s) * count + block.token
        grad_y = tl.load(own_place, mask=block.live, other=0.0) + slope * scale * tl.sum(q * slope_y, 1)
        grad_x = tl.load(own_place + count, mask=block.live, other=0.0) + slope * scale * tl.sum(q * slope_x, 1)
        grad_y = tl.where(spot.inside, grad_y, 0.0)
        grad_x = tl.where(spot.inside, grad_x, 0.0)
        tl.store(own_offset + 2 * s, grad_y.to(grad_offset.dtype.element_ty), mask=block.live)
        tl.store(own_offset + 2 * s + 1, grad_x.to(grad_offset.dtype.element_ty), mask=block.live)
        spread(grads, spot, q * (slope * scale)[:, None], 1)
    address = (grad_q + own_grad + block.token * grad_steps[1])[:, None] + lane[None, :]
    tl.store(address, grad, mask=block.live[:, None] & (lane < D)[None, :])


@triton.jit
def table_backward_kernel(
    qkv,
    grad,
    grad_table,
    qkv_steps,
    size,
    token_steps,
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One row of one image's and head's share of a table's gradient, `grad_table` (B * h, length + 8, d) float32.

    Row `length - 1 + s - position` served sample `s` of the queries at `position` along the table's axis: there are
    `across` of them, (across, length) being `size`. `grad` per sample is laid out `(.., 9, across, length)`, that is
    the width term's as the map is and the height term's as it is held. `token_steps` are those along both axes.
    """
    across, length = size
    program = tl.program_id(0).to(tl.int64)
    own = program // (length + 8)
    table_row = program % (length + 8)
    q = qkv + own // heads * qkv_steps[0] + own % heads * qkv_steps[3]
    lane = tl.arange(0, BLOCK_D)
    tile = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(tl.maximum(table_row - length + 1, 0), tl.minimum(table_row + 1, SAMPLES)):
        position = length - 1 + s - table_row
        for start in range(0, across, BLOCK_M):
            other = start + tl.arange(0, BLOCK_M)
            live = other < across
            slope = tl.load(grad + ((own * SAMPLES + s) * across + other) * length + position, mask=live, other=0.0)
            token = position * token_steps[1] + other * token_steps[0]
            tile += slope[:, None] * load_rows(q, qkv_steps[1], token, live, lane, D)
    tl.store(grad_table + program * D + lane, tl.sum(tile, 0), mask=lane < D)
