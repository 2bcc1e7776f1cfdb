"""Owns the Triton kernels as PyTorch operators: `dgmn2::triton_*`, registered with shapes and gradients on import.

Launches are autotuned over a small fixed set of configurations, once per head width, number formats and power of two
of the number of queries; under the interpreter and under `torch.use_deterministic_algorithms` a fixed one runs.
The backward pass adds with float32 atomics and is not reproducible bit by bit: where deterministic algorithms are asked
for it refuses, or warns where that was asked for. Neither speed nor the choice of configurations was measured: the
kernels were checked by the interpreter and by compiling them for compute capability 8.0 and 9.0.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.errors import ResourceError
from dgmn2cli.ops.reference import SAMPLES, TABLE_MARGIN
from dgmn2cli.ops.triton import kernels
from dgmn2cli.ops.triton import unfold as unfold_kernels
from dgmn2cli.ops.triton.switch import interpreted

# (queries, warps) of a program. At 64 channels these hold 4 or 8 numbers of each tile per thread; with 16 the compiler
# runs out of registers backward.
_ATTENTION_SHAPES = ((16, 8), (16, 4), (8, 4), (8, 2), (32, 8))
_UNFOLD_SHAPES = ((16, 128, 4), (8, 256, 4), (64, 64, 8), (32, 64, 4))  # (channels, positions, warps)
_LARGEST_TILE = 2048  # numbers; wider heads take fewer queries at a time
_SMALL = {"BLOCK_M": 32, "num_warps": 4, "enable_fp_fusion": True}  # the kernels that are not worth tuning


def _fitting(configs: list[triton.Config], _: dict[str, Any], **arguments: Any) -> list[triton.Config]:
    """The configurations whose tile fits the registers; the first where none does."""
    fitting = [config for config in configs if config.kwargs["BLOCK_M"] * arguments["BLOCK_D"] <= _LARGEST_TILE]
    return fitting or configs[:1]


def _tuned_attention(kernel: Any, zeroed: tuple[str, ...] = ()) -> Any:
    """`kernel` autotuned; `zeroed` are the arguments it adds to, cleared between trials."""
    configs = [triton.Config({"BLOCK_M": m}, num_warps=warps, num_stages=1) for m, warps in _ATTENTION_SHAPES]
    prune = {"early_config_prune": _fitting}
    return triton.autotune(configs, ["size_class", "D"], prune_configs_by=prune, reset_to_zero=zeroed)(kernel)


def _tuned_unfold(kernel: Any, zeroed: tuple[str, ...] = ()) -> Any:
    configs = [
        triton.Config({"BLOCK_C": c, "BLOCK_P": p}, num_warps=warps, num_stages=1) for c, p, warps in _UNFOLD_SHAPES
    ]
    return triton.autotune(configs, ["size_class", "group_channels"], reset_to_zero=zeroed)(kernel)


_attend = _tuned_attention(kernels.attend_kernel)
_attend_values_backward = _tuned_attention(kernels.attend_values_backward_kernel, ("grad_v",))
_attend_keys_backward = _tuned_attention(kernels.attend_keys_backward_kernel, ("grad_k",))
_unfold = _tuned_unfold(unfold_kernels.unfold_kernel)
_unfold_backward = _tuned_unfold(unfold_kernels.unfold_backward_kernel, ("grad_input",))


def _launch(tuned: Any, grid: Any, *arguments: Any, **constants: int) -> None:
    """Runs an autotuned kernel; without tuning where timings must not choose the order of the sums, or would be the
    interpreter's, which takes as long for a large block as for a small one."""
    fixed = tuned.configs[-1] if interpreted() else tuned.configs[0]
    if interpreted() or torch.are_deterministic_algorithms_enabled():
        tuned.fn[grid](*arguments, **constants, **fixed.all_kwargs(), enable_fp_fusion=True)
    else:
        tuned[grid](*arguments, **constants, enable_fp_fusion=True)


def _refuse_if_deterministic(op: str) -> None:
    if not torch.are_deterministic_algorithms_enabled():
        return
    why = "it adds gradients with atomics, in an order that varies"
    if torch.is_deterministic_algorithms_warn_only_enabled():
        warnings.warn(f"the Triton backward of {op} is not deterministic: {why}", stacklevel=2)
        return
    raise ResourceError(
        f"the Triton backward of {op} cannot run",
        where="torch.use_deterministic_algorithms",
        why=why,
        hint="Use --backend reference, or allow algorithms that are not deterministic.",
    )


