"""Every network has exactly the published state dict: keys, order, shapes, dtypes, counts."""

from __future__ import annotations

import zlib
from typing import Any

from torch import nn

from dgmn2cli import zoo
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.backbone import Classifier
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.shapes import shapes_only


def entries_of(model: nn.Module) -> list[list[Any]]:
    return [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]


def test_sixteen_segmentors(listings: dict[str, Any]) -> None:
    seen = set()
    for entry in zoo.entries():
        published = listings["segmentors"][entry.config]
        with shapes_only():
            model = build_model(entry.key)
        assert entries_of(model) == published["entries"], entry.key
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters == published["parameters"] == entry.params
        assert sum(p.numel() for p in model.backbone.parameters()) == published["backbone_parameters"]
        assert all(parameter.requires_grad for parameter in model.parameters())
        seen.add(entry.config)
    assert len(seen) == 16
    assert seen == set(listings["segmentors"])


def test_four_classifiers(listings: dict[str, Any]) -> None:
    # published sizes, in millions of parameters
    published = {"dgmn2_tiny": 12.1, "dgmn2_small": 21.0, "dgmn2_medium": 35.8, "dgmn2_large": 48.3}
    assert set(listings["classifiers"]) == set(published)
    for name, listing in listings["classifiers"].items():
        with shapes_only():
            model = Classifier(name.removeprefix("dgmn2_"))
        assert entries_of(model) == listing["entries"], name
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters == listing["parameters"]
        assert round(parameters / 1e6, 1) == published[name]


def test_classifier_keys_are_the_backbones(listings: dict[str, Any]) -> None:
    for head in ("fpn", "setr_naive", "setr_pup", "setr_mla"):
        with shapes_only():
            backbone = build_model(f"{head}-tiny").backbone
        keys = [entry[0] for entry in listings["classifiers"]["dgmn2_tiny"]["entries"]]
        assert [key for key in keys if not key.startswith("head.")] == list(backbone.state_dict())


def test_stand_in_weights_match_the_measured_ones(listings: dict[str, Any]) -> None:
    checked = 0
    for head in ("fpn", "setr_naive", "setr_pup", "setr_mla"):
        with shapes_only():
            model = build_model(f"{head}-tiny")
        checksum = 0
        for value in filled_state(model).values():
            checksum = zlib.crc32(value.numpy().tobytes(), checksum)
        config = f"{head}_dgmn2_tiny_4x2_769x769_40k_cityscapes"
        assert f"{checksum:08x}" == listings["segmentors"][config]["weights_crc32"]
        checked += 1
    assert checked == 4
