"""The Triton kernels as PyTorch operators, `dgmn2::triton_attention` and `dgmn2::triton_unfold`, registered on import.

Launches are autotuned over a small fixed set of configurations, once per head width, number formats and power of two
of the number of queries; Triton keeps on disk what was found, for each kind of GPU. Under the interpreter and under
`torch.use_deterministic_algorithms` a fixed one runs.
The backward pass adds with float32 atomics and is not reproducible bit by bit: where deterministic algorithms are asked
for it refuses, or warns where that was asked for. Neither speed nor the choice of configurations was measured: the
kernels were checked by the interpreter and by compiling them for compute capability 8.0 and 9.0.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.errors import ResourceError
from dgmn2cli.ops import native
from dgmn2cli.ops.contract import Pair
from dgmn2cli.ops.operators import Outputs
from dgmn2cli.ops.reference import SAMPLES, TABLE_MARGIN
from dgmn2cli.ops.triton import DTYPES, interpreted, kernels
from dgmn2cli.ops.triton import unfold as unfold_kernels

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
    return triton.autotune(
        configs, ["size_class", "D"], prune_configs_by=prune, reset_to_zero=zeroed, cache_results=True
    )(kernel)


def _tuned_unfold(kernel: Any, zeroed: tuple[str, ...] = ()) -> Any:
    configs = [
        triton.Config({"BLOCK_C": c, "BLOCK_P": p}, num_warps=warps, num_stages=1) for c, p, warps in _UNFOLD_SHAPES
    ]
    return triton.autotune(configs, ["size_class", "group_channels"], reset_to_zero=zeroed, cache_results=True)(kernel)


_attend = _tuned_attention(kernels.attend_kernel)
_attend_values_backward = _tuned_attention(kernels.attend_values_backward_kernel, ("grad_v",))
_attend_keys_backward = _tuned_attention(kernels.attend_keys_backward_kernel, ("grad_k",))
_unfold = _tuned_unfold(unfold_kernels.unfold_kernel)
_unfold_backward = _tuned_unfold(unfold_kernels.unfold_backward_kernel, ("grad_input",))


def _launch(tuned: Any, grid: Any, *arguments: Any, **constants: int) -> None:
    """Runs an autotuned kernel.

    Without tuning where timings must not choose the order of the sums, or would be the interpreter's, which takes as
    long for a large block as for a small one.
    """
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


def _outputs(qkv: Tensor, *_arguments: Any) -> Outputs:
    batch, count, _, heads, depth = qkv.shape
    return [((batch, count, heads * depth), qkv.dtype), ((batch, heads, SAMPLES, count), torch.float32)]


def _attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """`(B, N, h * d)` of qkv's dtype, and the logits `(B, h, 9, N)` float32 that the backward pass starts from."""
    batch, count, _, heads, depth = qkv.shape
    out, logits = (qkv.new_empty(shape, dtype=dtype) for shape, dtype in _outputs(qkv))
    if out.numel() == 0:
        return out, logits
    qkv, offset, height_table, width_table = map(_rows, (qkv, offset, height_table, width_table))
    size_class, size = (batch * count * heads).bit_length(), (height, width)
    with torch.cuda.device_of(qkv):
        held = torch.empty_like(logits)
        kernels.height_logits_kernel[(batch * heads * triton.cdiv(count, _SMALL["BLOCK_M"]),)](
            *(qkv, height_table, held, qkv.stride()[:4], height_table.stride(0), size, heads),
            **_widths(depth),
            **_SMALL,
        )
        if height != width:
            held = held.view(-1, SAMPLES, width, height)
            held = F.interpolate(held, size=size, mode="bilinear", align_corners=False)
        _launch(
            _attend,
            lambda meta: (batch * heads * triton.cdiv(count, meta["BLOCK_M"]),),
            *(qkv, offset, width_table, held, out, logits),
            *(qkv.stride()[:4], offset.stride()[:3], width_table.stride(0)),
            *(size, heads, depth**-0.5, size_class),
            **_widths(depth),
        )
    return out, logits


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
    """Gradients of qkv, offset and both tables, each of its argument's dtype."""
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
    size_class, size = (batch * count * heads).bit_length(), (height, width)
    steps = (qkv.stride()[:4], offset.stride()[:3])

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (batch * heads * triton.cdiv(count, meta["BLOCK_M"]),)

    with torch.cuda.device_of(qkv):
        _launch(
            _attend_values_backward,
            grid,
            *(qkv, offset, logits, grad_out.contiguous(), grad_v, grad_logits, grad_place),
            *(*steps, grad_v.stride()[:3], size, heads, size_class),
            **_widths(depth),
        )
        grad_held = _unresize(grad_logits, height, width)
        _launch(
            _attend_keys_backward,
            grid,
            *(qkv, offset, height_rows, width_rows, grad_logits, grad_held, grad_place, grad_q, grad_k, grad_offset),
            *(*steps, (height_rows.stride(0), width_rows.stride(0)), grad_q.stride()[:3]),
            *(size, heads, depth**-0.5, size_class),
            **_widths(depth),
        )
        grad_height = _table_gradient(qkv, grad_held, (width, height), (1, width))
        grad_width = _table_gradient(qkv, grad_logits, (height, width), (width, 1))
    return grad.to(qkv.dtype), grad_offset, grad_height.to(height_table.dtype), grad_width.to(width_table.dtype)


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