def _rows(tensor: Tensor) -> Tensor:
    """`tensor`, copied only if the numbers along its last axis are not neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _widths(depth: int) -> dict[str, int]:
    return {"D": depth, "BLOCK_D": max(16, triton.next_power_of_2(depth))}


@torch.library.custom_op("dgmn2::triton_attention", mutates_args=())
def _attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """`(B, N, h * d)` in qkv's format, and the logits `(B, h, 9, N)` float32 that the backward pass starts from."""
    batch, count, _, heads, depth = qkv.shape
    out, logits = _attention_shapes(qkv, offset, height_table, width_table, height, width)
    if out.numel() == 0:
        return out, logits
    qkv, offset, height_table, width_table = map(_rows, (qkv, offset, height_table, width_table))
    size_class = (batch * count * heads).bit_length()
    sizes = (count, height, width, heads)
    with torch.cuda.device_of(qkv):
        held = torch.empty_like(logits)
        kernels.height_logits_kernel[(batch * heads * triton.cdiv(count, _SMALL["BLOCK_M"]),)](
            qkv,
            height_table,
            held,
            qkv.stride(0),
            qkv.stride(1),
            qkv.stride(3),
            height_table.stride(0),
            *sizes,
            **_widths(depth),
            **_SMALL,
        )
        if height != width:
            held = held.view(-1, SAMPLES, width, height)
            held = F.interpolate(held, size=(height, width), mode="bilinear", align_corners=False)
        _launch(
            _attend,
            lambda meta: (batch * heads * triton.cdiv(count, meta["BLOCK_M"]),),
            qkv,
            offset,
            width_table,
            held,
            out,
            logits,
            *qkv.stride()[:4],
            *offset.stride()[:3],
            width_table.stride(0),
            *sizes,
            depth**-0.5,
            size_class,
            **_widths(depth),
        )
    return out, logits


