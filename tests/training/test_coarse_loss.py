"""The loss of a step goes around the heads' detours over larger maps: same loss, same gradients, up to rounding."""

from __future__ import annotations

import pytest
import torch

from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops.resample import resize_chain
from dgmn2cli.training.loss import segmentation_loss
from dgmn2cli.training.step import LossModule


@pytest.mark.parametrize("head", ["setr_naive", "setr_mla", "setr_pup", "fpn"])
def test_the_loss_is_that_of_the_raw_logits(head):
    torch.manual_seed(0)
    model = Segmentor("tiny", head, num_classes=5).double().eval()
    images, labels = torch.randn(2, 3, 64, 96, dtype=torch.float64), torch.randint(0, 5, (2, 64, 96))
    labels[:, :9] = 255
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    wanted = segmentation_loss(model.raw_logits(images), labels, weights)
    wanted_gradients = torch.autograd.grad(wanted[0], list(model.parameters()))
    found = LossModule(model, weights, None)(images, labels)
    gradients = torch.autograd.grad(found[0], list(model.parameters()))
    # torch computes the place of a sample in float32 or float64 by the maps' type, the chain always in float32
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=0)
    assert float(found[1]) == pytest.approx(float(wanted[1]), abs=0.05)
    norm = torch.sqrt(sum(g.square().sum() for g in wanted_gradients))
    apart = torch.sqrt(sum((a - b).square().sum() for a, b in zip(gradients, wanted_gradients, strict=True)))
    assert apart < 1e-4 * norm
    logits, sizes = model.coarse_logits(images, (64, 96))
    own, detour = {
        "setr_naive": ((8, 12), [(769, 769)]),
        "setr_mla": ((48, 48), [(769, 769)]),
        "setr_pup": ((48, 48), [(96, 96), (192, 192)]),
        "fpn": ((16, 24), []),
    }[head]
    assert tuple(logits.shape) == (2, 5, *own)
    assert sizes == (*detour, (64, 96))


def test_an_evaluation_before_a_training_does_not_hinder_it():
    """What the resize keeps for later is made once, perhaps in inference mode; gradients must flow all the same."""
    maps, sizes = torch.randn(1, 2, 7, 9), ((769, 769), (53, 71))
    with torch.inference_mode():
        wanted = resize_chain(maps, sizes)
    maps.requires_grad_(True)
    found = resize_chain(maps, sizes)
    found.sum().backward()
    assert torch.equal(found.detach(), wanted)
    assert maps.grad is not None
    assert float(maps.grad.sum()) == pytest.approx(2 * 53 * 71, rel=1e-4)
