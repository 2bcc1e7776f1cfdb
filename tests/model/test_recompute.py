"""What training computes anew in the backward pass changes no number, and is not kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from dgmn2cli.model import heads
from dgmn2cli.model.backbone import Mlp
from dgmn2cli.model.heads import SetrPupHead, classify_resized, resize


@contextmanager
def kept_by_autograd() -> Iterator[list[int]]:
    """The sizes of the tensors that autograd keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize(
    ("size", "target"),
    [((10, 8), (20, 20)), ((3, 3), (40, 6)), ((1, 1), (2, 2)), ((20, 5), (10, 10)), ((17, 9), (18, 18))],
)
def test_the_classifier_in_bands(size: tuple[int, int], target: tuple[int, int]) -> None:
    torch.manual_seed(0)
    classifier = nn.Conv2d(6, 4, 1)
    x = torch.randn(2, 6, *size, requires_grad=True)
    whole, bands = classifier(resize(x, target)), classify_resized(classifier, x, target)
    assert bands.shape == whole.shape
    assert (bands - whole).abs().max() <= 1e-5
    weights = torch.randn_like(whole)
    wanted = torch.autograd.grad(whole, [x, classifier.weight, classifier.bias], weights)
    found = torch.autograd.grad(bands, [x, classifier.weight, classifier.bias], weights)
    for one, other in zip(wanted, found, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_no_enlarged_features_are_kept() -> None:
    head, x = SetrPupHead(5).train(), torch.randn(1, 512, 8, 8, requires_grad=True)
    enlarged = 256 * 64 * 64
    with kept_by_autograd() as kept:
        head([x])
    assert enlarged not in kept
    head.recompute = False
    with kept_by_autograd() as kept:
        head([x])
    assert enlarged in kept


def test_in_double_precision_nothing_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bands round positions as PyTorch does for float32 maps; float64 maps keep PyTorch's own resize."""
    monkeypatch.setattr(heads, "classify_resized", None)
    head, x = SetrPupHead(3).double(), torch.randn(1, 512, 2, 2, dtype=torch.float64, requires_grad=True)
    assert head([x]).dtype == torch.float64


def test_the_mlp_keeps_one_hidden_map_less() -> None:
    torch.manual_seed(1)
    mlp, tokens = Mlp(16, 4), torch.randn(1, 50, 16, requires_grad=True)
    with kept_by_autograd() as kept:
        frugal = mlp(tokens)
    mlp.recompute = False
    with kept_by_autograd() as everything:
        plain = mlp(tokens)
    assert torch.equal(frugal, plain)
    hidden = 50 * 64
    assert everything.count(hidden) == 2
    assert kept.count(hidden) <= 1
    parameters = [tokens, *mlp.parameters()]
    for one, other in zip(
        torch.autograd.grad(frugal.sum(), parameters), torch.autograd.grad(plain.sum(), parameters), strict=True
    ):
        assert torch.equal(one, other)
