"""The published design compiled plainly, the baseline of every timing: nine-fold unfolded keys and values.

Each attention layer copies keys and values into image layout, unfolds both nine-fold with the compiled `deform_unfold`
(or torchvision's `deform_conv2d`), scores every query against all W + 8 and H + 8 rows of its position tables and picks
nine, and multiplies by matrices. Heads and everything else run as published. Nothing but measurements uses this file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.model.attention import SAMPLES, DynamicGraphAttention
from dgmn2cli.model.backbone import Mlp
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops import deform_unfold, resample_table

Unfold = Callable[[Tensor, Tensor], Tensor]


def compiled_unfold(maps: Tensor, offset: Tensor) -> Tensor:
    """3x3 deformable unfold by this package's C++ kernel: `(B, C, H, W)` to `(B, 9C, H*W)`."""
    return deform_unfold(maps, offset, kernel_size=3, padding=1)


def torchvision_unfold(maps: Tensor, offset: Tensor) -> Tensor:
    """The same by torchvision's deformable convolution with one-hot weights."""
    from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]  # it ships no types

    channels = maps.shape[1]
    weight = torch.eye(9 * channels, dtype=maps.dtype, device=maps.device).view(9 * channels, channels, 3, 3)
    return deform_conv2d(maps, offset, weight, padding=1).flatten(2)


class PlainAttention(nn.Module):
    """A drop-in for `DynamicGraphAttention` that computes as the published design does, on the same parameters."""

    def __init__(self, attention: DynamicGraphAttention, unfold: Unfold) -> None:
        super().__init__()
        self.heads, self.unfold = attention.heads, unfold
        self.qkv, self.proj, self.conv_offset = attention.qkv, attention.proj, attention.conv_offset
        self.pos_emb = attention.pos_emb

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, N, C)` to `(B, N, C)`."""
        batch, count, channels = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, channels // self.heads)
        offset = self.conv_offset(tokens.view(batch, count, self.heads, channels // self.heads))
        tables = (self.pos_emb.rel_height, self.pos_emb.rel_width)
        return self.proj(plain_attention(qkv, offset, *tables, size, self.unfold))


def plain_attention(
    qkv: Tensor, offset: Tensor, rel_height: Tensor, rel_width: Tensor, size: tuple[int, int], unfold: Unfold
) -> Tensor:
    """The attention between the projections, `(B, N, h*d)`, as published; arguments as for `ops.deform_attention`.

    Args:
        qkv: `(B, N, 3, h, d)`.
        offset: `(B, N, h, 18)`.
        rel_height, rel_width: the stored tables `(rows, d)`.
        size: `(H, W)`.
        unfold: `(B*h, d, H, W)` and `(B*h, 18, H, W)` to `(B*h, 9d, N)`.
    """
    batch, count, _, heads, width = qkv.shape
    queries, keys, values = qkv.permute(2, 0, 3, 4, 1).reshape(3, batch * heads, width, count).unbind(0)
    images = (batch * heads, width, *size)
    offset = offset.permute(0, 2, 3, 1).reshape(batch * heads, 2 * SAMPLES, *size)
    near_keys = unfold(keys.reshape(images), offset).view(-1, width, SAMPLES, count).permute(0, 3, 1, 2)
    near_values = unfold(values.reshape(images), offset).view(-1, width, SAMPLES, count).permute(0, 3, 2, 1)
    queries = queries.transpose(1, 2)  # (B*h, N, d)
    logits = (queries[:, :, None] @ near_keys)[:, :, 0] * width**-0.5 + _position_logits(
        queries.reshape(-1, *size, width), resample_table(rel_height, size[0]), resample_table(rel_width, size[1])
    )
    mixed = logits.softmax(-1)[:, :, None] @ near_values  # (B*h, N, 1, d)
    return mixed.view(batch, heads, count, width).transpose(1, 2).reshape(batch, count, heads * width)


def _position_logits(queries: Tensor, height_table: Tensor, width_table: Tensor) -> Tensor:
    """`(B*h, N, 9)`: every query against every row of both tables, then nine picked; the height term transposed."""
    height, width = queries.shape[1:3]
    across = _pick(queries @ width_table.T, 2)
    down = _pick(queries @ height_table.T, 1).permute(0, 3, 2, 1)
    down = F.interpolate(down, size=(height, width), mode="bilinear", align_corners=False)
    return (across + down.permute(0, 2, 3, 1)).flatten(1, 2)


def _pick(logits: Tensor, axis: int) -> Tensor:
    """Rows L - 1 + s - position, s = 0..8, of `(B*h, H, W, L + 8)`; position counts along `axis`, of length L."""
    length = logits.shape[axis]
    position = torch.arange(length, device=logits.device)
    rows = length - 1 + torch.arange(SAMPLES, device=logits.device) - position[:, None]  # (L, 9)
    shape = [1, 1, 1, SAMPLES]
    shape[axis] = length
    return logits.gather(3, rows.view(shape).expand(*logits.shape[:3], SAMPLES))


def plain_network(model: Segmentor, unfold: Unfold = compiled_unfold) -> Segmentor:
    """Makes `model` run the published design, in place; parameters and keys stay."""
    model.shortcut = False
    for module in list(model.modules()):
        if isinstance(module, Mlp):
            module.recompute = False  # what this package saves of memory, the design does not
        for name, child in module.named_children():
            if isinstance(child, DynamicGraphAttention):
                setattr(module, name, PlainAttention(child, unfold))
    return model
