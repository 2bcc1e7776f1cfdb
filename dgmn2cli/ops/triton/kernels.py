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
"""

from __future__ import annotations

import triton
import triton.language as tl

SAMPLES = tl.constexpr(9)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite float32: unlike -inf, its difference to -inf is no NaN


@triton.jit
def place(y, x, height, width):
    """Coordinates `(K,)` float32 -> finite, inside the open box, row and column up and left of it, fractions beyond."""
    finite = (tl.abs(y) < float("inf")) & (tl.abs(x) < float("inf"))
    inside = (y > -1) & (x > -1) & (y < height) & (x < width)
    y = tl.where(inside, y, 0.0)  # from here on every coordinate is a valid one
    x = tl.where(inside, x, 0.0)
    top = tl.floor(y)
    left = tl.floor(x)
    return finite, inside, top.to(tl.int32), left.to(tl.int32), y - top, x - left


@triton.jit
def locate(offset, s, row, column, height, width, live):
    """`place` of sample `s` of queries at (row, column); `offset` points at each one's 18 numbers."""
    dy = tl.load(offset + 2 * s, mask=live, other=0.0).to(tl.float32)
    dx = tl.load(offset + 2 * s + 1, mask=live, other=0.0).to(tl.float32)
    y = (row + (s // 3 - 1)).to(tl.float32) + dy
    x = (column + (s % 3 - 1)).to(tl.float32) + dx
    finite, inside, top, left, down, right = place(y, x, height, width)
    return finite, inside & live, top, left, down, right


@triton.jit
def corner(base, stride, inside, row, column, height, width, lane, D: tl.constexpr):
    """Addresses `(M, BLOCK_D)` of the tokens at (row, column), and which of them exist."""
    present = inside & (row >= 0) & (column >= 0) & (row < height) & (column < width)
    token = row.to(tl.int64) * width + column
    return (base + token * stride)[:, None] + lane[None, :], present[:, None] & (lane < D)[None, :]


@triton.jit
def load_corner(base, stride, inside, row, column, height, width, lane, D: tl.constexpr):
    """A corner's values in float32; 0 outside the map."""
    address, present = corner(base, stride, inside, row, column, height, width, lane, D)
    return tl.load(address, mask=present, other=0.0).to(tl.float32)


@triton.jit
def blend(upper_left, upper_right, lower_left, lower_right, down, right):
    """Bilinear value of four corners, and its slopes along y and x."""
    upper = upper_left * (1 - right) + upper_right * right
    lower = lower_left * (1 - right) + lower_right * right
    slope_x = (upper_right - upper_left) * (1 - down) + (lower_right - lower_left) * down
    return upper * (1 - down) + lower * down, lower - upper, slope_x


@triton.jit
def sample(base, stride, inside, top, left, down, right, height, width, lane, D: tl.constexpr):
    """Rows of d numbers sampled from a token map: `(M, BLOCK_D)` value, slope along y, slope along x."""
    upper_left = load_corner(base, stride, inside, top, left, height, width, lane, D)
    upper_right = load_corner(base, stride, inside, top, left + 1, height, width, lane, D)
    lower_left = load_corner(base, stride, inside, top + 1, left, height, width, lane, D)
    lower_right = load_corner(base, stride, inside, top + 1, left + 1, height, width, lane, D)
    return blend(upper_left, upper_right, lower_left, lower_right, down[:, None], right[:, None])


@triton.jit
def add_corner(base, stride, inside, row, column, weight, tile, height, width, lane, D: tl.constexpr):
    """Adds to a corner, if it lies in the map."""
    address, present = corner(base, stride, inside, row, column, height, width, lane, D)
    tl.atomic_add(address, tile * weight[:, None], mask=present, sem="relaxed")


@triton.jit
def spread(base, stride, inside, top, left, down, right, tile, height, width, lane, D: tl.constexpr):
    """The adjoint of `sample`'s value: adds `tile` at the four corners, each by its weight."""
    add_corner(base, stride, inside, top, left, (1 - down) * (1 - right), tile, height, width, lane, D)
    add_corner(base, stride, inside, top, left + 1, (1 - down) * right, tile, height, width, lane, D)
    add_corner(base, stride, inside, top + 1, left, down * (1 - right), tile, height, width, lane, D)
    add_corner(base, stride, inside, top + 1, left + 1, down * right, tile, height, width, lane, D)


@triton.jit
def query_block(count, BLOCK_M: tl.constexpr):
    """This program's map `b * h + head`, its queries' token numbers (int64), and which of them exist."""
    blocks = tl.cdiv(count, BLOCK_M)
    program = tl.program_id(0).to(tl.int64)
    token = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    return program // blocks, token, token < count


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
    qkv_batch,
    qkv_token,
    qkv_head,
    table_stride,
    count,
    height,
    width,
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Height term of every query, `held[b, head, s, x, y] = q[y, x] . height_table[H - 1 + s - y]`."""
    maps, place_held, live = query_block(count, BLOCK_M)  # in the order it is held: runs along y
    row = place_held % height
    column = place_held // height
    lane = tl.arange(0, BLOCK_D)
    q = load_rows(
        qkv + maps // heads * qkv_batch + maps % heads * qkv_head, qkv_token, row * width + column, live, lane, D
    )
    for s in range(SAMPLES):
        table = load_rows(height_table, table_stride, height - 1 + s - row, live, lane, D)
        tl.store(held + (maps * SAMPLES + s) * count + place_held, tl.sum(q * table, 1), mask=live)


@triton.jit
def attend_kernel(
    qkv,
    offset,
    width_table,
    height_logits,
    out,
    logits,
    qkv_batch,
    qkv_token,
    qkv_part,
    qkv_head,
    offset_batch,
    offset_token,
    offset_head,
    table_stride,
    count,
    height,
    width,
    heads,
    scale,
    size_class,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """`out` (B, N, h, d) and the full logits per sample, which the backward pass reads."""
    maps, token, live = query_block(count, BLOCK_M)
    batch = maps // heads
    head = maps % heads
    row = (token // width).to(tl.int32)
    column = (token % width).to(tl.int32)
    lane = tl.arange(0, BLOCK_D)
    part = qkv + batch * qkv_batch + head * qkv_head
    q = load_rows(part, qkv_token, token, live, lane, D)
    own_offset = offset + batch * offset_batch + head * offset_head + token * offset_token

    highest = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(SAMPLES):
        finite, inside, top, left, down, right = locate(own_offset, s, row, column, height, width, live)
        key, _, _ = sample(part + qkv_part, qkv_token, inside, top, left, down, right, height, width, lane, D)
        relative = load_rows(width_table, table_stride, width - 1 + s - column, live, lane, D)
        logit = tl.sum(q * (key * scale + relative), 1)
        per_sample = (maps * SAMPLES + s) * count + token
        logit += tl.load(height_logits + per_sample, mask=live, other=0.0)
        logit = tl.where(finite, logit, float("nan"))
        tl.store(logits + per_sample, logit, mask=live)

        higher = tl.maximum(highest, logit)
        fade = tl.exp(highest - higher)
        share = tl.exp(logit - higher)
        value, _, _ = sample(part + 2 * qkv_part, qkv_token, inside, top, left, down, right, height, width, lane, D)
        mixed = mixed * fade[:, None] + value * share[:, None]
        total = total * fade + share
        highest = higher
    address = (out + (batch * count * heads + token * heads + head) * D)[:, None] + lane[None, :]
    mixed = mixed / total[:, None]
    tl.store(address, mixed.to(out.dtype.element_ty), mask=live[:, None] & (lane < D)[None, :])


@triton.jit
def attend_values_backward_kernel(
    qkv,
    offset,
    logits,
    grad_out,
    grad_v,
    grad_logits,
    grad_place,
    qkv_batch,
    qkv_token,
    qkv_part,
    qkv_head,
    offset_batch,
    offset_token,
    offset_head,
    grad_batch,
    grad_token,
    grad_head,
    count,
    height,
    width,
    heads,
    size_class,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What flows through v: `grad_v`, the logits' gradient per sample, and v's share of the offsets' gradient.

    `grad_place` is `(B, h, 18, N)` float32; `grad_v` float32, zero before, may have gaps between its tokens.
    """
    maps, token, live = query_block(count, BLOCK_M)
    batch = maps // heads
    head = maps % heads
    row = (token // width).to(tl.int32)
    column = (token % width).to(tl.int32)
    lane = tl.arange(0, BLOCK_D)
    v = qkv + batch * qkv_batch + 2 * qkv_part + head * qkv_head
    own_grad_v = grad_v + batch * grad_batch + head * grad_head
    grad = load_rows(grad_out + (batch * count * heads + head) * D, heads * D, token, live, lane, D)
    own_offset = offset + batch * offset_batch + head * offset_head + token * offset_token

    s_of_column = tl.arange(0, 16)  # the 9 samples, padded to a power of two
    columns = (maps * SAMPLES + s_of_column)[None, :] * count + token[:, None]
    known = live[:, None] & (s_of_column < SAMPLES)[None, :]
    logit = tl.load(logits + columns, mask=known, other=float("-inf"))
    logit = tl.where(live[:, None], logit, 0.0)
    share = tl.exp(logit - tl.max(logit, 1)[:, None])
    share = share / tl.sum(share, 1)[:, None]
    grad_share = tl.zeros((BLOCK_M, 16), tl.float32)
    for s in range(SAMPLES):
        own_share = tl.sum(tl.where(s_of_column[None, :] == s, share, 0.0), 1)
        _, inside, top, left, down, right = locate(own_offset, s, row, column, height, width, live)
        value, slope_y, slope_x = sample(v, qkv_token, inside, top, left, down, right, height, width, lane, D)
        grad_share = tl.where(s_of_column[None, :] == s, tl.sum(grad * value, 1)[:, None], grad_share)
        own_place = grad_place + (maps * 2 * SAMPLES + 2 * s) * count + token
        tl.store(own_place, own_share * tl.sum(grad * slope_y, 1), mask=live)
        tl.store(own_place + count, own_share * tl.sum(grad * slope_x, 1), mask=live)
        spread(
            own_grad_v, grad_token, inside, top, left, down, right, grad * own_share[:, None], height, width, lane, D
        )
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
    qkv_batch,
    qkv_token,
    qkv_part,
    qkv_head,
    offset_batch,
    offset_token,
    offset_head,
    height_stride,
    width_stride,
    grad_batch,
    grad_token,
    grad_head,
    count,
    height,
    width,
    heads,
    scale,
    size_class,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What flows through k and the position terms: `grad_q`, `grad_k` and the whole of `grad_offset` (B, N, h, 18).

    `grad_held` is the gradient of the height term where it is held, `(B, h, 9, W, H)`; `grad_k` is zero before.
    """
    maps, token, live = query_block(count, BLOCK_M)
    batch = maps // heads
    head = maps % heads
    row = (token // width).to(tl.int32)
    column = (token % width).to(tl.int32)
    lane = tl.arange(0, BLOCK_D)
    part = qkv + batch * qkv_batch + head * qkv_head
    q = load_rows(part, qkv_token, token, live, lane, D)
    own_offset = offset + batch * offset_batch + head * offset_head + token * offset_token
    own_grad_k = grad_k + batch * grad_batch + head * grad_head
    own_grad_offset = grad_offset + (batch * count * heads + token * heads + head) * (2 * SAMPLES)
    grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(SAMPLES):
        plane = (maps * SAMPLES + s) * count
        slope = tl.load(grad_logits + plane + token, mask=live, other=0.0)
        held = tl.load(grad_held + plane + column.to(tl.int64) * height + row, mask=live, other=0.0)
        _, inside, top, left, down, right = locate(own_offset, s, row, column, height, width, live)
        key, slope_y, slope_x = sample(
            part + qkv_part, qkv_token, inside, top, left, down, right, height, width, lane, D
        )
        relative = load_rows(width_table, width_stride, width - 1 + s - column, live, lane, D)
        grad += slope[:, None] * (key * scale + relative)
        grad += held[:, None] * load_rows(height_table, height_stride, height - 1 + s - row, live, lane, D)
        own_place = grad_place + (maps * 2 * SAMPLES + 2 * s) * count + token
        grad_y = tl.load(own_place, mask=live, other=0.0) + slope * scale * tl.sum(q * slope_y, 1)
        grad_x = tl.load(own_place + count, mask=live, other=0.0) + slope * scale * tl.sum(q * slope_x, 1)
        grad_y = tl.where(inside, grad_y, 0.0)
        grad_x = tl.where(inside, grad_x, 0.0)
        tl.store(own_grad_offset + 2 * s, grad_y.to(grad_offset.dtype.element_ty), mask=live)
        tl.store(own_grad_offset + 2 * s + 1, grad_x.to(grad_offset.dtype.element_ty), mask=live)
        tile = q * (slope * scale)[:, None]
        spread(own_grad_k, grad_token, inside, top, left, down, right, tile, height, width, lane, D)
    address = (grad_q + batch * grad_batch + head * grad_head + token * grad_token)[:, None] + lane[None, :]
    tl.store(address, grad, mask=live[:, None] & (lane < D)[None, :])


@triton.jit
def table_backward_kernel(
    qkv,
    grad,
    grad_table,
    qkv_batch,
    qkv_token,
    qkv_head,
    length,
    across,
    token_along,
    token_across,
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One row of one image's and head's share of a table's gradient, `grad_table` (B * h, length + 8, d) float32.

    Row `length - 1 + s - position` served sample `s` of the queries at `position` along the table's axis: there are
    `across` of them. `grad` per sample is laid out `(.., 9, across, length)`, that is the width term's as the map is
    and the height term's as it is held.
    """
    program = tl.program_id(0).to(tl.int64)
    maps = program // (length + 8)
    table_row = program % (length + 8)
    q = qkv + maps // heads * qkv_batch + maps % heads * qkv_head
    lane = tl.arange(0, BLOCK_D)
    tile = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(tl.maximum(table_row - length + 1, 0), tl.minimum(table_row + 1, SAMPLES)):
        position = length - 1 + s - table_row
        for start in range(0, across, BLOCK_M):
            other = start + tl.arange(0, BLOCK_M)
            live = other < across
            own = ((maps * SAMPLES + s) * across + other) * length + position
            slope = tl.load(grad + own, mask=live, other=0.0)
            tile += slope[:, None] * load_rows(
                q, qkv_token, position * token_along + other * token_across, live, lane, D
            )
    tl.store(grad_table + program * D + lane, tl.sum(tile, 0), mask=lane < D)
