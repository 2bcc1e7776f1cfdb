"""`--dtype auto`: what it chooses on which machine, and that it says why."""

from __future__ import annotations

import pytest
import torch
from streets import Watcher

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.inference import dtype as choosing
from dgmn2cli.inference.load import build_model, resolve
from dgmn2cli.model.filled import filled_state
from dgmn2cli.observer import Silent

SMALL = ["inference.scale=[64, 32]", "inference.window=32", "inference.stride=24"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    return write_checkpoint(path, filled_state(build_model("fpn-tiny")), {})


def load(checkpoint, observer=Silent()):
    return resolve("fpn-tiny", SMALL)(checkpoint=checkpoint, device="cpu", dtype="auto", observer=observer)


def test_machine_without_bfloat16_keeps_float32(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx2": True}, raising=False)
    watcher = Watcher()
    info = load(checkpoint, watcher).info
    assert (info.dtype, info.precision) == ("float32", "float32")
    assert "no instructions" in info.dtype_reason
    assert info.dtype_reason in watcher.notes[0]


@pytest.mark.parametrize(("wanted", "dtype"), [(0.5, "bfloat16"), (1.01, "float32")])
def test_weights_decide_where_the_machine_multiplies_bfloat16(checkpoint, monkeypatch, wanted, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(choosing, "TRIED", (32, 64))
    monkeypatch.setattr(choosing, "AGREEMENT", wanted)
    segmenter = load(checkpoint)
    assert segmenter.info.dtype == dtype
    assert next(segmenter.network.parameters()).dtype == getattr(torch, dtype)
    assert "pixels" in segmenter.info.dtype_reason
