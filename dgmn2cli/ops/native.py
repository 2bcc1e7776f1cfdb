"""Owns the compiled CPU kernels: loading the extension, and its ops as PyTorch sees them (fake kernels, gradients)."""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from dgmn2cli.errors import ConfigError
from dgmn2cli.ops.contract import output_size

FORMATS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # as module.cpp numbers them
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
ISA_VARIABLE = "DGMN2_CPU_ISA"  # forces a lower instruction set than the machine's best
_SPARE = 16  # elements the kernels may touch behind the held height logits
_SAMPLES = 9
_BANDS, _RECORD = 8, 5  # parts in which the backward sorts an image's samples, and numbers it keeps of each

_kernels: ModuleType | None
try:
    from dgmn2cli.ops import _kernels as _loaded  # type: ignore[attr-defined]  # compiled, without a stub

    _kernels, _missing = _loaded, ""
except ImportError as error:
    _kernels, _missing = None, f"the compiled extension is not built ({error})"


def refusal(device: str, dtype: str) -> str:
    """Why the compiled kernels cannot run on a device type and number format ("" for any), empty where they can."""
    if _kernels is None:
        return _missing
    if device not in ("", "cpu"):
        return f"the compiled kernels run on the CPU, not on {device}"
    if dtype and dtype not in {str(known).removeprefix("torch.") for known in FORMATS}:
        return f"the compiled kernels take float32, float64 and bfloat16, not {dtype}"
    return ""


def loaded() -> ModuleType:
    """The compiled extension; only where `refusal` is empty."""
    assert _kernels is not None
    return _kernels


def instruction_set_level() -> int:
    """The instruction set in use as the kernels number it."""
    return INSTRUCTION_SETS.index(instruction_set())


def instruction_set() -> str:
    """The instruction set in use: the machine's best, or the lower one that `DGMN2_CPU_ISA` names.

    Raises:
        ConfigError: the variable names none, or one this machine lacks.
    """
    best = INSTRUCTION_SETS[loaded().best_isa()]
    wanted = os.environ.get(ISA_VARIABLE, best)
    if wanted not in INSTRUCTION_SETS or INSTRUCTION_SETS.index(wanted) > INSTRUCTION_SETS.index(best):
        raise ConfigError(
            "no such instruction set", where=f"{ISA_VARIABLE}={wanted}", why=f"this machine's best is {best}"
        )
    return wanted


