"""Owns the check that comes before every timing: sides that do not give the same answer are not compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgmn2cli.bench.report import Agreement
from dgmn2cli.bench.sides import Side
from dgmn2cli.errors import CheckFailed

LARGEST, RELATIVE = "largest absolute", "relative root mean square"
LOGITS_LIMIT = 2e-4  # largest difference of two float32 sides' logits or op outputs
GRADIENT_LIMIT = 1e-3  # relative, float32: a gradient sums over the whole map, and sampling has kinks
HALF_LIMIT = 0.05  # relative, where a side rounds to 8 or 11 bits after every layer


def compare(
    subject: str, side: Side, what: str, own_side: Side, own: Sequence[Tensor], other: Sequence[Tensor]
) -> Agreement:
    """How far two sides' answers lie apart; checks nothing yet.

    Args:
        subject: model or op, for the report.
        side, own_side: the two sides.
        what: `logits` or `output` are held to a largest difference, `gradients` to a relative one.
        own, other: their answers, of equal shapes.
    """
    exact = side.dtype == own_side.dtype == "float32"
    if exact and what != "gradients":
        # by torch: Python's own max() passes over a NaN that comes second
        difference = _largest(torch.tensor([_largest(a.float() - b.float()) for a, b in zip(own, other, strict=True)]))
        return Agreement(subject, side.name, side.dtype, what, difference, LOGITS_LIMIT, LARGEST)
    limit = GRADIENT_LIMIT if exact else HALF_LIMIT
    apart = sum(_energy(a.float() - b.float()) for a, b in zip(own, other, strict=True))
    size = sum(_energy(a.float()) for a in own)
    return Agreement(subject, side.name, side.dtype, what, (apart / max(size, 1e-30)) ** 0.5, limit, RELATIVE)


def require(agreement: Agreement) -> Agreement:
    """The agreement itself where it holds.

    Raises:
        CheckFailed: the sides differ by more than the limit, or one is not finite.
    """
    if not agreement.difference <= agreement.limit:  # in this form so that NaN fails
        raise CheckFailed(
            "the compared sides do not agree, so no figures are given",
            where=f"{agreement.subject}, {agreement.side}, {agreement.dtype}",
            why=f"{agreement.what} differ by {agreement.difference:.3g} ({agreement.measure}), "
            f"wanted at most {agreement.limit:g}",
            hint="Run `dgmn2 doctor`, which tests each op backend.",
        )
    return agreement


def _largest(difference: Tensor) -> float:
    """Largest magnitude; NaN if any element is."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def _energy(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double())) ** 2
