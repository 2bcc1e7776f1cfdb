"""Owns the rewriting of a trained network into a faster one that gives the same logits (up to rounding).

Batch norms are folded into their convolutions, weights are prepacked, and the exact algebra of linear maps is used:
the 1x1 classifier commutes with bilinear resizing, so logits of 19 channels are resized instead of features of 128 to
512, each branch at its own resolution, and a chain of resizes is one product along each axis (`ops.resample`).
Training keeps the published order of operations; `heads.py` is the definition this file is tested against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.model.backbone import Backbone, PatchEmbedding, StemEmbedding
from dgmn2cli.model.heads import (
    FIXED_SIDE,
    MLA_CHANNELS,
    ConvNormRelu,
    FpnHead,
    FpnNeck,
    SetrMlaHead,
    SetrNaiveHead,
    SetrPupHead,
    square,
)
from dgmn2cli.model.layers import FusedBlock, FusedConv
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops.resample import resize_chain, resize_rows

BAND_ELEMENTS = 1 << 22  # upsampled features computed at a time by the last SETR-PUP step
Size = tuple[int, int]


class InferenceForm(nn.Module):
    """A segmentor for inference only: no gradients, no training mode, same logits.

    Args:
        model: the network, on its final device and in its final dtype. Its parameters are copied where repacked and
            shared elsewhere; let go of it to free the memory.
    """

    def __init__(self, model: Segmentor) -> None:
        super().__init__()
        self.num_classes = model.num_classes
        self.backbone = _FusedBackbone(model.backbone)
        self.neck = _FusedFpnNeck(model.neck) if model.neck is not None else None
        self.head = _HEAD_FORMS[type(model.decode_head)](model.decode_head)
        self.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes, H, W)` of normalised RGB images `(B, 3, H, W)`."""
        features = self.backbone(images)
        if self.neck is not None:
            features = self.neck(features)
        return self.head(features, (images.shape[2], images.shape[3]))