def on_large_pages(tensor: Tensor) -> Tensor:
    """`tensor` itself, just allocated, its memory backed by large pages where the system has them to give."""
    if _kernels is not None and tensor.device.type == "cpu":
        _kernels.advise_large_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` as the kernels read it: contiguous, in the given number format."""
    return tensor.to(dtype).contiguous()


def _readable(qkv: Tensor) -> Tensor:
    """`qkv` read in place where each head's channels lie together, else a contiguous copy."""
    return qkv if qkv.stride(4) == 1 or qkv.shape[4] == 1 else qkv.contiguous()


def _attention_scratch(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """What a sample outside the map reads, and the space for the height logits."""
    zeros = qkv.new_zeros(qkv.shape[4])
    count = qkv.shape[0] * qkv.shape[1] * qkv.shape[3] * _SAMPLES + _SPARE
    return zeros, qkv.new_empty(count, dtype=_accumulation(qkv.dtype))


def _call_attention(name: str, qkv: Tensor, tensors: list[Tensor], height: int, width: int) -> None:
    addresses = [tensor.data_ptr() for tensor in tensors]
    strides = (qkv.stride(0), qkv.stride(1), qkv.stride(2), qkv.stride(3))
    getattr(loaded(), name)(
        FORMATS[qkv.dtype],
        torch.get_num_threads(),
        instruction_set_level(),
        *addresses,
        qkv.shape[0],
        height,
        width,
        qkv.shape[3],
        qkv.shape[4],
        *strides,
    )


@torch.library.custom_op("dgmn2::attention", mutates_args=(), device_types="cpu")
def attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> Tensor:
    """`dgmn2cli.ops.deform_attention` by the compiled kernels; arguments already checked."""
    qkv, dtype = _readable(qkv), _accumulation(qkv.dtype)
    batch, count, _, heads, depth = qkv.shape
    out = qkv.new_empty((batch, count, heads * depth))
    if out.numel():
        inputs = [qkv, *(_plain(tensor, dtype) for tensor in (offset, height_table, width_table))]
        _call_attention("attention_forward", qkv, [*inputs, *_attention_scratch(qkv), out], height, width)
    return out


@attention.register_fake
def _(qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int) -> Tensor:
    return qkv.new_empty((qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4]))


@torch.library.custom_op("dgmn2::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
    grad: Tensor, qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attention` for qkv, offset and both tables.

    Beside inputs and gradients it holds some 90 numbers per query and head, 10 per sample: O(N * h * 9), whatever the
    head width. Of the whole batch: height logits, softmax shares, logit gradients and, unless the map is square, the
    adjoint of the resize (9 each); of one image at a time: its sorted `Record`s (45) and where each cell's end (8 per
    cell, 32-bit). The contract keeps H * W * 9 below 2**31 and (H + 1) * (W + 1) cells are at most 4 * H * W, so the
    samples' counts and the cells' numbers fit in 32 bits.
    """
    qkv, dtype = _readable(qkv), _accumulation(qkv.dtype)
    batch, count, _, heads, depth = qkv.shape

    def space(*shape: int) -> Tensor:
        return qkv.new_empty(shape, dtype=dtype)

    grads = [space(*qkv.shape), space(*offset.shape), space(*height_table.shape), space(*width_table.shape)]
    if qkv.numel():
        inputs = [qkv, *(_plain(tensor, dtype) for tensor in (offset, height_table, width_table))]
        samples = (batch, count, heads, _SAMPLES)
        held = qkv.new_zeros(samples if height != width else (0,), dtype=dtype)
        records = space(heads, count, _SAMPLES, _RECORD)  # one image's samples, sorted by where they lie
        ends = qkv.new_empty((heads, _BANDS, height + 1, width + 1), dtype=torch.int32)
        scratch = [space(*samples), space(*samples), held, records, ends]
        parts = [space(height, _SAMPLES, depth), space(width, _SAMPLES, depth)]
        given = [*inputs, *_attention_scratch(qkv), _plain(grad, qkv.dtype)]
        _call_attention("attention_backward", qkv, [*given, *grads, *scratch, *parts], height, width)
    else:
        for value in grads:
            value.zero_()
    wanted = (qkv, offset, height_table, width_table)
    first, second, third, fourth = (value.to(like.dtype) for value, like in zip(grads, wanted, strict=True))
    return first, second, third, fourth


@attention_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        qkv.new_empty(qkv.shape),
        offset.new_empty(offset.shape),
        height_table.new_empty(height_table.shape),
        width_table.new_empty(width_table.shape),
    )


def _attention_setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, ctx.height, ctx.width = inputs  # type: ignore[attr-defined]  # where autograd keeps what we add
    ctx.save_for_backward(*tensors)  # type: ignore[arg-type]  # the first four inputs are tensors


def _attention_gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # type: ignore[attr-defined]
    return (*attention_backward(grad, *tensors, ctx.height, ctx.width), None, None)  # type: ignore[attr-defined]


attention.register_autograd(_attention_gradient, setup_context=_attention_setup)


def _call_unfold(name: str, input: Tensor, tensors: list[Tensor], out_size: list[int], geometry: list[int]) -> None:
    addresses = [tensor.data_ptr() for tensor in tensors]
    *window, groups = geometry
    getattr(loaded(), name)(
        FORMATS[input.dtype], torch.get_num_threads(), *addresses, *input.shape, groups, *out_size, *window
    )


@torch.library.custom_op("dgmn2::unfold", mutates_args=(), device_types="cpu")
def unfold(input: Tensor, offset: Tensor, geometry: list[int]) -> Tensor:
    """`dgmn2cli.ops.deform_unfold` by the compiled kernels.

    `geometry` holds kernel, stride, padding and dilation, vertical and horizontal each, and the deformable groups.
    """
    out = input.new_empty(_unfolded_shape(input, geometry))
    if out.numel():
        tensors = [input.contiguous(), _plain(offset, _accumulation(input.dtype)), out]
        _call_unfold("unfold_forward", input, tensors, list(offset.shape[2:]), geometry)
    return out


def _unfolded_shape(input: Tensor, geometry: list[int]) -> tuple[int, int, int]:
    pairs = [(geometry[i], geometry[i + 1]) for i in range(0, 8, 2)]
    height, width = output_size((input.shape[2], input.shape[3]), *pairs)
    return input.shape[0], input.shape[1] * geometry[0] * geometry[1], height * width


@unfold.register_fake
def _(input: Tensor, offset: Tensor, geometry: list[int]) -> Tensor:
    return input.new_empty(_unfolded_shape(input, geometry))


@torch.library.custom_op("dgmn2::unfold_backward", mutates_args=(), device_types="cpu")
def unfold_backward(grad: Tensor, input: Tensor, offset: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    """Gradients of `unfold` for input and offset."""
    dtype = _accumulation(input.dtype)
    grad_input, grad_offset = input.new_zeros(input.shape, dtype=dtype), offset.new_zeros(offset.shape, dtype=dtype)
    if grad.numel():
        given = [input.contiguous(), _plain(offset, dtype), _plain(grad, input.dtype)]
        tensors = [*given, grad_input, grad_offset]
        _call_unfold("unfold_backward", input, tensors, list(offset.shape[2:]), geometry)
    return grad_input.to(input.dtype), grad_offset.to(offset.dtype)


@unfold_backward.register_fake
def _(grad: Tensor, input: Tensor, offset: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), offset.new_empty(offset.shape)


def _unfold_setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    input, offset, ctx.geometry = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(input, offset)  # type: ignore[arg-type]


def _unfold_gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*unfold_backward(grad, *ctx.saved_tensors, ctx.geometry), None)  # type: ignore[attr-defined]


unfold.register_autograd(_unfold_gradient, setup_context=_unfold_setup)
