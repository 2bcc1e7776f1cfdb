"""The multiply-accumulate counter against the published figures, and zoo.json against the counter."""

from __future__ import annotations

import pytest
import torch

from dgmn2cli import zoo
from dgmn2cli.bench.macs import attention_macs, count_macs, count_parameters
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.backbone import Classifier
from dgmn2cli.model.shapes import shapes_only

PUBLISHED = {"tiny": 2.3e9, "small": 4.3e9, "medium": 7.1e9, "large": 10.4e9}  # at 224 x 224, in steps of 0.1 G


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_costs(size: str) -> None:
    """Within 2.5 %: how the authors counted their op is not published."""
    with shapes_only():
        model = Classifier(size)
    assert abs(count_macs(model, 224, 224) / PUBLISHED[size] - 1) <= 0.025


def test_by_hand() -> None:
    with torch.device("meta"):
        conv = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.nn.Flatten(2))
        linear = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(3 * 8 * 6, 7))
    assert count_macs(conv, 8, 6) == 4 * 3 * 5 * 3 * 9
    assert count_macs(linear, 8, 6, batch=2) == 2 * 7 * 3 * 8 * 6
    assert attention_macs(2, 10, 64) == 2 * 10 * 64 * 9 * 12


def test_the_zoo_states_what_is_counted() -> None:
    seen = 0
    for entry in zoo.entries():
        with shapes_only():
            model = build_model(entry.key)
        assert entry.macs_769 == count_macs(model, 769, 769), entry.key
        assert entry.params == count_parameters(model)
        seen += 1
    assert seen == 16
