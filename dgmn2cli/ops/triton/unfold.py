"""The GPU kernels of `deform_unfold`, forward and backward, in Triton; `operators` launches them.

A program takes one tap of one offset group, BLOCK_P consecutive output positions and BLOCK_C channels at a time, so
that neighbouring threads read neighbouring pixels and write neighbouring outputs. Backward, it walks all channels of
the group: the offsets' gradient is written by exactly one program, the input's is added with float32 atomics.

`steps` are the input's strides, `size` is its (height, width), `groups` are (number, channels of one), `out_size` is
the output's (positions, width), `window` the kernel's size, stride, padding and dilation, vertical and horizontal each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dgmn2cli.ops.triton.kernels import Maps, place, sample, spread


@triton.jit
def locate_tap(offset, own_tap, position, size, out_size, window):
    """The `Spot` of one tap at output positions (BLOCK_P,); `own_tap` numbers taps over all images and groups."""
    positions, out_width = out_size
    live = position < positions
    tap = own_tap % (window[0] * window[1])
    own = offset + own_tap * 2 * positions + position
    dy = tl.load(own, mask=live, other=0.0).to(tl.float32)
    dx = tl.load(own + positions, mask=live, other=0.0).to(tl.float32)
    row = position // out_width * window[2] - window[4] + tap // window[1] * window[6]
    column = position % out_width * window[3] - window[5] + tap % window[1] * window[7]
    return place(row.to(tl.float32) + dy, column.to(tl.float32) + dx, size, live)


@triton.jit
def group_maps(input, steps, size, groups, own_group, channel):
    """The `Maps`, along axis 0 of a tile, of the `channel`s of a group, which are numbered over all images."""
    first = input + own_group // groups[0] * steps[0] + (own_group % groups[0] * groups[1] + channel) * steps[1]
    return Maps(first[:, None], (channel < groups[1])[:, None], steps[2], steps[3], size[0], size[1])


@triton.jit
def unfold_kernel(
    input, offset, out, steps, size, groups, out_size, window, size_class, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """`out` (B, C, taps, positions); programs run over (B * G, taps, channel blocks, position blocks)."""
    program = tl.program_id(0).to(tl.int64)
    positions, taps = out_size[0], window[0] * window[1]
    blocks = tl.cdiv(positions, BLOCK_P)
    position = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    program = program // blocks
    channel_blocks = tl.cdiv(groups[1], BLOCK_C)
    channel = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    own_tap = program // channel_blocks
    own_group = own_tap // taps  # b * G + group
    maps = group_maps(input, steps, size, groups, own_group, channel)
    spot = locate_tap(offset, own_tap, position, size, out_size, window)
    value, _, _ = sample(maps, spot, 0)
    value = tl.where(spot.finite[None, :], value, float("nan"))
    plane = (own_group * groups[1] + channel) * taps + own_tap % taps
    address = out + plane[:, None] * positions + position[None, :]
    tl.store(address, value.to(out.dtype.element_ty), mask=maps.exist & (position < positions)[None, :])


@triton.jit
def unfold_backward_kernel(
    input,
    offset,
    grad_out,
    grad_input,
    grad_offset,
    steps,
    size,
    groups,
    out_size,
    window,
    size_class,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """`grad_input` (B, C, H, W) contiguous float32, zero before; `grad_offset` like `offset`, contiguous."""
    program = tl.program_id(0).to(tl.int64)
    positions, taps = out_size[0], window[0] * window[1]
    blocks = tl.cdiv(positions, BLOCK_P)
    position = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    own_tap = program // blocks
    own_group = own_tap // taps
    live = position < positions
    spot = locate_tap(offset, own_tap, position, size, out_size, window)
    area = tl.cast(size[0], tl.int64) * size[1]
    grad_y = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    grad_x = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, groups[1], BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        maps = group_maps(input, steps, size, groups, own_group, channel)
        plane = own_group * groups[1] + channel
        address = grad_out + (plane * taps + own_tap % taps)[:, None] * positions + position[None, :]
        grad = tl.load(address, mask=maps.exist & live[None, :], other=0.0).to(tl.float32)
        _value, slope_y, slope_x = sample(maps, spot, 0)
        grad_y += grad * slope_y
        grad_x += grad * slope_x
        grads = Maps((grad_input + plane * area)[:, None], maps.exist, size[1], 1, size[0], size[1])
        spread(grads, spot, grad, 0)
    own = grad_offset + own_tap * 2 * positions + position
    total_y = tl.where(spot.inside, tl.sum(grad_y, 0), 0.0)
    total_x = tl.where(spot.inside, tl.sum(grad_x, 0), 0.0)
    tl.store(own, total_y.to(grad_offset.dtype.element_ty), mask=live)
    tl.store(own + positions, total_x.to(grad_offset.dtype.element_ty), mask=live)
