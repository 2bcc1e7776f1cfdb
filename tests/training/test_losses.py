"""Every loss against its definition written out pixel by pixel in numpy; gradients; what ignored pixels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dgmn2cli.cli.options import LOSSES
from dgmn2cli.config import LossConfig
from dgmn2cli.training.loss import segmentation_loss

WEIGHTS = np.array([0.5, 1.0, 2.0, 0.0, 1.5])
CASES = [(kind, weights) for kind in LOSSES for weights in (None, WEIGHTS)]


def random_case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(2, 5, 6, 7)` at the labels' size and labels of which a third is ignored; class 4 does not occur."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(2, 5, 6, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return logits, labels.to(torch.uint8)


def by_hand(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, settings: LossConfig) -> float:
    """The loss by its definition: a list of pixels, each with its class probabilities and its class."""
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    pixels = [(shares[b, :, y, x], labels[b, y, x]) for b, y, x in np.ndindex(labels.shape) if labels[b, y, x] != 255]
    entropy = sum(-weights[c] * np.log(p[c]) for p, c in pixels) / labels.size
    terms = []
    for k in sorted({c for _, c in pixels}):
        overlap = sum(p[k] for p, c in pixels if c == k)
        sizes = sum(p[k] for p, _ in pixels) + sum(c == k for _, c in pixels)
        terms.append(weights[k] * (1 - 2 * overlap / sizes))
    dice = float(np.mean(terms))
    if settings.kind == "focal":
        terms = [-weights[c] * (1 - p[c]) ** settings.focal_gamma * np.log(p[c]) for p, c in pixels]
        return sum(terms) / labels.size
    if settings.kind == "ohem":
        own = sorted(p[c] for p, c in pixels)
        limit = max(own[min(settings.ohem_min_kept * len(labels), len(own) - 1)], settings.ohem_threshold)
        return sum(-weights[c] * np.log(p[c]) for p, c in pixels if p[c] < limit) / labels.size
    return {"ce": entropy, "dice": dice, "ce+dice": entropy + settings.dice_weight * dice}[settings.kind]


@pytest.mark.parametrize(("kind", "weights"), CASES, ids=[f"{k}{'' if w is None else '-weighted'}" for k, w in CASES])
def test_every_loss_is_its_definition(kind, weights):
    logits, labels = random_case()
    given = None if weights is None else torch.from_numpy(weights)
    for settings in (
        LossConfig(kind=kind, ohem_min_kept=3),
        LossConfig(kind=kind, ohem_min_kept=20, ohem_threshold=0.1, focal_gamma=1.0, dice_weight=0.25),
        LossConfig(kind=kind, focal_gamma=3.5, dice_weight=0.0),
    ):
        wanted = by_hand(logits.numpy(), labels.numpy(), np.ones(5) if weights is None else weights, settings)
        found = segmentation_loss(logits, labels, given, settings)
        assert found[0].item() == pytest.approx(wanted, rel=1e-11)
        assert found[1] == segmentation_loss(logits, labels)[1]


def test_the_settings_change_what_they_say():
    logits, labels = random_case()

    def loss(kind: str, **settings) -> float:
        return segmentation_loss(logits, labels, None, LossConfig(kind=kind, **settings))[0].item()

    few, some, more = (loss("ohem", ohem_threshold=0.01, ohem_min_kept=kept) for kept in (0, 5, 9))
    assert few < some < more < loss("ohem", ohem_min_kept=0) < loss("ce")
    assert loss("focal", focal_gamma=3.0) < loss("focal") < loss("ce")
    assert len({loss(kind) for kind in LOSSES}) == 5


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_agree_with_differences(kind):
    logits, labels = random_case()
    settings = LossConfig(kind=kind, ohem_min_kept=3)

    def loss(raw: torch.Tensor) -> torch.Tensor:
        return segmentation_loss(raw, labels[:, :3, :3], torch.from_numpy(WEIGHTS), settings)[0]

    assert torch.autograd.gradcheck(loss, (logits[:, :, :3, :3].clone().requires_grad_(),))


@pytest.mark.parametrize("kind", LOSSES)
def test_ignored_pixels_have_no_gradient_and_a_batch_of_them_loss_zero(kind):
    logits, labels = random_case()
    settings = LossConfig(kind=kind)
    raw = logits.float().requires_grad_()
    segmentation_loss(raw, labels, None, settings)[0].backward()
    assert raw.grad.isfinite().all()
    ignored = (labels == 255)[:, None].expand_as(raw)
    assert raw.grad[ignored].abs().max() == 0
    assert raw.grad[~ignored].abs().max() > 0
    certain = (200 * (torch.arange(5)[:, None, None] == labels[:, None])).float().requires_grad_()
    segmentation_loss(certain, labels, None, settings)[0].backward()
    assert certain.grad.isfinite().all(), "all pixels right, to the last bit"
    raw.grad = None
    loss, accuracy = segmentation_loss(raw, torch.full_like(labels, 255), None, settings)
    loss.backward()
    assert (loss.item(), accuracy.item(), raw.grad.abs().max().item()) == (0, 0, 0)
