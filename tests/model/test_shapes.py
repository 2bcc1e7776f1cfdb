"""Networks built for their shapes alone: the same names, shapes and number formats, and nothing filled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dgmn2cli.model.backbone import Classifier
from dgmn2cli.model.segmentor import HEADS, Segmentor
from dgmn2cli.model.shapes import shapes_only


def described(network: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_network_without_numbers_has_the_shapes_of_a_real_one(head: str) -> None:
    before = torch.random.get_rng_state()
    with shapes_only():
        bare = Segmentor("tiny", head, 19)
    assert {value.device.type for value in bare.state_dict().values()} == {"meta"}
    assert torch.equal(torch.random.get_rng_state(), before), "random numbers were drawn for nothing"
    real = Segmentor("tiny", head, 19)
    assert described(bare) == described(real)
    assert [value.requires_grad for value in bare.parameters()] == [value.requires_grad for value in real.parameters()]


def test_afterwards_networks_are_filled_again() -> None:
    with shapes_only():
        Classifier("tiny")
    weight = Classifier("tiny").state_dict()["head.weight"]
    assert weight.device.type == "cpu"
    assert 0.01 < weight.std() < 0.03
