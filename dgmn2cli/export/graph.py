"""A network as an ONNX graph of one window of any size: standard operators, the exact algebra folded in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from torch import nn

from dgmn2cli.export.builder import GraphBuilder
from dgmn2cli.export.layers import MapSize, Size, block, conv, resize, resize_chain
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
from dgmn2cli.model.segmentor import Segmentor

INPUT, OUTPUT = "images", "logits"


def build_graph(model: Segmentor, *, half: bool = False, batch: int | None = None) -> onnx.ModelProto:
    """The network's graph: `images` (B, 3, H, W) float32, normalised RGB, to `logits` (B, classes, H, W) float32.

    Batch norms are folded, classes are told apart before maps are enlarged, and a chain of resizes is one product
    along each axis.

    Args:
        half: weights and activations in float16; coordinates of samples, softmax and norms stay float32.
        batch: how many windows the graph takes at a time; any number if None.
    """
    g = GraphBuilder(np.float16 if half else np.float32)
    size = MapSize.of(g, INPUT)
    features = _backbone(g, g.rounded(INPUT), model.backbone)
    if model.neck is not None:
        features = _neck(g, features, model.neck)
    head = model.decode_head
    logits = _HEADS[type(head)](g, features, head, (size.height, size.width))
    first = "batch" if batch is None else batch
    return g.model(
        (INPUT, (first, 3, "height", "width")), (g.exact(logits), OUTPUT, (first, model.num_classes, "height", "width"))
    )


def _backbone(g: GraphBuilder, x: str, backbone: Backbone) -> list[str]:
    features = []
    for stage in range(1, 5):
        x = _embed(g, x, backbone.get_submodule(f"patch_embed{stage}"))
        size = MapSize.of(g, x)
        layers: list[Any] = list(backbone.get_submodule(f"block{stage}").children())
        channels = layers[0].attn.qkv.in_features
        tokens = g.op("Transpose", g.reshape(x, size.batch, channels, -1), perm=[0, 2, 1])
        for layer in layers:
            tokens = block(g, tokens, layer, size)
        x = g.op("Transpose", tokens, perm=[0, 2, 1])
        x = g.reshape(x, size.batch, channels, size.height, size.width)
        features.append(x)
    return features


def _embed(g: GraphBuilder, x: str, embed: nn.Module) -> str:
    if isinstance(embed, StemEmbedding):
        for layer, norm in ((embed.conv1, embed.norm1), (embed.conv2, embed.norm2), (embed.conv3, embed.norm3)):
            x = conv(g, x, layer, norm, relu=True)
        return x
    assert isinstance(embed, PatchEmbedding)
    return conv(g, x, embed.conv, embed.norm, relu=True)


def _neck(g: GraphBuilder, features: list[str], neck: FpnNeck) -> list[str]:
    lateral, output = ([named.conv for named in layers] for layers in (neck.lateral_convs, neck.fpn_convs))
    maps = [conv(g, x, layer) for layer, x in zip(lateral, features, strict=True)]
    for finer in range(len(maps) - 2, -1, -1):
        sizes = g.op("Shape", maps[finer])
        mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        maps[finer] = g.op("Add", maps[finer], g.op("Resize", maps[finer + 1], None, None, sizes, **mode))
    return [conv(g, x, layer) for layer, x in zip(output, maps, strict=True)]


def _square(g: GraphBuilder, width: str, factor: int) -> Size:
    side = g.op("Mul", width, [factor])
    return side, side


def _naive(g: GraphBuilder, features: list[str], head: SetrNaiveHead, size: Size) -> str:
    return resize_chain(g, conv(g, features[-1], head.conv_seg), (square(FIXED_SIDE), size))


def _pup(g: GraphBuilder, features: list[str], head: SetrPupHead, size: Size) -> str:
    x = features[-1]
    [width] = g.sizes(x, 3)
    for step in range(3):
        x = conv(g, x, head.get_submodule(f"conv_{step}"), head.get_submodule(f"syncbn_fc_{step}"), relu=True)
        if step < 2:
            x = resize(g, x, *_square(g, width, 2 ** (step + 1)))
    return resize_chain(g, conv(g, x, head.conv_seg), (_square(g, width, 8), _square(g, width, 16), size))


def _mla(g: GraphBuilder, features: list[str], head: SetrMlaHead, size: Size) -> str:
    widths = [g.sizes(x, 3)[0] for x in features]
    total = ""
    for index, (branch, x) in enumerate(zip(head.mlahead.children(), features, strict=True)):
        conv1, norm1, _, conv2, norm2, _ = branch.children()
        own = slice(index * MLA_CHANNELS, (index + 1) * MLA_CHANNELS)
        x = conv(g, conv(g, x, conv1, norm1, relu=True), conv2, norm2, relu=True)
        x = conv(g, x, _classifier_part(head.conv_seg, own, with_bias=not index))
        x = resize_chain(g, x, (_square(g, widths[max(index, 1)], 4),))
        total = g.op("Add", total, x) if total else x
    return resize_chain(g, total, (square(FIXED_SIDE), size))


def _fpn(g: GraphBuilder, features: list[str], head: FpnHead, size: Size) -> str:
    total = ""
    for index, (branch, x) in enumerate(zip(head.scale_heads, features, strict=True)):
        layers = [layer for layer in branch.children() if isinstance(layer, ConvNormRelu)]
        for step, layer in enumerate(layers):
            if step:
                x = resize(g, x, *_doubled(g, x))
            x = conv(g, x, layer.conv, layer.bn, relu=True)
        x = conv(g, x, _classifier_part(head.conv_seg, slice(None), with_bias=not index))
        if total:
            height, width = g.sizes(total, 2, 3)
            x = g.op("Add", total, resize_chain(g, x, (_doubled(g, x), (height, width))))
        total = x
    return resize_chain(g, total, (size,))


def _doubled(g: GraphBuilder, x: str) -> Size:
    height, width = g.sizes(x, 2, 3)
    return g.op("Mul", height, [2]), g.op("Mul", width, [2])


def _classifier_part(conv_seg: nn.Conv2d, channels: slice, *, with_bias: bool) -> nn.Conv2d:
    """The classifier restricted to some input channels; the bias is added by one of the parts only."""
    weight = conv_seg.weight.detach()[:, channels]
    part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=with_bias)
    part.weight = nn.Parameter(weight, requires_grad=False)
    if with_bias and conv_seg.bias is not None:
        part.bias = nn.Parameter(conv_seg.bias.detach(), requires_grad=False)
    return part


_HEADS: dict[type[nn.Module], Callable[..., str]] = {
    SetrNaiveHead: _naive,
    SetrPupHead: _pup,
    SetrMlaHead: _mla,
    FpnHead: _fpn,
}
