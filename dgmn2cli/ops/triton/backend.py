"""Owns whether the Triton GPU kernels can run here, and loading them: Triton is imported when they are first chosen."""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor

from dgmn2cli.ops.contract import Pair
from dgmn2cli.ops.triton.switch import interpreted

FORMATS = ("float32", "float16", "bfloat16")
LEAST_CAPABILITY = (8, 0)  # Ampere: what Triton supports, and the first with bfloat16


def refusal(device: str, dtype: str) -> str:
    """Why the Triton kernels cannot run on a device type and number format ("" for any), empty where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if dtype not in ("", *FORMATS):
        return f"the Triton kernels take {', '.join(FORMATS[:-1])} and {FORMATS[-1]}, not {dtype}"
    if device in ("", "cpu") and interpreted():
        return ""
    if device not in ("", "cuda"):
        return f"the Triton kernels run on NVIDIA GPUs, not on {device}"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "PyTorch finds no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"this GPU has compute capability {capability[0]}.{capability[1]}, the Triton kernels need 8.0"
    return ""


def load() -> None:
    """Registers the kernels' operators, `dgmn2::triton_*`, with PyTorch; after the first call it does nothing."""
    importlib.import_module("dgmn2cli.ops.triton.operators")


def deform_attention(qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, size: Pair) -> Tensor:
    """`dgmn2cli.ops.deform_attention` on the Triton kernels; arguments already checked, kernels loaded."""
    out: Tensor = torch.ops.dgmn2.triton_attention(qkv, offset, height_table, width_table, *size)[0]
    return out


def deform_unfold(
    input: Tensor, offset: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """`dgmn2cli.ops.deform_unfold` on the Triton kernels; arguments already checked, kernels loaded."""
    out: Tensor = torch.ops.dgmn2.triton_unfold(input, offset, kernel, stride, padding, dilation, groups)
    return out
