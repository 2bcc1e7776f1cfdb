"""A PyTorch without one of the private names: the same results by another way, and a line that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import segmentor

from dgmn2cli.model import heads
from dgmn2cli.ops import operators

NAMES = [f"{place.__name__}.{name}" for place, name in operators._PRIVATE]
PROGRAM = """
import importlib, json, sys
import torch
place, name = sys.argv[1].rsplit(".", 1)
owner = importlib.import_module(place)
held = getattr(owner, name)
delattr(owner, name)  # before our modules look for it; PyTorch itself needs it afterwards
import dgmn2cli
from dgmn2cli import ops
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.ops import operators
setattr(owner, name, held)
torch.manual_seed(1)
tensors = [torch.randn(*shape, requires_grad=True) for shape in ((1, 12, 3, 2, 4), (1, 12, 2, 18), (11, 4), (12, 4))]
results = []
for backend in ("auto", "reference"):
    out = ops.deform_attention(*tensors, (3, 4), backend=backend)
    results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
network = dgmn2cli.build_model("setr_pup-tiny", 3).eval()
images = torch.randn(1, 3, 33, 33)
with torch.no_grad():
    whole = (InferenceForm(network)(images) - network(images)).abs().max().item()
print(json.dumps({
    "lacking": operators.LACKING, "auto": ops.resolve("auto"), "followed": operators.followed(),
    "reasons": {name: found.reason for name, found in ops.available_backends().items()}, "whole": whole,
    "equal": all(torch.equal(one, other) for one, other in zip(*results, strict=True)),
}))
"""


def test_every_name_is_here() -> None:
    assert len(NAMES) == 5
    assert operators.LACKING == ""
    assert all(hasattr(torch.nn.Module(), name) for name in heads._HOOKS)


@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])])
def test_without_a_name_the_ops_run_by_their_definition(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], check=True, cwd=Path(__file__).parents[2], timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["lacking"], found["auto"], found["followed"], found["equal"]) == (name, "reference", True, True)
    assert found["reasons"]["native"] == found["reasons"]["triton"] == f"this PyTorch has no {name}"
    assert found["whole"] < 1e-4
    assert done.stderr.count(f"this PyTorch has no {name}") == 1


def test_without_the_names_of_hooks_a_head_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    head = segmentor("tiny", "setr_pup").decode_head
    assert heads.is_plain(head)
    monkeypatch.setattr(heads, "_HOOKS", ("_hooks_by_another_name",))
    assert not heads.is_plain(head)
