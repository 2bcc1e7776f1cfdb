"""The published training loss and the accuracy shown beside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


def segmentation_loss(raw_logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross entropy at the labels' size, as published.

    The head's logits are resized once (bilinear, corners aligned) to the labels' size. Ignored pixels contribute 0,
    and the mean is over all pixels, ignored ones included: a batch of ignored pixels only has loss 0. Class weights
    multiply each pixel's term; the mean stays one over all pixels.

    Args:
        raw_logits: `(B, C, h, w)` floating, at the head's own resolution; computed on in float32 at least.
        labels: `(B, H, W)` integer class ids, 255: ignored.
        class_weights: `(C,)` floating, or None for ones.

    Returns:
        The loss, and the accuracy in percent of all pixels (ignored ones count as wrong, as published); both scalar.
    """
    logits = raw_logits.to(torch.promote_types(raw_logits.dtype, torch.float32))
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    labels = labels.long()
    weights = class_weights.to(logits) if class_weights is not None else None
    terms = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none")
    right = (logits.detach().argmax(1) == labels).sum()
    return terms.mean(), right * (100.0 / labels.numel())
