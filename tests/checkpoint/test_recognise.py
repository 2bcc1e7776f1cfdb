"""Telling a network from names and shapes: all 20 published ones, and how near misses are described."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgmn2cli.checkpoint.recognise import recognise
from dgmn2cli.checkpoint.weights import listed
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only


def with_shapes(listing: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in listing.items()}


def small(classes: int = 19) -> dict[str, Tensor]:
    with shapes_only():
        return Segmentor("tiny", "setr_pup", classes).state_dict()


def test_all_published_files_are_recognised(listings: dict[str, Any]) -> None:
    named = {f"{about['head']}-{about['backbone']}": about for about in listings["segmentors"].values()}
    named |= listings["classifiers"]
    assert len(named) == 20
    for key, about in named.items():
        found = recognise(with_shapes({name: shape for name, shape, _ in about["entries"]}))
        assert (found.key, found.published, found.in_words()) == (key, True, key)


def test_near_misses_are_described() -> None:
    assert recognise(small()).in_words() == "setr_pup-tiny"
    assert recognise(small()).published
    twelve = recognise(small(12))
    assert (twelve.in_words(), twelve.exact, twelve.published) == ("setr_pup-tiny with 12 classes", True, False)
    assert recognise(small(1)).in_words() == "setr_pup-tiny with 1 class"
    broken = small()
    del broken["backbone.block3.1.mlp.fc1.weight"]
    broken["extra"] = torch.empty(1, device="meta")
    broken["decode_head.conv_1.weight"] = torch.empty(1, device="meta")
    found = recognise(broken)
    assert not found.exact
    assert found.in_words() == (
        "setr_pup-tiny, but 1 tensor is missing, 1 tensor is unexpected, 1 tensor is of another shape"
    )
    assert listed(found.differences) == [
        "missing: backbone.block3.1.mlp.fc1.weight",
        "unexpected: extra",
        "of another shape: decode_head.conv_1.weight (1,), wanted (256, 256, 3, 3)",
    ]


def test_a_backbone_alone_is_told_from_its_classifier() -> None:
    alone = {key.removeprefix("backbone."): value for key, value in small().items() if key.startswith("backbone.")}
    assert recognise(alone).in_words() == "dgmn2_tiny without its classification layer"
    alone["head.weight"], alone["head.bias"] = torch.empty(10, 512, device="meta"), torch.empty(10, device="meta")
    assert recognise(alone).in_words() == "dgmn2_tiny with 10 classes"


@pytest.mark.parametrize(
    "state", [{}, {"a": (1,)}, {"backbone.layer1.0.conv1.weight": (64, 3, 7, 7)}, {"block1.0.x": (3,)},
              {"decode_head.conv_seg.weight": (19, 256, 1, 1)}, {"backbone.block1.999.x": ()}],
)  # fmt: skip
def test_other_networks_are_not_called_ours(state: dict[str, Any]) -> None:
    found = recognise(with_shapes(state))
    assert (found.kind, found.key, found.in_words()) == ("unknown", "", "no DGMN2 network")
