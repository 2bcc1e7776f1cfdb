"""The GPU kernels of `deform_unfold`, forward and backward, in Triton; `operators` launches them.

A program takes one tap of one offset group, BLOCK_P consecutive output positions and BLOCK_C channels at a time, so
that neighbouring threads read neighbouring pixels and write neighbouring outputs. Backward, it walks all channels of
the group: the offsets' gradient is written by exactly one program, the input's is added with float32 atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dgmn2cli.ops.triton.kernels import blend, place


@triton.jit
def locate_tap(
    offset,
    own_tap,
    tap,
    position,
    positions,
    live,
    height,
    width,
    out_width,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
):
    """`place` of one tap at output positions (BLOCK_P,); `own_tap` numbers taps over all images and groups."""
    own = offset + own_tap * 2 * positions + position
    dy = tl.load(own, mask=live, other=0.0).to(tl.float32)
    dx = tl.load(own + positions, mask=live, other=0.0).to(tl.float32)
    row = position // out_width * stride_h - pad_h + tap // kernel_w * dilation_h
    column = position % out_width * stride_w - pad_w + tap % kernel_w * dilation_w
    finite, inside, top, left, down, right = place(row.to(tl.float32) + dy, column.to(tl.float32) + dx, height, width)
    return finite, inside & live, top, left, down, right


@triton.jit
def corner(planes, wanted, inside, row, column, height, width, row_stride, column_stride):
    """Addresses `(BLOCK_C, BLOCK_P)` of one pixel per position in each plane, and which of them to touch."""
    present = inside & (row >= 0) & (column >= 0) & (row < height) & (column < width)
    pixel = row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    return planes[:, None] + pixel[None, :], wanted[:, None] & present[None, :]


@triton.jit
def load_corner(planes, wanted, inside, row, column, height, width, row_stride, column_stride):
    """A corner's values in float32; 0 outside the map."""
    address, present = corner(planes, wanted, inside, row, column, height, width, row_stride, column_stride)
    return tl.load(address, mask=present, other=0.0).to(tl.float32)


@triton.jit
def sample(planes, wanted, inside, top, left, down, right, height, width, row_stride, column_stride):
    """Samples `(BLOCK_C, BLOCK_P)` of planes: value, slope along y, slope along x."""
    upper_left = load_corner(planes, wanted, inside, top, left, height, width, row_stride, column_stride)
    upper_right = load_corner(planes, wanted, inside, top, left + 1, height, width, row_stride, column_stride)
    lower_left = load_corner(planes, wanted, inside, top + 1, left, height, width, row_stride, column_stride)
    lower_right = load_corner(planes, wanted, inside, top + 1, left + 1, height, width, row_stride, column_stride)
    return blend(upper_left, upper_right, lower_left, lower_right, down[None, :], right[None, :])


@triton.jit
def add_corner(planes, wanted, inside, row, column, weight, tile, height, width):
    """Adds `tile * weight` to contiguous planes."""
    address, present = corner(planes, wanted, inside, row, column, height, width, width, 1)
    tl.atomic_add(address, tile * weight[None, :], mask=present, sem="relaxed")


@triton.jit
def spread(planes, wanted, inside, top, left, down, right, tile, height, width):
    """The adjoint of `sample`'s value."""
    add_corner(planes, wanted, inside, top, left, (1 - down) * (1 - right), tile, height, width)
    add_corner(planes, wanted, inside, top, left + 1, (1 - down) * right, tile, height, width)
    add_corner(planes, wanted, inside, top + 1, left, down * (1 - right), tile, height, width)
    add_corner(planes, wanted, inside, top + 1, left + 1, down * right, tile, height, width)


@triton.jit
def unfold_kernel(
    input,
    offset,
    out,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    group_channels,
    groups,
    height,
    width,
    positions,
    out_width,
    taps,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    size_class,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """`out` (B, C, taps, positions); programs run over (B * G, taps, channel blocks, position blocks)."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(positions, BLOCK_P)
    position = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    program = program // blocks
    channel_blocks = tl.cdiv(group_channels, BLOCK_C)
    channel = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    own_tap = program // channel_blocks
    tap = own_tap % taps
    own_group = own_tap // taps  # b * G + group
    live = position < positions
    wanted = channel < group_channels
    finite, inside, top, left, down, right = locate_tap(
        offset,
        own_tap,
        tap,
        position,
        positions,
        live,
        height,
        width,
        out_width,
        kernel_w,
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
    )
    planes = input + own_group // groups * batch_stride
    planes += (own_group % groups * group_channels + channel) * channel_stride
    value, _, _ = sample(planes, wanted, inside, top, left, down, right, height, width, row_stride, column_stride)
    value = tl.where(finite[None, :], value, float("nan"))
    address = out + ((own_group * group_channels + channel) * taps + tap)[:, None] * positions + position[None, :]
    tl.store(address, value.to(out.dtype.element_ty), mask=wanted[:, None] & live[None, :])


@triton.jit
def unfold_backward_kernel(
    input,
    offset,
    grad_out,
    grad_input,
    grad_offset,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    group_channels,
    groups,
    height,
    width,
    positions,
    out_width,
    taps,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    size_class,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """`grad_input` (B, C, H, W) contiguous float32, zero before; `grad_offset` like `offset`, contiguous."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(positions, BLOCK_P)
    position = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    own_tap = program // blocks
    tap = own_tap % taps
    own_group = own_tap // taps
    live = position < positions
    _finite, inside, top, left, down, right = locate_tap(
        offset,
        own_tap,
        tap,
        position,
        positions,
        live,
        height,
        width,
        out_width,
        kernel_w,
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
    )
    area = tl.zeros((1,), tl.int64) + height
    area = area * width
    grad_y = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    grad_x = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, group_channels, BLOCK_C):
        channel = own_group * group_channels + start + tl.arange(0, BLOCK_C)
        wanted = start + tl.arange(0, BLOCK_C) < group_channels
        planes = input + own_group // groups * batch_stride
        planes += (channel - own_group // groups * groups * group_channels) * channel_stride
        address = grad_out + (channel * taps + tap)[:, None] * positions + position[None, :]
        grad = tl.load(address, mask=wanted[:, None] & live[None, :], other=0.0).to(tl.float32)
        _value, slope_y, slope_x = sample(
            planes, wanted, inside, top, left, down, right, height, width, row_stride, column_stride
        )
        grad_y += grad * slope_y
        grad_x += grad * slope_x
        spread(grad_input + channel * area, wanted, inside, top, left, down, right, grad, height, width)
    own = grad_offset + own_tap * 2 * positions + position
    total_y = tl.where(inside, tl.sum(grad_y, 0), 0.0)
    total_x = tl.where(inside, tl.sum(grad_x, 0), 0.0)
    tl.store(own, total_y.to(grad_offset.dtype.element_ty), mask=live)
    tl.store(own + positions, total_x.to(grad_offset.dtype.element_ty), mask=live)