class _FusedBackbone(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.embeds = nn.ModuleList()
        self.stages = nn.ModuleList()
        for stage in range(1, 5):
            self.embeds.append(_fused_embedding(backbone.get_submodule(f"patch_embed{stage}")))
            blocks = backbone.get_submodule(f"block{stage}").children()
            self.stages.append(nn.ModuleList([FusedBlock(block) for block in blocks]))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        features, x = [], images
        for embed, blocks in zip(self.embeds, self.stages, strict=True):
            x = embed(x)
            size = (x.shape[2], x.shape[3])
            tokens = x.flatten(2).transpose(1, 2).contiguous()  # (B, N, C); no copy when x is channels last
            for block in blocks:  # type: ignore[attr-defined]
                tokens = block(tokens, size)
            x = tokens.transpose(1, 2).unflatten(2, size)  # (B, C, H, W), channels last in memory
            features.append(x)
        return features


def _fused_embedding(embed: nn.Module) -> nn.Sequential:
    if isinstance(embed, StemEmbedding):
        pairs = [(embed.conv1, embed.norm1), (embed.conv2, embed.norm2), (embed.conv3, embed.norm3)]
    else:
        assert isinstance(embed, PatchEmbedding)
        pairs = [(embed.conv, embed.norm)]
    return nn.Sequential(*[FusedConv(conv, norm, relu=True) for conv, norm in pairs])


class _NaiveForm(nn.Module):
    def __init__(self, head: SetrNaiveHead) -> None:
        super().__init__()
        self.classify = FusedConv(head.conv_seg)

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        return resize_chain(self.classify(features[-1]), (square(FIXED_SIDE), size))


class _PupForm(nn.Module):
    """SETR-PUP with the last convolution and the classifier run in bands of rows of the doubled-twice map."""

    def __init__(self, head: SetrPupHead) -> None:
        super().__init__()
        pairs = [(head.get_submodule(f"conv_{step}"), head.get_submodule(f"syncbn_fc_{step}")) for step in range(3)]
        self.steps = nn.ModuleList([FusedConv(conv, norm, relu=True) for conv, norm in pairs])  # type: ignore[arg-type]
        self.classify = FusedConv(head.conv_seg)

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        x = self.steps[0](features[-1])
        side = 2 * x.shape[-1]
        x = self.steps[1](resize_rows(x, square(side), slice(0, side)))
        logits = self._last_step(x, 2 * side)
        return resize_chain(logits, (square(4 * side), square(8 * side), size))

    def _last_step(self, x: Tensor, side: int) -> Tensor:
        """Upsampling to `side`, convolution, classifier: `(B, num_classes, side, side)`, a band of rows at a time."""
        rows = max(4, BAND_ELEMENTS // (x.shape[0] * x.shape[1] * side))
        bands = []
        for first in range(0, side, rows):
            last = min(first + rows, side)
            above, below = int(first > 0), int(last < side)  # one row of halo, zeros beyond the map
            band = resize_rows(x, square(side), slice(first - above, last + below))
            if above and below:
                y = self.steps[2](band, padding=[0, 1])
            else:
                y = self.steps[2](band)[:, :, above : above + last - first]
            bands.append(self.classify(y))
        return torch.cat(bands, dim=2)


class _MlaForm(nn.Module):
    def __init__(self, head: SetrMlaHead) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        self.sides = head.branch_sides
        for index, branch in enumerate(head.mlahead.children()):
            conv1, norm1, _, conv2, norm2, _ = branch.children()
            own = slice(index * MLA_CHANNELS, (index + 1) * MLA_CHANNELS)
            layers = [
                FusedConv(conv1, norm1, relu=True),  # type: ignore[arg-type]
                FusedConv(conv2, norm2, relu=True),  # type: ignore[arg-type]
                _classifier_part(head.conv_seg, own, with_bias=index == 0),
            ]
            self.branches.append(nn.Sequential(*layers))

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        total: Tensor | None = None
        for branch, x, side in zip(self.branches, features, self.sides(features), strict=True):
            logits = resize_chain(branch(x), (square(side),))
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return resize_chain(total, (square(FIXED_SIDE), size))


class _FusedFpnNeck(nn.Module):
    def __init__(self, neck: FpnNeck) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([FusedConv(named.conv) for named in neck.lateral_convs])  # type: ignore[arg-type]
        self.output = nn.ModuleList([FusedConv(named.conv) for named in neck.fpn_convs])  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] += F.interpolate(maps[finer + 1], size=maps[finer].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.output, maps, strict=True)]


class _FpnForm(nn.Module):
    def __init__(self, head: FpnHead) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        self.classifiers = nn.ModuleList()
        for index, branch in enumerate(head.scale_heads):
            convs = [layer for layer in branch.children() if isinstance(layer, ConvNormRelu)]
            self.branches.append(nn.ModuleList([FusedConv(layer.conv, layer.bn, relu=True) for layer in convs]))
            self.classifiers.append(_classifier_part(head.conv_seg, slice(None), with_bias=index == 0))

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        total: Tensor | None = None
        for convs, classify, x in zip(self.branches, self.classifiers, features, strict=True):
            for step, conv in enumerate(convs.children()):
                if step:
                    height, width = 2 * x.shape[2], 2 * x.shape[3]
                    x = resize_rows(x, (height, width), slice(0, height))
                x = conv(x)
            logits = classify(x)
            if total is None:  # level 1 is neither doubled nor resized
                total = logits.contiguous()
            else:
                doubled = (2 * x.shape[2], 2 * x.shape[3])
                total += resize_chain(logits, (doubled, (total.shape[2], total.shape[3])))
        assert total is not None
        return resize_chain(total, (size,))


def _classifier_part(conv_seg: nn.Conv2d, channels: slice, *, with_bias: bool) -> FusedConv:
    """The classifier restricted to some input channels; the bias is added by one of the parts only."""
    weight = conv_seg.weight.detach()[:, channels]
    part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=with_bias, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        part.weight.copy_(weight)
        if part.bias is not None and conv_seg.bias is not None:
            part.bias.copy_(conv_seg.bias)
    return FusedConv(part)


_HEAD_FORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    SetrNaiveHead: _NaiveForm,
    SetrPupHead: _PupForm,
    SetrMlaHead: _MlaForm,
    FpnHead: _FpnForm,
}
