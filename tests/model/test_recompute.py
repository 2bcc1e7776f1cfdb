"""What training computes anew in the backward pass changes no number, and is not kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from dgmn2cli.model.backbone import Mlp
from dgmn2cli.model.heads import SetrPupHead
from dgmn2cli.model.segmentor import Segmentor


@contextmanager
def kept_by_autograd() -> Iterator[list[int]]:
    """The sizes of the tensors that autograd keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize("head", ["setr_naive", "setr_pup", "setr_mla", "fpn"])
def test_the_cheaper_order_of_training(head: str) -> None:
    """Same logits and gradients as in the published order, up to rounding, on a wide map.

    With the batch norms' stored statistics: through those of the batch, some gradients are sums of rounding errors.
    """
    torch.manual_seed(3)
    model, images, results = Segmentor("tiny", head, num_classes=5).eval(), torch.randn(2, 3, 48, 80), []
    for shortcut in (False, True):
        model.shortcut = shortcut
        logits = model(images)
        loss = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()
        results.append([logits.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    names = ["logits", *(name for name, _ in model.named_parameters())]
    for name, published, cheaper in zip(names, *results, strict=True):
        assert published.shape == cheaper.shape
        assert (published - cheaper).norm() <= 1e-3 * published.norm(), name


def test_no_enlarged_features_are_kept() -> None:
    head, x = SetrPupHead(5).train(), torch.randn(1, 512, 8, 8, requires_grad=True)
    with kept_by_autograd() as kept:
        head.coarse([x])
    assert 256 * 64 * 64 not in kept  # what is classified
    with kept_by_autograd() as kept:
        head([x])
    assert 256 * 64 * 64 in kept


def test_in_double_precision_nothing_is_rounded() -> None:
    """The cheaper order rounds positions as PyTorch does for float32 maps; float64 keeps PyTorch's own resizes."""
    model = Segmentor("tiny", "setr_pup", num_classes=3).double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(images)
    assert torch.equal(model(images), wanted)


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
