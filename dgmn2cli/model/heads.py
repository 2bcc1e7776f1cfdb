"""The four segmentation heads (SETR: arXiv 2012.15840, Semantic FPN: arXiv 1901.02446), keys as published.

A head maps the backbone's four feature maps to raw logits `(B, num_classes, h, w)` at a resolution of its own.
Feature arguments are lists of four `(B, C_i, H_i, W_i)` tensors, finest first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import cat as concatenate
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dgmn2cli.model.backbone import CHANNELS
from dgmn2cli.ops.operators import transformed
from dgmn2cli.ops.resample import resize_rows, source_rows

PUP_CHANNELS = 256
MLA_CHANNELS = 128
FPN_CHANNELS = 256
FPN_BRANCH_CHANNELS = 128
BANDS = 8  # parts in which the largest features are classified while training
FIXED_SIDE = 769  # SETR-Naive and SETR-MLA resize their logits to this side, whatever the window


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of `(B, C, H, W)` to `size` = (height, width), corners aligned, as every published head does."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def square(side: int) -> tuple[int, int]:
    """The published SETR heads resize to squares, also when the map is not square."""
    return (side, side)


def classify_resized(classifier: nn.Conv2d, x: Tensor, size: tuple[int, int]) -> Tensor:
    """`classifier(resize(x, size))` for training, a band of rows at a time: no enlarged features are kept.

    The backward pass resizes each band anew, so that of features `(B, C, H, W)` only a band exists at any time.

    Args:
        classifier: a 1x1 convolution.
        x: `(B, C, h, w)`.
        size: `(H, W)`.

    Returns:
        `(B, num_classes, H, W)`.
    """
    height = x.shape[2]
    upper = source_rows(height, size[0])[0].numpy()  # on the host: nothing is waited for
    pieces = x.split(max(1, -(-height // BANDS)), dim=2)
    bands, above, first = [], 0, 0
    for piece, following in zip(pieces, [*pieces[1:], pieces[-1][:, :, -1:]], strict=True):
        last = int((upper < above + piece.shape[2]).sum())
        rows = slice(first, last)

        def classify(piece: Tensor, beneath: Tensor, rows: slice = rows, above: int = above) -> Tensor:
            maps = concatenate([piece, beneath], dim=2)
            return classifier(resize_rows(maps, size, rows, above=above, height=height))

        if first < last:
            bands.append(
                checkpoint(classify, piece, following[:, :, :1], use_reentrant=False, preserve_rng_state=False)
            )
        above, first = above + piece.shape[2], last
    return concatenate(bands, dim=2)


class SetrNaiveHead(nn.Module):
    """SETR-Naive: a 1x1 classifier on stage 4, resized to 769 x 769."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(CHANNELS[-1], num_classes, 1)

    def coarse(self, features: list[Tensor]) -> Tensor:
        """Logits at stage 4's resolution."""
        return self.conv_seg(features[-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, 769, 769)`."""
        return resize(self.coarse(features), square(FIXED_SIDE))


class SetrPupHead(nn.Module):
    """SETR-PUP: three times convolution and upsampling by two on stage 4, then the classifier and a last upsampling.

    `recompute` trades a little arithmetic for the memory of the largest features; same numbers up to rounding.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.recompute = True
        self.conv_seg = nn.Conv2d(PUP_CHANNELS, num_classes, 1)
        for step in range(3):
            self.add_module(
                f"conv_{step}", nn.Conv2d(PUP_CHANNELS if step else CHANNELS[-1], PUP_CHANNELS, 3, padding=1)
            )
        for step in range(3):
            self.add_module(f"syncbn_fc_{step}", nn.BatchNorm2d(PUP_CHANNELS))  # synchronised only in the name

    def conv_step(self, step: int, x: Tensor) -> Tensor:
        """Convolution, batch norm and ReLU number `step` (0 to 2): `(B, C, H, W)` to `(B, 256, H, W)`."""
        return self.get_submodule(f"syncbn_fc_{step}")(self.get_submodule(f"conv_{step}")(x)).relu()

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, 16 W4, 16 W4)`, W4 the width of stage 4's map."""
        x = features[-1]
        for step in range(2):
            x = self.conv_step(step, x)
            x = resize(x, square(2 * x.shape[-1]))
        x = self.conv_step(2, x)
        side = 2 * x.shape[-1]
        banded = self.recompute and x.requires_grad and not transformed()
        if banded and x.dtype != torch.float64:  # bands round positions as for float32 maps
            logits = classify_resized(self.conv_seg, x, square(side))
        else:
            logits = self.conv_seg(resize(x, square(side)))
        return resize(logits, square(2 * side))


class MultiLevelAggregation(nn.Module):
    """Per stage two [3x3 convolution, batch norm, ReLU]; `head2` to `head5` serve stages 1 to 4."""

    def __init__(self) -> None:
        super().__init__()
        for stage, channels in enumerate(CHANNELS, 2):
            layers = nn.Sequential(
                nn.Conv2d(channels, MLA_CHANNELS, 3, padding=1, bias=False),
                nn.BatchNorm2d(MLA_CHANNELS),
                nn.ReLU(),
                nn.Conv2d(MLA_CHANNELS, MLA_CHANNELS, 3, padding=1, bias=False),
                nn.BatchNorm2d(MLA_CHANNELS),
                nn.ReLU(),
            )
            self.add_module(f"head{stage}", layers)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Four maps `(B, 128, H_i, W_i)`."""
        return [branch(x) for branch, x in zip(self.children(), features, strict=True)]


class SetrMlaHead(nn.Module):
    """SETR-MLA: every stage convolved, resized to one square, concatenated, classified, resized to 769 x 769."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(MLA_CHANNELS * len(CHANNELS), num_classes, 1)
        self.mlahead = MultiLevelAggregation()

    @staticmethod
    def branch_sides(maps: Sequence[Tensor]) -> tuple[int, ...]:
        """The square's side for each branch: 4 x the width of stage 2 for stages 1 and 2, 4 x their own for 3 and 4."""
        widths = [x.shape[-1] for x in maps]
        return (4 * widths[1], 4 * widths[1], 4 * widths[2], 4 * widths[3])

    def coarse(self, features: list[Tensor]) -> Tensor:
        """Logits at the branches' common side."""
        maps = self.mlahead(features)
        maps = [resize(x, square(side)) for x, side in zip(maps, self.branch_sides(maps), strict=True)]
        return self.conv_seg(concatenate(maps, dim=1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, 769, 769)`."""
        return resize(self.coarse(features), square(FIXED_SIDE))


class NamedConv(nn.Module):
    """A convolution under the key `conv`, as the FPN neck's checkpoints have it."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, H, W)`."""
        return self.conv(x)


class FpnNeck(nn.Module):
    """Feature pyramid (arXiv 1612.03144): lateral 1x1 convolutions, top-down sums, 3x3 convolutions; 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList([NamedConv(channels, FPN_CHANNELS, 1) for channels in CHANNELS])
        self.fpn_convs = nn.ModuleList([NamedConv(FPN_CHANNELS, FPN_CHANNELS, 3) for _ in CHANNELS])
        self.apply(_kaiming)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Four maps `(B, 256, H_i, W_i)`."""
        maps = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + F.interpolate(maps[finer + 1], size=maps[finer].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]


class ConvNormRelu(nn.Module):
    """3x3 convolution without bias (`conv`), batch norm (`bn`), ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, H, W)`."""
        return self.bn(self.conv(x)).relu()


class FpnHead(nn.Module):
    """Semantic FPN: per level a chain of convolutions and x2 upsamplings, summed at level 1's size, then classified."""

    def __init__(self, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(FPN_BRANCH_CHANNELS, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.scale_heads = nn.ModuleList()
        for doublings in range(len(CHANNELS)):
            layers: list[nn.Module] = []
            for step in range(max(1, doublings)):
                layers.append(ConvNormRelu(FPN_BRANCH_CHANNELS if step else FPN_CHANNELS, FPN_BRANCH_CHANNELS))
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            self.scale_heads.append(nn.Sequential(*layers))
        self.scale_heads.apply(_kaiming)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, H_1, W_1)`, a quarter of the image's sides, of the neck's four maps."""
        total = self.scale_heads[0](features[0])
        for branch, x in zip(list(self.scale_heads)[1:], features[1:], strict=True):
            # doubling odd maps overshoots level 1 (4 -> 32 down to 25); the published network shrinks it back
            total = total + resize(branch(x), total.shape[2:])
        return self.conv_seg(self.dropout(total))


def _kaiming(module: nn.Module) -> None:
    """FPN's published initialisation of its convolutions, the classifier excepted."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
