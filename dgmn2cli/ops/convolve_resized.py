"""A 3x3 convolution of a bilinearly enlarged map with its gradients, at the small map's cost (see `ops.upsampled`).

Training wants the sums before batch norm and ReLU, and their adjoint: two banded products, one along each axis of the
gradient, for each band of the small map's rows. Neither the enlarged map nor its gradient ever exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.ops.operators import cached, followed
from dgmn2cli.ops.resample import resize_matrix
from dgmn2cli.ops.upsampled import TAPS, Size, can_convolve, convolve_upsampled

BAND_ROWS = 16  # of the small map whose gradients are taken at a time
BAND_COLUMNS = 16


def convolve_resized(x: Tensor, weight: Tensor, bias: Tensor | None, target: Size) -> Tensor:
    """`conv2d(resize(x, target), weight, bias, padding=1)`, resized bilinearly with aligned corners.

    Equal to those two operations up to rounding, and just them where the shortcut does not serve (GPU, other dtypes,
    autocast, whatever follows operations, maps that are hardly enlarged).

    Args:
        x: `(B, I, h, w)`.
        weight: `(O, I, 3, 3)`.
        bias: `(O,)` or None.
        target: `(H, W)`.

    Returns:
        `(B, O, H, W)`; channels last where the shortcut was taken.
    """
    plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or followed()
    if plain or not can_convolve((x.shape[2], x.shape[3]), target, x.dtype):
        return _plainly(x, weight, bias, target)
    return _ConvolveResized.apply(x, weight, weight.new_zeros(weight.shape[0]) if bias is None else bias, target)


def _plainly(x: Tensor, weight: Tensor, bias: Tensor | None, target: Size) -> Tensor:
    large = F.interpolate(x, size=target, mode="bilinear", align_corners=True)
    return F.conv2d(large, weight, bias, padding=1)


class _ConvolveResized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Size) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.target = target
        taps = weight.permute(1, 2, 3, 0).flatten(1)  # (I, 9 * O)
        out = x.new_empty(x.shape[0], *target, weight.shape[0])
        for lines, result in zip(x.permute(0, 2, 3, 1).contiguous(), out, strict=True):
            bands = convolve_upsampled(lines, lambda rows: rows @ taps, bias, target, relu=False)
            torch.cat(list(bands), out=result)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            out = _plainly(x, weight, bias, ctx.target)
            wanted = [value for value, wants in zip((x, weight, bias), ctx.needs_input_grad[:3], strict=True) if wants]
            given = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            return (*(next(given) if wants else None for wants in ctx.needs_input_grad[:3]), None)
        grads = grad.permute(0, 2, 3, 1).contiguous()  # (B, H, W, O)
        with torch.autocast("cpu", enabled=False):  # which might have begun after the forward pass
            grad_x, grad_taps = _adjoint(grads, x.permute(0, 2, 3, 1).contiguous(), weight, ctx.target)
        grad_weight = grad_taps.unflatten(0, (3, 3)).permute(2, 3, 1, 0)  # (kx, ky, O, I) to (O, I, ky, kx)
        return grad_x.permute(0, 3, 1, 2), grad_weight, grads.sum((0, 1, 2)), None


def _adjoint(grads: Tensor, images: Tensor, weight: Tensor, target: Size) -> tuple[Tensor, Tensor]:
    """Gradients of the small maps, and of the taps.

    Args:
        grads: `(B, H, W, O)` contiguous, of the convolution's result.
        images: `(B, h, w, I)` contiguous.
        weight: `(O, I, 3, 3)`.
        target: (H, W).

    Returns:
        `(B, h, w, I)`, and `(9, O, I)` for taps `3*kx + ky`.
    """
    _, height, width, inner = images.shape
    outer = weight.shape[0]
    taps = weight.permute(3, 2, 0, 1).reshape(TAPS, outer, inner)
    grad_images, grad_taps = torch.zeros_like(images), taps.new_zeros(taps.shape)
    for grad, image, grad_image in zip(grads, images, grad_images, strict=True):
        for rows, from_rows, down in _bands(height, target[0], BAND_ROWS):
            count = rows.stop - rows.start
            # along the columns of the map: for each ky and small row what the large rows give it
            partial = (down.flatten(0, 1) @ grad[from_rows].flatten(1)).view(3 * count, target[1], outer)
            products = grad.new_empty(3, 3 * count, width, outer)  # kx, (ky, row), column, channel
            for columns, from_columns, across in _bands(width, target[1], BAND_COLUMNS):
                for kx in range(3):
                    matrix = across[kx].expand(3 * count, -1, -1)
                    torch.bmm(matrix, partial[:, from_columns], out=products[kx][:, columns])
            each = products.view(TAPS, count * width, outer)
            to = grad_image[rows].view(-1, inner)
            for tap in range(TAPS):
                to.addmm_(each[tap], taps[tap])
            grad_taps.baddbmm_(each.mT, image[rows].view(1, -1, inner).expand(TAPS, -1, -1))
    return grad_images, grad_taps


@cached
def _bands(length: int, target: int, size: int) -> list[tuple[slice, slice, Tensor]]:
    """One axis of the adjoint in bands of `size` small positions.

    Returns:
        Per band its small positions, the large ones that give to it, and the shares `(3, small, large)` of both by the
        place in the kernel: a large position takes through place k what lies k - 1 beyond it, nothing beyond the map.
    """
    resize = resize_matrix((length, target)).float()  # (target, length)
    padded = F.pad(resize, (0, 0, 1, 1))
    shares = torch.stack([padded[place : place + target].mT for place in range(3)])
    bands = []
    for first in range(0, length, size):
        small = slice(first, min(first + size, length))
        used = shares[:, small].abs().sum((0, 1)).nonzero()
        large = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
        bands.append((small, large, shares[:, small, large].contiguous()))
    return bands
