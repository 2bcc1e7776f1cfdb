"""What a training minimises: the published cross entropy or one of its kin; and the accuracy shown beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.config import LossConfig

IGNORE = 255
PUBLISHED = LossConfig()


def segmentation_loss(
    raw_logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, settings: LossConfig = PUBLISHED
) -> tuple[Tensor, Tensor]:
    """The loss at the labels' size; cross entropy, as published, unless the settings say otherwise.

    The head's logits are resized once (bilinear, corners aligned) to the labels' size. Ignored pixels contribute 0.
    But for Dice, the mean is over all pixels, ignored ones included: a batch of ignored pixels only has loss 0. Class
    weights multiply each pixel's term (with Dice, each class's); the mean stays one over all pixels (classes).

    Args:
        raw_logits: `(B, C, h, w)` floating, at the head's own resolution; computed on in float32 at least.
        labels: `(B, H, W)` integer class ids, 255: ignored.
        class_weights: `(C,)` floating, or None for ones.
        settings: which loss.

    Returns:
        The loss, and the accuracy in percent of all pixels (ignored ones count as wrong, as published); both scalar.
    """
    logits = raw_logits.to(torch.promote_types(raw_logits.dtype, torch.float32))
    if logits.shape[2:] != labels.shape[1:]:  # to the same size it would only copy
        logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    labels = labels.long()
    weights = class_weights.to(logits) if class_weights is not None else None
    right = (logits.detach().max(1).indices == labels).sum()  # a third of argmax's time on CPUs
    return _loss(logits, labels, weights, settings), right * (100.0 / labels.numel())


def _loss(logits: Tensor, labels: Tensor, weights: Tensor | None, settings: LossConfig) -> Tensor:
    if settings.kind == "dice":
        return dice_loss(logits, labels, weights)
    terms = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none")
    if settings.kind == "ce+dice":
        return terms.mean() + settings.dice_weight * dice_loss(logits, labels, weights)
    if settings.kind == "ce":
        return terms.mean()
    plain = terms  # -log p of each pixel's class
    if weights is not None:
        plain = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if settings.kind == "focal":  # arXiv 1708.02002, over the softmax; the class weights are its alpha
        return ((-torch.expm1(-plain)) ** settings.focal_gamma * terms).mean()
    return (terms * hard_pixels(plain.detach(), labels, settings.ohem_threshold, settings.ohem_min_kept)).mean()


def hard_pixels(terms: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Which pixels online hard example mining keeps, `(B, H, W)` bool; MMSegmentation's `OHEMPixelSampler`.

    A pixel is kept if its class has a probability below `threshold`, or below that of the pixel which is at place
    `min_kept * B` of the batch, hardest first, counted from 0.

    Args:
        terms: `(B, H, W)`: -log of the probability of each pixel's class; 0 where ignored.
        labels: `(B, H, W)` class ids, 255: ignored.
    """
    counted = terms[labels != IGNORE]
    if not len(counted):
        return labels != IGNORE
    place = min(min_kept * len(labels), len(counted) - 1)
    return terms > counted.sort(descending=True).values[place].clamp_max(-math.log(threshold))


def dice_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - 2 |P and T| / (|P| + |T|), a scalar: the mean over the classes that occur in this process's batch.

    P is the softmax, T the labels, and sizes are sums over the batch's pixels that are not ignored.

    Source: arXiv 1606.04797, for several classes, without squares and without smoothing.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = labels[:, None] == classes[:, None, None]  # (B, C, H, W); ignored pixels are no class's
    shares = logits.softmax(1) * (labels != IGNORE)[:, None]
    pixels = truth.sum((0, 2, 3))
    overlap = (shares * truth).sum((0, 2, 3)) / (shares.sum((0, 2, 3)) + pixels).clamp_min(1)
    terms = (1 - 2 * overlap) * (pixels > 0)
    return (terms if weights is None else terms * weights).sum() / (pixels > 0).sum().clamp_min(1)
