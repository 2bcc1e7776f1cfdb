"""The compiled CPU kernels: loading the extension, and the operators `dgmn2::attention` and `dgmn2::unfold` on it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.ops import reference
from dgmn2cli.ops.contract import Pair, check_attention, check_unfold
from dgmn2cli.ops.operators import LACKING, Operator, Outputs
from dgmn2cli.ops.reference import SAMPLES

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # as module.cpp numbers them
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
ISA_VARIABLE = "DGMN2_CPU_ISA"  # forces a lower instruction set than the machine's best
_SPARE = 16  # elements the kernels may touch behind the held height logits
_BANDS, _RECORD = 8, 5  # parts in which the backward sorts an image's samples, and numbers it keeps of each


def _parallel_for() -> int:
    """Address of libtorch's C function `torch_parallel_for`, by which kernels run on torch's own threads; 0 without."""
    for library in (Path(torch.__file__).parent / "lib").glob("*torch_cpu.*"):
        try:
            return ctypes.cast(ctypes.CDLL(str(library)).torch_parallel_for, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):  # no such library; a libtorch before 2.10
            continue
    return 0


_kernels: ModuleType | None
try:
    from dgmn2cli.ops import _kernels as _loaded  # type: ignore[attr-defined]  # compiled, without a stub

    _kernels, _missing = _loaded, ""
    _kernels.use_threads(_parallel_for())
except ImportError as error:
    _kernels, _missing = None, f"the compiled extension is not built ({error})"
if LACKING:
    _kernels, _missing = None, f"this PyTorch has no {LACKING}"


def refusal(device: str, dtype: str) -> str:
    """Why the compiled kernels cannot run on a device type and dtype ("" for any), empty where they can."""
    if _kernels is None:
        return _missing
    if device not in ("", "cpu", "meta"):  # shapes alone need no kernel
        return f"the compiled kernels run on the CPU, not on {device}"
    if dtype not in ("", "float32", "float64", "bfloat16"):
        return f"the compiled kernels take float32, float64 and bfloat16, not {dtype}"
    return ""


def loaded() -> ModuleType:
    """The compiled extension.

    Raises:
        ResourceError: it is not built.
    """
    if _kernels is None:
        raise ResourceError("cannot run the compiled kernels", why=_missing, hint="Use the backend 'reference'.")
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
    """`tensor` as the kernels read it: contiguous, of the given dtype."""
    return tensor.to(dtype).contiguous()


def _attention_operands(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """qkv, read in place where each head's channels lie together, and with it all tensors that both passes read.

    The last two are what a sample outside the map reads, and space for the height logits.
    """
    qkv = qkv if qkv.stride(4) == 1 or qkv.shape[4] == 1 else qkv.contiguous()
    batch, count, _, heads, depth = qkv.shape
    dtype = _accumulation(qkv.dtype)
    tables = [_plain(tensor, dtype) for tensor in (offset, height_table, width_table)]
    held = qkv.new_empty(batch * count * heads * SAMPLES + _SPARE, dtype=dtype)
    return qkv, [qkv, *tables, qkv.new_zeros(depth), held]


def _call_attention(name: str, qkv: Tensor, tensors: list[Tensor], height: int, width: int) -> None:
    batch, _, _, heads, depth = qkv.shape
    getattr(loaded(), name)(
        DTYPES[qkv.dtype],
        torch.get_num_threads(),
        instruction_set_level(),
        *(tensor.data_ptr() for tensor in tensors),
        *(batch, height, width, heads, depth),
        *qkv.stride()[:4],
    )


def _attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> Tensor:
    batch, count, _, heads, depth = qkv.shape
    out = qkv.new_empty((batch, count, heads * depth))
    if out.numel():
        qkv, operands = _attention_operands(qkv, offset, height_table, width_table)
        _call_attention("attention_forward", qkv, [*operands, out], height, width)
    return out


def _attention_backward(
    grad: Tensor, qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for qkv, offset and both tables.

    Beside inputs and gradients it holds some 90 numbers per query and head, 10 per sample: O(N * h * 9), whatever the
    head width. Of the whole batch: height logits, softmax shares, logit gradients and, unless the map is square, the
    adjoint of the resize (9 each); of one image at a time: its sorted `Record`s (45) and where each cell's end (8 per
    cell, 32-bit). The contract keeps H * W * 9 below 2**31 and (H + 1) * (W + 1) cells are at most 4 * H * W, so the
    samples' counts and the cells' numbers fit in 32 bits.
    """
    batch, count, _, heads, depth = qkv.shape
    inputs, dtype = (qkv, offset, height_table, width_table), _accumulation(qkv.dtype)

    def space(*shape: int) -> Tensor:
        return qkv.new_empty(shape, dtype=dtype)

    grads = [space(*tensor.shape) for tensor in inputs]
    if qkv.numel():
        qkv, operands = _attention_operands(*inputs)
        samples = (batch, count, heads, SAMPLES)
        held = qkv.new_zeros(samples if height != width else (0,), dtype=dtype)
        records = space(heads, count, SAMPLES, _RECORD)  # one image's samples, sorted by where they lie
        ends = qkv.new_empty((heads, _BANDS, height + 1, width + 1), dtype=torch.int32)
        scratch = [space(*samples), space(*samples), held, records, ends]
        parts = [space(height, SAMPLES, depth), space(width, SAMPLES, depth)]
        given = [*operands, _plain(grad, qkv.dtype)]
        _call_attention("attention_backward", qkv, [*given, *grads, *scratch, *parts], height, width)
    else:
        for value in grads:
            value.zero_()
    first, second, third, fourth = (value.to(like.dtype) for value, like in zip(grads, inputs, strict=True))
    return first, second, third, fourth


