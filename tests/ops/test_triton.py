"""Tests of the Triton backend that need no GPU: who is refused and why; its kernels, interpreted and compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgmn2cli.errors import ResourceError
from dgmn2cli.ops import deform_attention, resolve
from dgmn2cli.ops import triton as triton_backend

ROOT = Path(__file__).parents[2]
INTERPRETED_TESTS = 24


@pytest.fixture(scope="module", autouse=True)
def _triton() -> None:
    """Triton comes with PyTorch on Linux, so there CI must have it; elsewhere its tests are skipped and say so."""
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail("Triton is not installed")
        pytest.skip("Triton is not installed")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No interpreter asked for."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


def test_importing_the_ops_loads_no_kernels() -> None:
    code = (
        "import sys, torch, dgmn2cli.ops;"
        "assert not {'dgmn2cli.ops.triton.operators', 'dgmn2cli.ops.triton.kernels'} & set(sys.modules);"
        "assert not hasattr(torch.ops.dgmn2, 'triton_attention')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_kernels_under_the_interpreter(interpreter: tuple[subprocess.Popen[bytes], Path]) -> None:
    """In a process of their own, since it is settled when Triton is imported."""
    process, output = interpreter
    code, said = process.wait(900), output.read_text()
    assert code == 0, said[-6000:]
    passed = re.search(r"^(\d+) passed, \d+ deselected", said, re.MULTILINE)
    assert passed, said[-1000:]
    assert int(passed[1]) == INTERPRETED_TESTS


def test_refusals_give_the_reason(plain: pytest.MonkeyPatch) -> None:
    assert "not on cpu" in triton_backend.refusal("cpu", "float32")
    assert "not float64" in triton_backend.refusal("cuda", "float64")
    plain.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU" in triton_backend.refusal("", "")
    plain.setattr(torch.cuda, "is_available", lambda: True)
    plain.setattr(torch.version, "cuda", "13.0")
    plain.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "7.5" in triton_backend.refusal("cuda", "float16")
    plain.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert triton_backend.refusal("cuda", "float16") == ""
    plain.setattr(torch.version, "cuda", None)  # ROCm calls its devices cuda as well
    assert "no NVIDIA GPU" in triton_backend.refusal("cuda", "float16")
    plain.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in triton_backend.refusal("cuda", "float16")


def test_a_named_triton_never_falls_back(plain: pytest.MonkeyPatch) -> None:
    tensors = torch.zeros(1, 1, 3, 1, 16), torch.zeros(1, 1, 1, 18), torch.zeros(9, 16), torch.zeros(9, 16)
    with pytest.raises(ResourceError, match=r"triton cannot run .*not on cpu"):
        deform_attention(*tensors, (1, 1), backend="triton")
    plain.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ResourceError, match="not float64"):
        resolve("triton", "cpu", torch.float64)


ATTENTION_KERNELS = (
    "height_logits_kernel", "attend_kernel", "attend_values_backward_kernel", "attend_keys_backward_kernel",
    "table_backward_kernel",
)  # fmt: skip
UNFOLD_KERNELS = ("unfold_kernel", "unfold_backward_kernel")
# a number format and head width; the whole numbers that are 1, which Triton then treats as constants
TARGETS = {80: ("bf16", 64, ()), 90: ("fp32", 24, ("heads", "size", "groups", "token_steps"))}
SINGLE = ("logits", "height_logits", "held", "grad_logits", "grad_held", "grad_place", "grad_q", "grad_k", "grad_v",
          "grad", "grad_table", "grad_input")  # fmt: skip
# whole numbers that come together
TUPLES = {"qkv_steps": 4, "offset_steps": 3, "grad_steps": 3, "table_steps": 2, "token_steps": 2, "size": 2, "steps": 4,
          "groups": 2, "out_size": 2, "window": 8}  # fmt: skip


@pytest.fixture
def compiled(tmp_path: Path, plain: pytest.MonkeyPatch) -> Callable[[Any, int], str]:
    """Compiles a kernel of ours for a compute capability; needs no GPU, Triton brings the assembler."""
    plain.setenv("TRITON_CACHE_DIR", str(tmp_path))
    plain.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_for(kernel: Any, capability: int) -> str:
        element, depth, ones = TARGETS[capability]
        constants = {"D": depth, "BLOCK_D": max(16, triton.next_power_of_2(depth)), "BLOCK_M": 16}
        constants |= {"BLOCK_C": 16, "BLOCK_P": 128, **{name: 1 for name in ones if name not in TUPLES}}
        signature: dict[str, Any] = {}
        values, aligned = {}, {}
        for place, name in enumerate(kernel.arg_names):
            if name in constants:
                signature[name], values[(place,)] = "constexpr", constants[name]
            elif name in ("qkv", "offset", "height_table", "width_table", "input", "out", "grad_out", "grad_offset"):
                signature[name], aligned[(place,)] = f"*{element}", [["tt.divisibility", 16]]
            elif name in SINGLE:
                signature[name], aligned[(place,)] = "*fp32", [["tt.divisibility", 16]]
            elif name in TUPLES:
                parts = [(place, part) for part in range(TUPLES[name])]
                signature[name] = ("constexpr" if name in ones else "i32",) * len(parts)
                if name in ones:
                    values |= dict.fromkeys(parts, 1)
                elif name in ("qkv_steps", "grad_steps", "table_steps"):
                    aligned |= {part: [["tt.divisibility", 16]] for part in parts}
            else:
                signature[name] = "fp32" if name == "scale" else "i32"
                if name == "table_step":
                    aligned[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs=values, attrs=aligned)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm["ptx"]

    return compile_for


@pytest.mark.parametrize("capability", TARGETS)
def test_kernels_compile_for_gpus(capability: int, compiled: Callable[[Any, int], str]) -> None:
    from dgmn2cli.ops.triton import kernels as triton_kernels
    from dgmn2cli.ops.triton import unfold as triton_unfold

    assembly = {name: compiled(getattr(triton_kernels, name), capability) for name in ATTENTION_KERNELS}
    assembly |= {name: compiled(getattr(triton_unfold, name), capability) for name in UNFOLD_KERNELS}
    assert len(assembly) == 7
    for name in ("attend_kernel", "attend_values_backward_kernel", "attend_keys_backward_kernel"):
        assert "ld.global.v4.b32" in assembly[name]  # rows are read 16 bytes a thread
    adding = {name for name, text in assembly.items() if re.search(r"(atom|red)\.global", text)}
    assert adding == {"attend_values_backward_kernel", "attend_keys_backward_kernel", "unfold_backward_kernel"}
