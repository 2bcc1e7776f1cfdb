"""What a network attends to: the nodes are those it used, their weights give its op's output, in every block."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dgmn2cli.model.attention import AttentionOp, DynamicGraphAttention
from dgmn2cli.model.backbone import BLOCKS
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.graph import BlockGraph, recorded
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops.reference import neighbours

QUERIES = 100


def network(size: str, head: str = "setr_naive") -> Segmentor:
    model = Segmentor(size, head, 5).eval()
    model.load_state_dict(filled_state(model))
    return model


def looked(model: nn.Module, window: tuple[int, int], x: float, y: float) -> list[BlockGraph]:
    images = torch.randn(1, 3, *window, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode(), recorded(model, window, x, y) as blocks:
        model(images)
    return blocks


@pytest.mark.parametrize("size", BLOCKS)
@pytest.mark.parametrize("window", [(129, 129), (65, 145)], ids=["square", "oblong"])
def test_weights_times_values_are_the_ops_output_in_every_block(size: str, window: tuple[int, int]) -> None:
    model, seen = InferenceForm(network(size)), 0
    draws = torch.Generator().manual_seed(5)

    def compare(op: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        queries = torch.randint(given[0].shape[1], (QUERIES,), generator=draws)
        found = neighbours(*given[:5], queries)
        assert (found.weights.sum(3) - 1).abs().max() <= 1e-6
        summed = (found.weights.unsqueeze(4) * found.values).sum(3)  # (1, h, Q, d)
        assert (summed.transpose(1, 2).flatten(2) - output[:, queries]).abs().max() <= 1e-5
        seen += 1

    for module in model.modules():
        if isinstance(module, AttentionOp):
            module.register_forward_hook(compare)
    with torch.inference_mode():
        model(torch.randn(1, 3, *window, generator=torch.Generator().manual_seed(3)))
    assert seen == sum(BLOCKS[size])


@pytest.mark.parametrize("window", [(97, 97), (65, 129)], ids=["square", "oblong"])
@pytest.mark.parametrize("head", ["setr_naive", "fpn"])
def test_both_forms_of_a_network_have_one_graph(head: str, window: tuple[int, int]) -> None:
    model = network("tiny", head)
    plain, fused = looked(model, window, 40, 30), looked(InferenceForm(model), window, 40, 30)
    strides = (4, 8, 16, 32) if head == "fpn" else (4, 8, 8, 8)
    assert [(b.stage, b.block, b.stride) for b in plain] == [
        (s, b, strides[s - 1]) for s in range(1, 5) for b in (1, 2)
    ]
    for one, other in zip(plain, fused, strict=True):
        assert (one.stage, one.map, one.x, one.y, len(one.hops)) == (
            other.stage, other.map, other.x, other.y, len(other.hops),
        )  # fmt: skip
        assert one.map == ((window[1] - 1) // one.stride + 1, (window[0] - 1) // one.stride + 1)
        assert abs(one.x - 40) <= one.stride / 2
        assert abs(one.y - 30) <= one.stride / 2
        for mine, theirs in zip(one.heads, other.heads, strict=True):
            assert torch.allclose(torch.tensor(mine.nodes), torch.tensor(theirs.nodes), atol=1e-3)
            parts = torch.tensor([mine.content, mine.position])
            assert torch.allclose(parts, torch.tensor([theirs.content, theirs.position]), atol=1e-3)
            weights = torch.tensor([node[2] for node in mine.nodes])
            assert torch.allclose(parts.sum(0).softmax(0), weights, atol=1e-6)
            assert abs(sum(node[2] for node in mine.nodes) - 1) <= 1e-6


PATTERN = [(-3.0, 2.5), (0.25, -1.5), (4.0, 0.0)] * 3  # (dy, dx) of the nine samples, in cells


@pytest.mark.parametrize("fused", [False, True])
def test_forced_offsets_are_found_where_they_point(fused: bool) -> None:
    model = network("tiny")
    for module in model.modules():
        if isinstance(module, DynamicGraphAttention):
            module.conv_offset.weight.data.zero_()
            module.conv_offset.bias.data = torch.tensor(PATTERN).flatten()
    blocks = looked(InferenceForm(model) if fused else model, (129, 193), 95.0, 66.0)
    assert len(blocks) == 8
    for block in blocks:
        assert (block.x, block.y) == (96, 64)
        for head in block.heads:
            for sample, ((dy, dx), (x, y, _)) in enumerate(zip(PATTERN, head.nodes, strict=True)):
                row, column = divmod(sample, 3)
                assert abs(x - (block.x + (column - 1 + dx) * block.stride)) < 1e-3
                assert abs(y - (block.y + (row - 1 + dy) * block.stride)) < 1e-3


def test_nodes_of_nodes_are_what_the_block_before_attended_to_there() -> None:
    model = network("tiny")
    blocks = looked(model, (97, 129), 60, 50)
    assert blocks[0].hops == ()
    for before, block in pairwise(blocks):
        assert block.hops
        assert abs(sum(hop.weight for hop in block.hops) - 1) < 1e-6 or any(
            not (-block.stride < x < block.map[0] * block.stride and -block.stride < y < block.map[1] * block.stride)
            for head in block.heads
            for x, y, _ in head.nodes
        )
        hop = max(block.hops, key=lambda hop: hop.weight)
        [again] = [
            found
            for found in looked(model, (97, 129), hop.x, hop.y)
            if (found.stage, found.block) == (before.stage, before.block)
        ]
        assert [head.nodes for head in again.heads] == list(hop.heads)


def test_nothing_stays_behind_in_the_network() -> None:
    model = network("tiny")
    looked(model, (64, 64), 5, 5)
    assert not any(module._forward_hooks for module in model.modules())
    assert not [key for key in model.state_dict() if ".op." in key]
