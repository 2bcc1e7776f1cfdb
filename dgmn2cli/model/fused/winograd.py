"""3x3 convolutions by Winograd's minimal filtering, F(4x4, 3x3): a quarter of the multiply-accumulates, in float32.

Source: Lavin and Gray, arXiv 1509.09308. A tile of 6x6 inputs gives 4x4 outputs by 36 products with matrices of
channels where the definition takes 144. What that costs in rounding depends on the points the polynomials are evaluated
at: with 0, +-sqrt(1/2), +-sqrt(2) and infinity, factors shared evenly, the mean error over maps behind a ReLU is about
twice that of oneDNN's convolution, half of what the usual whole numbers give.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.model.fused.lanes import side_by_side, spans
from dgmn2cli.model.fused.layers import FusedConv, can_pack, fold_batch_norm
from dgmn2cli.ops.operators import cached

TILE = 4  # outputs of a tile along an axis
REACH = TILE + 2  # its inputs
POINTS = (0.0, sqrt(0.5), -sqrt(0.5), sqrt(2.0), -sqrt(2.0))  # and infinity
FEWEST_CHANNELS = 64  # on both sides: with fewer, the transforms cost what the products save
BAND_ELEMENTS = 1 << 21  # transformed inputs and outputs held at a time


def fused_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, *, relu: bool = False) -> nn.Module:
    """`conv` for inference with the batch norm and ReLU that follow it, in the fastest form that serves it."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    fits = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.weight.dtype == torch.float32
    if fits and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS and can_pack(conv.weight):
        return WinogradConv(conv, norm, relu=relu)
    return FusedConv(conv, norm, relu=relu)


class WinogradConv(nn.Module):
    """A 3x3 convolution, stride 1, padding 1, with its batch norm folded in and an optional ReLU, channels last.

    Args:
        conv: the convolution.
        norm: batch norm that follows it, if any.
        relu: whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, *, relu: bool = False) -> None:
        super().__init__()
        weight = conv.weight.detach()
        bias = conv.bias.detach() if conv.bias is not None else None
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        self.inputs = conv.in_channels * REACH**2 / TILE**2  # products of one output
        self.bias = weight.new_zeros(conv.out_channels) if bias is None else bias
        self.relu = relu
        inputs, filters, outputs = transforms()
        self.to_products = torch.kron(inputs, inputs).float()  # (36, 36), of a tile of inputs
        self.from_products = torch.kron(outputs, outputs).float()  # (16, 36)
        taps = torch.einsum("ay,bx,oiyx->abio", filters, filters, weight.double())
        self.taps = taps.flatten(0, 1).float().contiguous()  # (36, I, O)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, I, H, W)` to `(B, O, H, W)`, channels last."""
        batch, inner, height, width = x.shape
        outer = self.taps.shape[2]
        down, across = -(-height // TILE), -(-width // TILE)  # tiles
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, TILE * across + 1 - width, 1, TILE * down + 1 - height))
        image, line, place, _ = padded.stride()
        out = x.new_empty(batch, height, width, outer)

        def convolve(job: tuple[int, slice]) -> None:
            index, band = job  # rows of tiles of one image
            first, rows = band.start, band.stop - band.start
            tiles = padded.as_strided(
                (REACH, REACH, rows, across, inner),
                (line, place, TILE * line, TILE * place, 1),
                index * image + first * TILE * line,
            )
            seen = (self.to_products @ tiles.reshape(REACH**2, -1)).view(REACH**2, rows * across, inner)
            made = self.from_products @ torch.bmm(seen, self.taps).view(REACH**2, -1)
            lines = made.view(TILE, TILE, rows, across, outer).permute(2, 0, 3, 1, 4)
            lines = lines.reshape(TILE * rows, TILE * across, outer)[: height - TILE * first, :width]
            part = torch.add(lines, self.bias, out=out[index, TILE * first : TILE * first + lines.shape[0]])
            if self.relu:
                part.relu_()

        bands = spans(down, max(1, BAND_ELEMENTS // (REACH**2 * across * (inner + outer))))
        side_by_side(convolve, [(index, band) for index in range(batch) for band in bands])
        return out.permute(0, 3, 1, 2)


@cached
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """The matrices along one axis, float64: of the inputs (6, 6), of the filter (6, 3), of the outputs (4, 6)."""
    points = torch.tensor(POINTS, dtype=torch.float64, device="cpu")
    inputs = points.new_zeros(REACH, REACH)
    filters, outputs = inputs.new_zeros(REACH, 3), inputs.new_zeros(TILE, REACH)
    for row, point in enumerate(points):
        others = torch.cat([points[:row], points[row + 1 :]])
        inputs[row, :-1] = _product(others)
        filters[row] = point ** torch.arange(3, device="cpu") / (point - others).prod()
        outputs[:, row] = point ** torch.arange(TILE, device="cpu")
    inputs[-1], filters[-1, -1], outputs[-1, -1] = _product(points), 1, 1  # the point at infinity
    norms = torch.stack([inputs.norm(dim=1), filters.norm(dim=1), outputs.norm(dim=0)])
    share = norms.prod(0) ** (1 / 3)  # a factor may lie in any of the three
    return inputs * (share / norms[0])[:, None], filters * (share / norms[1])[:, None], outputs * (share / norms[2])


def _product(roots: Tensor) -> Tensor:
    """Coefficients of the product of `x - root`, lowest power first."""
    made = roots.new_ones(1)
    for root in roots:
        made = F.pad(made, (1, 0)) - root * F.pad(made, (0, 1))
    return made
