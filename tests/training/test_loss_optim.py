"""The loss counts every pixel, the learning rate falls as published, the moving average averages."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dgmn2cli.config import OptimConfig
from dgmn2cli.training.loss import segmentation_loss
from dgmn2cli.training.optim import MovingAverage, make_optimizer, poly_lr, set_lr


def random_case(classes=5, ignored=0.3):
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(2, classes, 4, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 9, 11), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return raw, labels.to(torch.uint8)


def test_mean_is_over_all_pixels_and_ignored_ones_add_nothing():
    raw, labels = random_case()
    resized = F.interpolate(raw, size=(9, 11), mode="bilinear", align_corners=True)
    by_hand, right = 0.0, 0
    for b, y, x in np.ndindex(2, 9, 11):
        target = int(labels[b, y, x])
        if target != 255:
            scores = resized[b, :, y, x]
            by_hand += float(scores.logsumexp(0) - scores[target])
            right += int(scores.argmax()) == target
    loss, accuracy = segmentation_loss(raw, labels)
    assert loss.item() == pytest.approx(by_hand / labels.numel(), rel=1e-12)
    assert accuracy.item() == pytest.approx(100 * right / labels.numel(), rel=1e-6)


def test_logits_at_the_labels_size_are_taken_as_they_are():
    raw, labels = random_case()
    raw = F.interpolate(raw, size=(9, 11), mode="bilinear", align_corners=True).requires_grad_()
    loss, accuracy = segmentation_loss(raw, labels)
    resized = F.interpolate(raw, size=(9, 11), mode="bilinear", align_corners=True)
    terms = F.cross_entropy(resized, labels.long(), ignore_index=255, reduction="none")
    assert torch.equal(loss, terms.mean())
    assert torch.equal(accuracy, (resized.argmax(1) == labels).sum() * (100.0 / labels.numel()))
    assert torch.equal(*(torch.autograd.grad(one, raw)[0] for one in (loss, terms.mean())))


def test_a_batch_of_ignored_pixels_has_loss_zero_and_gradient_zero():
    raw, labels = random_case()
    raw.requires_grad_()
    loss, accuracy = segmentation_loss(raw, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0.0
    assert accuracy.item() == 0.0
    assert torch.equal(raw.grad, torch.zeros_like(raw))


def test_class_weights_multiply_the_terms_and_not_the_divisor():
    raw, labels = random_case()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
    total = 0.0
    for c in range(5):
        only = torch.where(labels == c, labels, torch.full_like(labels, 255))
        total += float(weights[c]) * segmentation_loss(raw, only)[0].item()
    assert segmentation_loss(raw, labels, weights)[0].item() == pytest.approx(total, rel=1e-12)


def test_half_precision_logits_are_summed_in_float32():
    raw, labels = random_case()
    loss, _ = segmentation_loss(raw.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(segmentation_loss(raw.bfloat16().double(), labels)[0].item(), rel=1e-6)


def test_poly_learning_rate():
    assert [poly_lr(OptimConfig(), i, 40_000) for i in (0, 39_999)] == [1e-4, 1e-4 * (1 - 39_999 / 40_000) ** 0.9]
    settings = OptimConfig(lr=1e-4, power=0.9, min_lr=1e-6)
    assert poly_lr(settings, 0, 40_000) == pytest.approx(1e-4, rel=1e-12)
    assert poly_lr(settings, 20_000, 40_000) == pytest.approx(99e-6 * 0.5**0.9 + 1e-6, rel=1e-12)
    assert poly_lr(settings, 39_999, 40_000) > 1e-6
    assert poly_lr(settings, 40_000, 40_000) == 1e-6
    rates = [poly_lr(settings, i, 100) for i in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert [poly_lr(OptimConfig(power=0), i, 10) for i in range(10)] == [1e-4] * 10


def test_adamw_step_by_hand():
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    settings = OptimConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.05)
    optimizer = make_optimizer(settings, [weight])
    set_lr(optimizer, 0.01)
    weight.grad = torch.tensor([3.0], dtype=torch.float64)
    optimizer.step()
    expected = 2.0 * (1 - 0.01 * 0.05) - 0.01 * 3.0 / (math.sqrt(9.0) + 1e-3)
    assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_moving_average_of_parameters_newest_buffers():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    start = model[0].weight.detach().clone()
    average = MovingAverage(model, decay=0.75)
    with torch.no_grad():
        model[0].weight.add_(4.0)
        model[1].running_mean.add_(5.0)
        model[1].num_batches_tracked.add_(7)
    average.update(model)
    assert torch.allclose(average.state["0.weight"], start + 1.0)
    assert torch.equal(average.state["1.running_mean"], model[1].running_mean)
    assert average.state["1.num_batches_tracked"].item() == 7
    other = MovingAverage(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), decay=0.75)
    other.load(average.state)
    assert all(torch.equal(other.state[key], value) for key, value in average.state.items())
    assert all(other.state[key] is not value for key, value in average.state.items())