def _table_gradient(qkv: Tensor, grad: Tensor, size: Pair, token_steps: Pair) -> Tensor:
    """Gradient `(length + 8, d)` float32 of a table, summed in a fixed order; arguments as `table_backward_kernel`."""
    batch, _, _, heads, depth = qkv.shape
    shares = qkv.new_empty((batch * heads, size[1] + TABLE_MARGIN, depth), dtype=torch.float32)
    kernels.table_backward_kernel[(shares.shape[0] * shares.shape[1],)](
        *(qkv, grad, shares, qkv.stride()[:4], size, token_steps, heads), **_widths(depth), **_SMALL
    )
    return shares.sum(0)


def _unfold_sizes(input: Tensor, offset: Tensor, geometry: list[int]) -> tuple[Any, ...]:
    """The whole numbers both unfold kernels take, from the input's strides to the size class."""
    *window, groups = geometry
    positions = offset.shape[2] * offset.shape[3]
    sizes = (tuple(input.shape[2:]), (groups, input.shape[1] // groups), (positions, offset.shape[3]), tuple(window))
    return (input.stride(), *sizes, (input.shape[0] * groups * window[0] * window[1] * positions).bit_length())


def _unfold_forward(input: Tensor, offset: Tensor, geometry: list[int]) -> Tensor:
    out = input.new_empty(native.unfold.outputs(input, offset, geometry)[0][0])
    if out.numel() == 0:
        return out
    group_channels, positions = input.shape[1] // geometry[8], out.shape[2]
    per_channel = input.shape[0] * geometry[8] * geometry[0] * geometry[1]

    def grid(meta: dict[str, int]) -> tuple[int]:
        blocks = triton.cdiv(group_channels, meta["BLOCK_C"]) * triton.cdiv(positions, meta["BLOCK_P"])
        return (per_channel * blocks,)

    with torch.cuda.device_of(input):
        _launch(_unfold, grid, input, offset.contiguous(), out, *_unfold_sizes(input, offset, geometry))
    return out


def _unfold_gradients(grad: Tensor, input: Tensor, offset: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    """Gradients of the input and the offsets, each of its argument's dtype."""
    _refuse_if_deterministic("deform_unfold")
    grad_input = input.new_zeros(input.shape, dtype=torch.float32)
    grad_offset = offset.new_zeros(offset.shape)
    if grad.numel() == 0:
        return grad_input.to(input.dtype), grad_offset
    per_channel = input.shape[0] * geometry[8] * geometry[0] * geometry[1]
    with torch.cuda.device_of(input):
        _launch(
            _unfold_backward,
            lambda meta: (per_channel * triton.cdiv(grad.shape[2], meta["BLOCK_P"]),),
            *(input, offset.contiguous(), grad.contiguous(), grad_input, grad_offset),
            *_unfold_sizes(input, offset, geometry),
        )
    return grad_input.to(input.dtype), grad_offset


_DTYPES = tuple(getattr(torch, name) for name in DTYPES)
_KEYS = ("CUDA", "CPU") if interpreted() else ("CUDA",)

replace(
    native.attention,
    name="triton_attention",
    dtypes=_DTYPES,
    outputs=_outputs,
    forward=_attention,
    backward=_attention_backward,
    extras=1,
).register(*_KEYS)
replace(
    native.unfold, name="triton_unfold", dtypes=_DTYPES, forward=_unfold_forward, backward=_unfold_gradients
).register(*_KEYS)
