"""Every published model exported at full size, in a process of its own: figures, time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.filled import filled_state
from dgmn2cli.zoo import load_zoo

MODELS = [entry.key for entry in load_zoo().segmentors]
SECONDS, BYTES = 120, 6e9


def test_there_are_sixteen():
    assert len(MODELS) == 16


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_model_exports_in_time_and_memory(model, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "weights.pth", filled_state(build_model(model)), {})
    command = [sys.executable, "-m", "dgmn2cli", "export", model, "--checkpoint", str(checkpoint), "--json"]
    with open(tmp_path / "report.json", "wb") as report:
        start = time.monotonic()
        child = subprocess.Popen([*command, "-o", str(tmp_path / "model")], stdout=report)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    parity = json.loads((tmp_path / "report.json").read_text())["parity"]
    assert max(found["largest"] for found in parity["windows"]) <= 1e-3
    assert max(found["mean"] for found in parity["windows"]) <= 1e-5
    assert min(found["agreement"] for found in (*parity["windows"], *parity["images"])) >= 0.9999
    assert seconds <= SECONDS
    assert usage.ru_maxrss * 1024 <= BYTES
