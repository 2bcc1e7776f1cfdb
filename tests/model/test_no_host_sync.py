"""The forward path never waits for the device: it reads no value from a tensor to decide what to do next."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgmn2cli.inference.load import build_model
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.backbone import BLOCKS
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.zoo import load_zoo

MODELS = [entry.key for entry in load_zoo().segmentors]
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2")


class Waits(TorchDispatchMode):
    """Collects the operators whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator."""
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: bool((x > 0).any()), torch.nonzero])
def test_waiting_is_seen(read):
    with Waits() as waits:
        read(torch.ones(3))
    assert waits.seen


@pytest.mark.parametrize("form", ["published", "fused", "training"])
@pytest.mark.parametrize("head", ["fpn", "setr_naive", "setr_pup", "setr_mla"])
def test_forward_reads_no_value(head, form):
    model = build_model(f"{head}-tiny")
    model.load_state_dict(filled_state(model))
    network = InferenceForm(model.eval().requires_grad_(requires_grad=False)) if form == "fused" else model
    network.train(form == "training")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network(images)  # what is prepared once may wait
    with Waits() as waits:
        network(images)
    assert waits.seen == []


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_model_passes_strict_export(model):
    network = build_model(model).eval().requires_grad_(requires_grad=False)
    use_backend(network, "native")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.export.export(network, (torch.zeros(1, 3, 129, 129),), strict=True)
    attentions = sum(str(node.target) == "dgmn2.attention.default" for node in program.graph.nodes)
    assert attentions == sum(BLOCKS[model.split("-")[1]])
