"""The two deformable ops of DGMN2: one definition, several implementations, and the choice between them.

`deform_attention` is what the model runs; `deform_unfold` is the published extension's operation. Both differentiate
to any order, forward and backward, and go through `torch.vmap`; a kernel gives values and first gradients, the rest
comes from the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgmn2cli.ops import native, reference
from dgmn2cli.ops.backend import Availability, available_backends, default_backend, resolve, set_default_backend
from dgmn2cli.ops.contract import Pair, check_attention, check_unfold, pair, require_tensors
from dgmn2cli.ops.reference import resample_table

__all__ = [
    "Availability",
    "available_backends",
    "default_backend",
    "deform_attention",
    "deform_unfold",
    "resample_table",
    "resolve",
    "set_default_backend",
]


def deform_attention(
    qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor, size: Pair, backend: str = "auto"
) -> Tensor:
    """Dynamic graph message passing: every query attends to 9 bilinear samples of its own head (arXiv 2209.09760).

    Sample `s = 3*i + j` of the query at (y, x) lies at `(y - 1 + i + dy, x - 1 + j + dx)`; outside the open box
    (-1, H) x (-1, W) it is zero. Its logit is `q . k_s * d**-0.5` plus the two relative position terms of the unscaled
    q. A NaN or infinite offset makes its query's output NaN.

    Args:
        qkv: `(B, N, 3, h, d)` float, N = H * W in row-major order: the qkv Linear's output, read in place where its
            last stride is 1.
        offset: `(B, N, h, 18)` float, in pixels: 9 pairs (dy, dx).
        height_table: `(H + 8, d)` float, already resampled (`resample_table`).
        width_table: `(W + 8, d)` float, already resampled.
        size: `(H, W)` of the map.
        backend: `auto`, `native`, `triton` or `reference`.

    Returns:
        `(B, N, h * d)` contiguous, of qkv's dtype; half-precision inputs are accumulated in float32.

    Raises:
        ConfigError: shapes, dtypes or devices that do not fit, no such backend.
        ResourceError: the named backend cannot run here.
    """
    chosen = resolve(backend, qkv.device, qkv.dtype)
    tensors = (qkv, offset, height_table, width_table)
    if chosen == "reference":
        require_tensors("deform_attention", tensors, native.attention.tensors)
        check_attention(*tensors, *size)
        return reference.deform_attention(*tensors, size)
    if chosen == "triton":
        return torch.ops.dgmn2.triton_attention(*tensors, *size)[0]
    return torch.ops.dgmn2.attention(*tensors, *size)


def deform_unfold(
    input: Tensor,
    offset: Tensor,
    kernel_size: int | Pair = 3,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    deformable_groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The published extension's operation: `unfold` with every tap displaced by its own offset.

    Args:
        input: `(B, C, H, W)` float.
        offset: `(B, G * 2 * kh * kw, Ho, Wo)` float, in pixels: per group and tap `s = kw*i + j` the pair (dy, dx).
        kernel_size, stride, padding, dilation: one number or (vertical, horizontal), as for `torch.nn.Unfold`.
        deformable_groups: G; each group of C / G channels has its own offsets.
        backend: `auto`, `native`, `triton` or `reference`.

    Returns:
        `(B, C * kh * kw, Ho * Wo)` in `torch.nn.functional.unfold`'s order; NaN where an offset is not finite.

    Raises:
        ConfigError: shapes, dtypes, devices or numbers that do not fit, no such backend.
        ResourceError: the named backend cannot run here.
    """
    op = "deform_unfold"
    geometry = [
        *pair(op, "kernel_size", kernel_size, 1),
        *pair(op, "stride", stride, 1),
        *pair(op, "padding", padding, 0),
        *pair(op, "dilation", dilation, 1),
        deformable_groups,
    ]
    chosen = resolve(backend, input.device, input.dtype)
    if chosen == "reference":
        require_tensors(op, (input, offset), native.unfold.tensors)
        check_unfold(input, offset, geometry)
        return reference.deform_unfold(input, offset, geometry)
    if chosen == "triton":
        return torch.ops.dgmn2.triton_unfold(input, offset, geometry)
    return torch.ops.dgmn2.unfold(input, offset, geometry)
