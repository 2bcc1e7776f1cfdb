"""Owns what the ops accept: every size and number format, checked before any kernel runs."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmn2cli.errors import ConfigError
from dgmn2cli.ops.reference import SAMPLES, TABLE_MARGIN

Pair = tuple[int, int]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _refuse(op: str, argument: str, seen: object, wanted: str) -> ConfigError:
    return ConfigError(f"cannot run {op}", where=argument, why=f"it is {seen}, wanted {wanted}")


def _require_float(op: str, **tensors: Tensor) -> None:
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise _refuse(op, name, tensor.dtype, "float32, float64, bfloat16 or float16")
        if tensor.device != device:
            raise _refuse(op, name, f"on {tensor.device}", f"all tensors on one device ({device})")


def pair(op: str, argument: str, value: int | Pair, least: int) -> Pair:
    """`value` as a pair of whole numbers, vertical first.

    Raises:
        ConfigError: not one or two whole numbers of at least `least`.
    """
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or min(values) < least:
        raise _refuse(op, argument, value, f"one or two whole numbers of at least {least}")
    return values[0], values[1]


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """`(Ho, Wo)` of an unfold over a map of `size`; not positive where the kernel does not fit."""
    height, width = (
        (length + 2 * pad - dilate * (taps - 1) - 1) // step + 1
        for length, taps, step, pad, dilate in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def check_unfold(
    input: Tensor, offset: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> None:
    """Refuses tensors that do not fit `deform_unfold`.

    Raises:
        ConfigError: naming the argument, the size seen and the size wanted.
    """
    op = "deform_unfold"
    _require_float(op, input=input, offset=offset)
    if input.dim() != 4:
        raise _refuse(op, "input", f"{input.dim()}-dimensional", "(B, C, H, W)")
    if groups < 1 or input.shape[1] % groups:
        raise _refuse(op, "deformable_groups", groups, f"a divisor of the {input.shape[1]} channels")
    height, width = output_size((input.shape[2], input.shape[3]), kernel, stride, padding, dilation)
    if height < 1 or width < 1:
        raise _refuse(op, "input", tuple(input.shape), f"a map the kernel {kernel} fits into")
    wanted = (input.shape[0], groups * 2 * kernel[0] * kernel[1], height, width)
    if tuple(offset.shape) != wanted:
        raise _refuse(op, "offset", tuple(offset.shape), str(wanted))


def check_attention(qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, size: Pair) -> None:
    """Refuses tensors that do not fit `deform_attention`.

    Raises:
        ConfigError: naming the argument, the size seen and the size wanted.
    """
    op = "deform_attention"
    _require_float(op, qkv=qkv, offset=offset, height_table=height_table, width_table=width_table)
    height, width = size
    if height < 1 or width < 1:
        raise _refuse(op, "size", tuple(size), "two positive numbers (H, W)")
    if height * width * SAMPLES >= 2**31:
        raise _refuse(op, "size", tuple(size), "a map whose samples a 32-bit number can count")
    if qkv.dim() != 5 or qkv.shape[1] != height * width or qkv.shape[2] != 3:
        raise _refuse(op, "qkv", tuple(qkv.shape), f"(B, {height * width}, 3, heads, head width)")
    batch, count, _, heads, depth = qkv.shape
    if heads < 1 or depth < 1:
        raise _refuse(op, "qkv", tuple(qkv.shape), "at least one head and one channel in it")
    for name, tensor, wanted in (
        ("offset", offset, (batch, count, heads, 2 * SAMPLES)),
        ("height_table", height_table, (height + TABLE_MARGIN, depth)),
        ("width_table", width_table, (width + TABLE_MARGIN, depth)),
    ):
        if tuple(tensor.shape) != wanted:
            raise _refuse(op, name, tuple(tensor.shape), str(wanted))
