"""The four segmentation heads (SETR: arXiv 2012.15840, Semantic FPN: arXiv 1901.02446), keys as published.

A head maps the backbone's four feature maps to raw logits `(B, num_classes, h, w)` at a resolution of its own.
Feature arguments are lists of four `(B, C_i, H_i, W_i)` tensors, finest first.

`forward` keeps the published order of operations. `coarse` is what training runs: the same linear maps in a cheaper
order, equal up to rounding. It gives logits and the sizes they are still to be resized to, one after another
(`ops.resample.resize_chain`): a 1x1 classifier commutes with a resize, so 19 channels are enlarged, not 128 to 512.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch import cat as concatenate
from torch.nn import functional as F

from dgmn2cli.model.backbone import CHANNELS
from dgmn2cli.ops.convolve_resized import convolve_resized

PUP_CHANNELS = 256
MLA_CHANNELS = 128
FPN_CHANNELS = 256
FPN_BRANCH_CHANNELS = 128
FIXED_SIDE = 769  # SETR-Naive and SETR-MLA resize their logits to this side, whatever the window
Sizes = tuple[tuple[int, int], ...]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of `(B, C, H, W)` to `size` = (height, width), corners aligned, as every published head does."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def square(side: int) -> tuple[int, int]:
    """The published SETR heads resize to squares, also when the map is not square."""
    return (side, side)


class SetrNaiveHead(nn.Module):
    """SETR-Naive: a 1x1 classifier on stage 4, resized to 769 x 769."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(CHANNELS[-1], num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, 769, 769)`."""
        return resize(self.conv_seg(features[-1]), square(FIXED_SIDE))

    def coarse(self, features: list[Tensor]) -> tuple[Tensor, Sizes]:
        """Logits at stage 4's resolution."""
        return self.conv_seg(features[-1]), (square(FIXED_SIDE),)


class SetrPupHead(nn.Module):
    """SETR-PUP: three times convolution and upsampling by two on stage 4, then the classifier and a last upsampling."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(PUP_CHANNELS, num_classes, 1)
        for step in range(3):
            self.add_module(
                f"conv_{step}", nn.Conv2d(PUP_CHANNELS if step else CHANNELS[-1], PUP_CHANNELS, 3, padding=1)
            )
        for step in range(3):
            self.add_module(f"syncbn_fc_{step}", nn.BatchNorm2d(PUP_CHANNELS))  # synchronised only in the name

    def steps(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The three convolutions with their batch norms, in order."""
        convs, norms = ([self.get_submodule(f"{name}_{step}") for step in range(3)] for name in ("conv", "syncbn_fc"))
        return list(zip(convs, norms, strict=True))  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, 16 W4, 16 W4)`, W4 the width of stage 4's map."""
        x = features[-1]
        for conv, norm in self.steps():
            x = norm(conv(x)).relu()
            x = resize(x, square(2 * x.shape[-1]))
        return resize(self.conv_seg(x), square(2 * x.shape[-1]))

    def coarse(self, features: list[Tensor]) -> tuple[Tensor, Sizes]:
        """Logits `(B, num_classes, 4 W4, 4 W4)`."""
        (conv, norm), *later = self.steps()
        x = norm(conv(features[-1])).relu()
        for conv, norm in later:
            x = norm(convolve_resized(x, conv.weight, conv.bias, square(2 * x.shape[-1]))).relu()
        side = 2 * x.shape[-1]
        return self.conv_seg(x), (square(side), square(2 * side))


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

    def forward(self, features: list[Tensor]) -> Tensor:
        """Raw logits `(B, num_classes, 769, 769)`."""
        maps = self.mlahead(features)
        maps = [resize(x, square(side)) for x, side in zip(maps, self.branch_sides(maps), strict=True)]
        return resize(self.conv_seg(concatenate(maps, dim=1)), square(FIXED_SIDE))

    def coarse(self, features: list[Tensor]) -> tuple[Tensor, Sizes]:
        """Logits at the branches' common side: each branch is classified by its channels' share of the classifier."""
        maps = self.mlahead(features)
        shares = self.conv_seg.weight.split(MLA_CHANNELS, dim=1)
        total: Tensor | None = None
        for x, share, side in zip(maps, shares, self.branch_sides(maps), strict=True):
            logits = resize(F.conv2d(x, share, self.conv_seg.bias if total is None else None), square(side))
            total = logits if total is None else total + logits
        assert total is not None
        return total, (square(FIXED_SIDE),)


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

    def coarse(self, features: list[Tensor]) -> tuple[Tensor, Sizes]:
        """The raw logits: the dropout between sum and classifier takes whole channels of the sum."""
        total = self.scale_heads[0](features[0])
        for branch, x in zip(list(self.scale_heads)[1:], features[1:], strict=True):
            first, *later = [layer for layer in branch if isinstance(layer, ConvNormRelu)]  # type: ignore[attr-defined]
            x = first(x)
            for layer in later:
                x = layer.bn(convolve_resized(x, layer.conv.weight, None, _doubled(x))).relu()
            total = total + resize(resize(x, _doubled(x)), total.shape[2:])
        return self.conv_seg(self.dropout(total)), ()


# what a head may be made of so that `coarse` leaves nothing out: it calls some of these never, and takes their weights
_PLAIN = {SetrNaiveHead, SetrPupHead, SetrMlaHead, FpnHead, MultiLevelAggregation, ConvNormRelu, nn.Conv2d, nn.ReLU}
_PLAIN |= {nn.Sequential, nn.ModuleList, nn.Dropout2d, nn.Upsample}
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def is_plain(head: nn.Module) -> bool:
    """Whether a head's `coarse` does all that its `forward` does: nothing is hooked in, or put in a module's place."""
    for module in head.modules():
        if any(getattr(module, name, True) for name in _HOOKS):  # private names: one that is gone may hide a hook
            return False
        if not (type(module) in _PLAIN or isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))):
            return False
    return True


def _doubled(x: Tensor) -> tuple[int, int]:
    return (2 * x.shape[2], 2 * x.shape[3])


def _kaiming(module: nn.Module) -> None:
    """FPN's published initialisation of its convolutions, the classifier excepted."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