@_attention.register_fake
def _attention_shapes(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    batch, count, _, heads, depth = qkv.shape
    out = qkv.new_empty((batch, count, heads * depth))
    return out, qkv.new_empty((batch, heads, SAMPLES, count), dtype=torch.float32)


@torch.library.custom_op("dgmn2::triton_attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor,
    logits: Tensor,
    qkv: Tensor,
    offset: Tensor,
    height_table: Tensor,
    width_table: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, offset and both tables, each in its argument's number format."""
    _refuse_if_deterministic("deform_attention")
    batch, count, _, heads, depth = qkv.shape
    if qkv.numel() == 0:
        none = [tensor.new_zeros(tensor.shape) for tensor in (qkv, offset, height_table, width_table)]
        return none[0], none[1], none[2], none[3]
    grad_offset = offset.new_empty(offset.shape)
    qkv, offset, height_rows, width_rows = map(_rows, (qkv, offset, height_table, width_table))
    grad = qkv.new_zeros(qkv.shape, dtype=torch.float32)
    grad_q, grad_k, grad_v = grad.unbind(2)
    grad_logits = torch.empty_like(logits)
    grad_place = logits.new_empty((batch, heads, 2 * SAMPLES, count))
    size_class = (batch * count * heads).bit_length()
    steps = (*qkv.stride()[:4], *offset.stride()[:3])
    sizes = (*grad_q.stride()[:3], count, height, width, heads)

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (batch * heads * triton.cdiv(count, meta["BLOCK_M"]),)

    with torch.cuda.device_of(qkv):
        _launch(
            _attend_values_backward,
            grid,
            qkv,
            offset,
            logits,
            grad_out.contiguous(),
            grad_v,
            grad_logits,
            grad_place,
            *steps,
            *sizes,
            size_class,
            **_widths(depth),
        )
        grad_held = _unresize(grad_logits, height, width)
        _launch(
            _attend_keys_backward,
            grid,
            qkv,
            offset,
            height_rows,
            width_rows,
            grad_logits,
            grad_held,
            grad_place,
            grad_q,
            grad_k,
            grad_offset,
            *steps,
            height_rows.stride(0),
            width_rows.stride(0),
            *sizes,
            depth**-0.5,
            size_class,
            **_widths(depth),
        )
        grad_height = _table_gradient(qkv, grad_held, height, width, width, 1)
        grad_width = _table_gradient(qkv, grad_logits, width, height, 1, width)
    return grad.to(qkv.dtype), grad_offset, grad_height.to(height_table.dtype), grad_width.to(width_table.dtype)


@_attention_backward.register_fake
def _(
    grad_out: Tensor,
    logits: Tensor,
    qkv: Tensor,
    offset: Tensor,
    height_table: Tensor,
    width_table: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    empty = [tensor.new_empty(tensor.shape) for tensor in (qkv, offset, height_table, width_table)]
    return empty[0], empty[1], empty[2], empty[3]


def _unresize(grad: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of the height term's resize from W x H to H x W, as two small products: `(B, h, 9, N)` both ways.

    A NaN spreads along its row and column here, further than in the definition.
    """
    if height == width:
        return grad
    down = F.interpolate(torch.eye(width, device=grad.device)[None], size=height, mode="linear")[0]  # (W, H)
    across = F.interpolate(torch.eye(height, device=grad.device)[None], size=width, mode="linear")[0]  # (H, W)
    maps = grad.unflatten(3, (height, width))
    held = down @ (maps @ across.mT) if height < width else (down @ maps) @ across.mT  # the smaller one in between
    return held.flatten(3)


def _table_gradient(qkv: Tensor, grad: Tensor, length: int, across: int, along_step: int, across_step: int) -> Tensor:
    """Gradient `(length + 8, d)` float32 of the table along the axis of `length` positions, summed in a fixed order."""
    batch, _, _, heads, depth = qkv.shape
    shares = qkv.new_empty((batch * heads, length + TABLE_MARGIN, depth), dtype=torch.float32)
    kernels.table_backward_kernel[(shares.shape[0] * shares.shape[1],)](
        qkv,
        grad,
        shares,
        qkv.stride(0),
        qkv.stride(1),
        qkv.stride(3),
        length,
        across,
        along_step,
        across_step,
        heads,
        **_widths(depth),
        **_SMALL,
    )
    return shares.sum(0)


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, height, width = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.size = height, width
    ctx.mark_non_differentiable(output[1])


def _attention_gradient(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.dgmn2.triton_attention_backward(grad_out, *ctx.saved_tensors, *ctx.size)
    return (*gradients, None, None)


_attention.register_autograd(_attention_gradient, setup_context=_attention_context)


def _unfold_sizes(
    input: Tensor,
    offset: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[int, ...]:
    """The whole numbers both unfold kernels take, from the input's strides to the size class."""
    positions, taps = offset.shape[2] * offset.shape[3], kernel[0] * kernel[1]
    size_class = (input.shape[0] * groups * taps * positions).bit_length()
    return (
        *input.stride(),
        input.shape[1] // groups,
        groups,
        input.shape[2],
        input.shape[3],
        positions,
        offset.shape[3],
        taps,
        kernel[1],
        *stride,
        *padding,
        *dilation,
        size_class,
    )


@torch.library.custom_op("dgmn2::triton_unfold", mutates_args=())
def _unfolded(
    input: Tensor,
    offset: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`(B, C * taps, Ho * Wo)` in the input's format."""
    out = _unfolded_shape(input, offset, kernel, stride, padding, dilation, groups)
    if out.numel() == 0:
        return out
    group_channels, positions = input.shape[1] // groups, out.shape[2]
    per_channel = input.shape[0] * groups * kernel[0] * kernel[1]

    def grid(meta: dict[str, int]) -> tuple[int]:
        blocks = triton.cdiv(group_channels, meta["BLOCK_C"]) * triton.cdiv(positions, meta["BLOCK_P"])
        return (per_channel * blocks,)

    sizes = _unfold_sizes(input, offset, kernel, stride, padding, dilation, groups)
    with torch.cuda.device_of(input):
        _launch(_unfold, grid, input, offset.contiguous(), out, *sizes)
    return out


@_unfolded.register_fake
def _unfolded_shape(
    input: Tensor,
    offset: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    channels = input.shape[1] * kernel[0] * kernel[1]
    return input.new_empty((input.shape[0], channels, offset.shape[2] * offset.shape[3]))


@torch.library.custom_op("dgmn2::triton_unfold_backward", mutates_args=())
def _unfolded_backward(
    grad_out: Tensor,
    input: Tensor,
    offset: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and the offsets, each in its argument's number format."""
    _refuse_if_deterministic("deform_unfold")
    grad_input = input.new_zeros(input.shape, dtype=torch.float32)
    grad_offset = offset.new_zeros(offset.shape)
    if grad_out.numel() == 0:
        return grad_input.to(input.dtype), grad_offset
    per_channel = input.shape[0] * groups * kernel[0] * kernel[1]
    sizes = _unfold_sizes(input, offset, kernel, stride, padding, dilation, groups)
    with torch.cuda.device_of(input):
        _launch(
            _unfold_backward,
            lambda meta: (per_channel * triton.cdiv(grad_out.shape[2], meta["BLOCK_P"]),),
            input,
            offset.contiguous(),
            grad_out.contiguous(),
            grad_input,
            grad_offset,
            *sizes,
        )
    return grad_input.to(input.dtype), grad_offset


@_unfolded_backward.register_fake
def _(
    grad_out: Tensor,
    input: Tensor,
    offset: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), offset.new_empty(offset.shape)


def _unfold_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.arguments = inputs[2:]


def _unfold_gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.dgmn2.triton_unfold_backward(grad_out, *ctx.saved_tensors, *ctx.arguments)
    return (*gradients, None, None, None, None, None)


_unfolded.register_autograd(_unfold_gradient, setup_context=_unfold_context)
