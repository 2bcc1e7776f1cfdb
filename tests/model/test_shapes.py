"""Networks built for their shapes alone: the same names, shapes and number formats, and nothing filled."""

from __future__ import annotations

import pytest
import torch
from networks import stand_ins
from torch import nn

from dgmn2cli.model.backbone import Classifier
from dgmn2cli.model.segmentor import HEADS, Segmentor
from dgmn2cli.model.shapes import shapes_only, unfilled


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


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_network_for_weights_to_come_takes_them_and_is_otherwise_empty(head: str) -> None:
    weights = stand_ins(lambda: Segmentor("tiny", head, 19))
    network = unfilled(lambda: Segmentor("tiny", head, 19))
    assert not any(bool(buffer.any()) for buffer in network.buffers())
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in network.parameters())
    assert network.training
    network.load_state_dict(weights)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