attention = Operator(
    name="attention",
    tensors=("qkv", "offset", "height_table", "width_table"),
    dtypes=tuple(DTYPES),
    check=check_attention,
    outputs=lambda qkv, *_: [((qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4]), qkv.dtype)],
    forward=_attention,
    backward=_attention_backward,
    definition=lambda q, o, h, w, rows, columns: reference.deform_attention(q, o, h, w, (rows, columns)),
)


def _call_unfold(name: str, input: Tensor, tensors: list[Tensor], out_size: Pair, geometry: list[int]) -> None:
    *window, groups = geometry
    getattr(loaded(), name)(
        DTYPES[input.dtype],
        torch.get_num_threads(),
        *(tensor.data_ptr() for tensor in tensors),
        *input.shape,
        groups,
        *out_size,
        *window,
    )


def _unfold(input: Tensor, offset: Tensor, geometry: list[int]) -> Tensor:
    out = input.new_empty(_unfolded(input, offset, geometry)[0][0])
    if out.numel():
        tensors = [input.contiguous(), _plain(offset, _accumulation(input.dtype)), out]
        _call_unfold("unfold_forward", input, tensors, (offset.shape[2], offset.shape[3]), geometry)
    return out


def _unfolded(input: Tensor, offset: Tensor, geometry: list[int]) -> Outputs:
    channels = input.shape[1] * geometry[0] * geometry[1]
    return [((input.shape[0], channels, offset.shape[2] * offset.shape[3]), input.dtype)]


def _unfold_backward(grad: Tensor, input: Tensor, offset: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    dtype = _accumulation(input.dtype)
    grad_input, grad_offset = input.new_zeros(input.shape, dtype=dtype), offset.new_zeros(offset.shape, dtype=dtype)
    if grad.numel():
        given = [input.contiguous(), _plain(offset, dtype), _plain(grad, input.dtype)]
        size = (offset.shape[2], offset.shape[3])
        _call_unfold("unfold_backward", input, [*given, grad_input, grad_offset], size, geometry)
    return grad_input.to(input.dtype), grad_offset.to(offset.dtype)


unfold = Operator(
    name="unfold",
    tensors=("input", "offset"),
    dtypes=tuple(DTYPES),
    check=check_unfold,
    outputs=_unfolded,
    forward=_unfold,
    backward=_unfold_backward,
    definition=reference.deform_unfold,
)

attention.register("CPU")
unfold.register("CPU")
