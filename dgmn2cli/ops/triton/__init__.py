"""The GPU kernels in Triton: whether they can run here, and loading them. Triton is imported when first chosen."""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch

from dgmn2cli.ops.operators import LACKING

DTYPES = ("float32", "float16", "bfloat16")
LEAST_CAPABILITY = (8, 0)  # Ampere: what Triton supports, and the first with bfloat16


def interpreted() -> bool:
    """True where TRITON_INTERPRET=1 asks Triton to run kernels on the CPU, slowly, to check them."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def refusal(device: str, dtype: str) -> str:
    """Why the Triton kernels cannot run on a device type and dtype ("" for any), empty where they can."""
    if LACKING:
        return f"this PyTorch has no {LACKING}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if dtype not in ("", *DTYPES):
        return f"the Triton kernels take {', '.join(DTYPES[:-1])} and {DTYPES[-1]}, not {dtype}"
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
