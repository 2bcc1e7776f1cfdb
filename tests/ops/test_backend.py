"""The choice of backend: visible, reasoned, and never silently another one than asked for."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgmn2cli import ops
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.ops import backend, native


def test_every_backend_says_whether_it_runs() -> None:
    found = ops.available_backends()
    assert list(found) == ["native", "triton", "reference"]
    assert all(entry.usable == (not entry.reason) for entry in found.values())
    assert found["reference"].usable


def test_auto_prefers_the_compiled_kernels_and_says_so_once(native: str, caplog: pytest.LogCaptureFixture) -> None:
    backend._announced.clear()
    with caplog.at_level(logging.INFO, logger="dgmn2cli"):
        assert ops.resolve("auto", "cpu", torch.float32) == native
        assert ops.resolve("auto", "cpu", torch.float32) == native
        assert ops.resolve("auto", "cpu", torch.float16) == "reference"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "not float16" in lines[1]


def test_a_named_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ResourceError, match="float16"):
        ops.resolve("native", "cpu", torch.float16)
    with pytest.raises(ConfigError, match="wanted one of auto"):
        ops.resolve("fastest")
    monkeypatch.setattr(native, "_kernels", None)
    monkeypatch.setattr(native, "_missing", "the compiled extension is not built")
    with pytest.raises(ResourceError, match="not built"):
        ops.resolve("native")
    backend._announced.clear()
    with caplog.at_level(logging.WARNING, logger="dgmn2cli"):
        assert ops.resolve("auto") == ops.resolve("auto") == "reference"
    [line] = [record.getMessage() for record in caplog.records]  # at once, and once, that everything will be slow
    assert str(Path(backend.__file__).parent) in line


def test_importing_the_ops_leaves_the_compiler_alone() -> None:
    """`torch._dynamo` takes as long to import as all the rest of PyTorch."""
    code = "import sys, dgmn2cli.ops; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_the_default_can_be_set_for_a_while() -> None:
    with ops.default_backend("reference"):
        assert ops.resolve("auto") == "reference"
    with pytest.raises(ConfigError):
        ops.set_default_backend("none")


def test_an_unknown_instruction_set_is_refused(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGMN2_CPU_ISA", "avx1024")
    tensors = torch.zeros(1, 1, 3, 1, 4), torch.zeros(1, 1, 1, 18), torch.zeros(9, 4), torch.zeros(9, 4)
    with pytest.raises(ConfigError, match="avx1024"):
        ops.deform_attention(*tensors, (1, 1), backend=native)
