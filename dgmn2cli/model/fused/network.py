"""Rewrites a trained network into a faster one that gives the same logits (up to rounding).

Batch norms are folded into their convolutions, weights are prepacked, and the exact algebra of linear maps is used:
the 1x1 classifier commutes with bilinear resizing, so logits of 19 channels are resized instead of features of 128 to
512, each branch at its own resolution, and a chain of resizes is one product along each axis (`ops.resample`).
`heads.py` has the published order of operations; its `forward` is the definition that this file is tested against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.errors import ConfigError
from dgmn2cli.model.backbone import Backbone, PatchEmbedding, StemEmbedding
from dgmn2cli.model.fused.lanes import lanes, side_by_side, stop_if_told
from dgmn2cli.model.fused.layers import FusedBlock, FusedConv, ResizedConv, can_pack
from dgmn2cli.model.fused.winograd import fused_conv
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
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops.native import on_large_pages
from dgmn2cli.ops.operators import has_tangent
from dgmn2cli.ops.resample import resize_chain

Size = tuple[int, int]


class InferenceForm(nn.Module):
    """A segmentor for inference only: no gradients, no training mode, same logits.

    Args:
        model: the network, on its final device and in its final dtype. Its parameters are copied where repacked and
            shared elsewhere; let go of it to free the memory.
    """

    @torch.no_grad()
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
        if has_tangent((images,)):
            raise ConfigError(
                "cannot differentiate an inference form", hint="Differentiate the network it was made of."
            )
        if images.shape[0] == 0:
            return images.new_empty(0, self.num_classes, *images.shape[2:])
        if images.shape[0] > 1 and images.device.type == "cpu" and lanes() > 1:
            return torch.cat(side_by_side(self._logits, images.split(1)))
        return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
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
            packed = can_pack(backbone.get_submodule(f"block{stage}.0.attn.qkv").weight)  # type: ignore[arg-type]
            self.stages.append(nn.ModuleList([FusedBlock(block) if packed else block for block in blocks]))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        features, x = [], images
        scratch = images.new_empty(0)
        for embed, blocks in zip(self.embeds, self.stages, strict=True):
            x = embed(x)
            size = (x.shape[2], x.shape[3])
            tokens = x.flatten(2).transpose(1, 2).contiguous()  # (B, N, C); no copy when x is channels last
            for block in blocks:  # type: ignore[attr-defined]
                stop_if_told()
                if isinstance(block, FusedBlock):
                    if scratch.numel() < 3 * tokens.numel():
                        scratch = on_large_pages(tokens.new_empty(3 * tokens.numel()))
                    block(tokens, size, scratch)
                else:
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
    return nn.Sequential(*[fused_conv(conv, norm, relu=True) for conv, norm in pairs])


class _NaiveForm(nn.Module):
    def __init__(self, head: SetrNaiveHead) -> None:
        super().__init__()
        self.classify = FusedConv(head.conv_seg)

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        return resize_chain(self.classify(features[-1]), (square(FIXED_SIDE), size))


class _PupForm(nn.Module):
    """SETR-PUP; the last convolution's rows are classified as they come, so that its features are never all held."""

    def __init__(self, head: SetrPupHead) -> None:
        super().__init__()
        pairs = [(head.get_submodule(f"conv_{step}"), head.get_submodule(f"syncbn_fc_{step}")) for step in range(3)]
        first, second, third = pairs
        self.first = fused_conv(*first, relu=True)  # type: ignore[arg-type]
        self.second, self.third = ResizedConv(*second), ResizedConv(*third)  # type: ignore[arg-type]
        self.classify = FusedConv(head.conv_seg)

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        x = self.first(features[-1])
        side = 2 * x.shape[-1]
        x = self.second(x, square(side))
        logits = self.third(x, square(2 * side), self.classify)
        return resize_chain(logits, (square(4 * side), square(8 * side), size))


class _MlaForm(nn.Module):
    def __init__(self, head: SetrMlaHead) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        self.sides = head.branch_sides
        for index, branch in enumerate(head.mlahead.children()):
            conv1, norm1, _, conv2, norm2, _ = branch.children()
            own = slice(index * MLA_CHANNELS, (index + 1) * MLA_CHANNELS)
            layers = [
                fused_conv(conv1, norm1, relu=True),  # type: ignore[arg-type]
                fused_conv(conv2, norm2, relu=True),  # type: ignore[arg-type]
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
        self.lateral = nn.ModuleList([fused_conv(named.conv) for named in neck.lateral_convs])  # type: ignore[arg-type]
        self.output = nn.ModuleList([fused_conv(named.conv) for named in neck.fpn_convs])  # type: ignore[arg-type]

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
            later = [ResizedConv(layer.conv, layer.bn) for layer in convs[1:]]
            self.branches.append(nn.ModuleList([fused_conv(convs[0].conv, convs[0].bn, relu=True), *later]))
            self.classifiers.append(_classifier_part(head.conv_seg, slice(None), with_bias=index == 0))

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        total: Tensor | None = None
        for convs, classify, x in zip(self.branches, self.classifiers, features, strict=True):
            first, *later = convs.children()
            x = first(x)
            for conv in later:
                x = conv(x, (2 * x.shape[2], 2 * x.shape[3]))
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
