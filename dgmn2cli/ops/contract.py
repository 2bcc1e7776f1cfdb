"""What the ops accept: shapes, dtypes, devices and whole numbers, checked before a kernel forms an address."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgmn2cli.errors import ConfigError
from dgmn2cli.ops.reference import SAMPLES, TABLE_MARGIN

Pair = tuple[int, int]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LIMIT = 2**31  # of every whole number, and of the samples of a map: the kernels count them in 32 bits
WINDOW = ("kernel_size", "stride", "padding", "dilation")


def refuse(op: str, argument: str, seen: object, wanted: str) -> ConfigError:
    """The error for an argument that does not fit: what it is, and what it should be."""
    return ConfigError(f"cannot run {op}", where=argument, why=f"it is {seen}, wanted {wanted}")


def require_tensors(
    op: str, tensors: Sequence[Tensor], names: Sequence[str], dtypes: Sequence[torch.dtype] = FLOATS
) -> None:
    """Refuses tensors that are not dense floats on one device, the first of one of `dtypes`.

    Raises:
        ConfigError: naming the argument.
    """
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None:  # which PyTorch passes for a tensor
            raise refuse(op, name, None, "a tensor")
        device = tensors[0].device
        wanted = dtypes if tensor is tensors[0] else FLOATS
        if tensor.dtype not in wanted:
            raise refuse(op, name, tensor.dtype, ", ".join(str(dtype).removeprefix("torch.") for dtype in wanted))
        if tensor.device != device:
            raise refuse(op, name, f"on {tensor.device}", f"all tensors on one device ({device})")
        if tensor.layout != torch.strided:
            raise refuse(op, name, tensor.layout, "a dense tensor")


def require_memory(op: str, tensors: Sequence[Tensor]) -> None:
    """Refuses tensors whose memory was given back (`untyped_storage().resize_(0)`).

    Raises:
        ConfigError: there is such a one.
    """
    if any(tensor.data_ptr() == 0 and tensor.numel() for tensor in tensors):
        raise refuse(op, "arguments", "a tensor without memory", "every tensor's memory")


def require_shape(op: str, name: str, tensor: Tensor, wanted: Sequence[int]) -> None:
    """Refuses a tensor of another shape.

    Raises:
        ConfigError: naming the argument, its shape and the one wanted.
    """
    if tuple(tensor.shape) != tuple(wanted):
        raise refuse(op, name, tuple(tensor.shape), str(tuple(wanted)))


def pair(op: str, argument: str, value: int | Sequence[int], least: int) -> Pair:
    """`value` as a pair of whole numbers, vertical first.

    Raises:
        ConfigError: not one or two whole numbers from `least` up to 2**31.
    """
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or min(values) < least or max(values) >= LIMIT:
        raise refuse(op, argument, value, f"one or two whole numbers from {least} up to 2**31")
    return values[0], values[1]


def output_size(size: Pair, geometry: Sequence[int]) -> Pair:
    """`(Ho, Wo)` of an unfold over a map of `size`; not positive where the kernel does not fit.

    Args:
        size: `(H, W)`.
        geometry: kernel size, stride, padding and dilation, vertical and horizontal each.
    """
    height, width = (
        (length + 2 * pad - dilate * (taps - 1) - 1) // step + 1
        for length, taps, step, pad, dilate in zip(size, *(geometry[i : i + 2] for i in (0, 2, 4, 6)), strict=True)
    )
    return height, width


def check_unfold(input: Tensor, offset: Tensor, geometry: Sequence[int]) -> None:
    """Refuses arguments that do not fit `deform_unfold`; `geometry` as in `output_size`, then the groups.

    Raises:
        ConfigError: naming the argument, the value seen and the value wanted.
    """
    op = "deform_unfold"
    if len(geometry) != 2 * len(WINDOW) + 1:
        raise refuse(op, "geometry", f"{len(geometry)} numbers", "9")
    for place, name in enumerate(WINDOW):
        pair(op, name, geometry[2 * place : 2 * place + 2], 0 if name == "padding" else 1)
    if input.dim() != 4:
        raise refuse(op, "input", f"{input.dim()}-dimensional", "(B, C, H, W)")
    batch, channels, *size = input.shape
    groups = geometry[-1]
    if groups < 1 or channels % groups:
        raise refuse(op, "deformable_groups", groups, f"a divisor of the {channels} channels")
    out_size = output_size((size[0], size[1]), geometry)
    if min(size) < 1 or min(out_size) < 1:
        raise refuse(op, "input", tuple(input.shape), f"a map the kernel {tuple(geometry[:2])} fits into")
    require_shape(op, "offset", offset, (batch, groups * 2 * geometry[0] * geometry[1], *out_size))


def check_attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> None:
    """Refuses arguments that do not fit `deform_attention` over a map of `height` rows and `width` columns.

    Raises:
        ConfigError: naming the argument, the value seen and the value wanted.
    """
    op, size = "deform_attention", (height, width)
    if height < 1 or width < 1 or height * width * SAMPLES >= LIMIT:
        raise refuse(op, "size", size, "two positive numbers (H, W) with H * W * 9 below 2**31")
    if qkv.dim() != 5 or qkv.shape[1] != height * width or qkv.shape[2] != 3:
        raise refuse(op, "qkv", tuple(qkv.shape), f"(B, {height * width}, 3, heads, head width)")
    batch, count, _, heads, depth = qkv.shape
    if heads < 1 or depth < 1:
        raise refuse(op, "qkv", tuple(qkv.shape), "at least one head and one channel in it")
    require_shape(op, "offset", offset, (batch, count, heads, 2 * SAMPLES))
    require_shape(op, "height_table", height_table, (height + TABLE_MARGIN, depth))
    require_shape(op, "width_table", width_table, (width + TABLE_MARGIN, depth))
