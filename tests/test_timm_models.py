"""The backbones as timm models: registered on request, feature maps and classifier, same keys as the checkpoints."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

import dgmn2cli.timm_models
from dgmn2cli.model.backbone import Backbone, Classifier
from dgmn2cli.model.filled import filled_state

SIZES = ("tiny", "small", "medium", "large")


def test_four_models_are_registered() -> None:
    assert timm.list_models("dgmn2_*") == sorted(f"dgmn2_{size}" for size in SIZES)
    assert set(dgmn2cli.timm_models.default_cfgs) == {f"dgmn2_{size}" for size in SIZES}


def test_importing_the_package_registers_nothing() -> None:
    code = "import timm, dgmn2cli.model.backbone; assert not timm.list_models('dgmn2_*')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("size", SIZES)
def test_feature_maps(size: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"dgmn2_{size}", features_only=True)
    assert model.feature_info.channels() == [64, 128, 320, 512]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@torch.no_grad()
def test_features_and_scores_are_the_backbones() -> None:
    state = filled_state(Classifier("tiny"))
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    backbone = Backbone("tiny").eval()
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    expected = backbone(images)
    classifier = timm.create_model("dgmn2_tiny").eval()
    classifier.load_state_dict(state, strict=True)
    scores = classifier(images)
    assert scores.shape == (2, 1000)
    assert torch.equal(scores, classifier.forward_head(expected[-1]))
    features = timm.create_model("dgmn2_tiny", features_only=True, out_indices=(1, 3)).eval()
    features.load_state_dict({f"model.{key}": value for key, value in state.items() if not key.startswith("head.")})
    for ours, theirs in zip(features(images), (expected[1], expected[3]), strict=True):
        assert torch.equal(ours, theirs)


def test_another_number_of_classes() -> None:
    model = timm.create_model("dgmn2_tiny", num_classes=7, drop_path_rate=0.1)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert timm.create_model("dgmn2_tiny", num_classes=0)(torch.randn(1, 3, 64, 64)).shape == (1, 512)


@pytest.mark.parametrize("indices", [(4,), (-5,), (0, 7), 5, 0])
def test_stages_that_are_not_there_are_refused(indices: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stage"):
        timm.create_model("dgmn2_tiny").forward_intermediates(torch.zeros(1, 3, 64, 64), indices=indices)
    if isinstance(indices, tuple):
        with pytest.raises(ValueError, match="name no stage"):
            timm.create_model("dgmn2_tiny", features_only=True, out_indices=indices)


def test_stages_counted_from_the_end() -> None:
    model, images = timm.create_model("dgmn2_tiny").eval(), torch.zeros(1, 3, 64, 64)
    for indices, sides in (((-1,), [2]), ((1, 3), [8, 2]), (2, [4, 2]), (None, [16, 8, 4, 2])):
        maps = model.forward_intermediates(images, indices=indices, intermediates_only=True)
        assert [found.shape[2] for found in maps] == sides
