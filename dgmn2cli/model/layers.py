"""Owns the layers an inference form is made of: folded, prepacked for the CPU's matrix units, fused with what follows.

Prepacked weights and fused activations are oneDNN's, through the operators PyTorch's own compiler emits for frozen
weights. Where they are absent (another device, another build) the same numbers come from PyTorch's plain layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.model.attention import DynamicGraphAttention
from dgmn2cli.model.backbone import Block
from dgmn2cli.ops import deform_attention, resample_table

PACKED_DTYPES = (torch.float32, torch.bfloat16)
CHUNK_ELEMENTS = 1 << 19  # hidden activations of an MLP kept at a time, so that they stay in the cache


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's prepacked operators serve this weight's device and type."""
    if weight.device.type != "cpu" or weight.dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    wanted = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in wanted)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight `(O, I, kh, kw)` and bias `(O,)` of the one convolution that equals convolution then batch norm."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    if bias is not None:
        shift = shift + bias.double() * factor
    return (weight.double() * factor[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


class FusedLinear(nn.Module):
    """A Linear layer with an optional exact GELU, or with a tensor added to its result."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.activation = "gelu" if gelu else "none"
        self.packed = can_pack(linear.weight)
        weight = linear.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.bias = linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        if self.packed:
            algorithm = "none" if self.activation == "gelu" else ""
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], algorithm)
        x = F.linear(x, self.weight, self.bias)
        return F.gelu(x) if self.activation == "gelu" else x

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual + forward(x)`, `(..., out)`."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return residual + F.linear(x, self.weight, self.bias)


class FusedConv(nn.Module):
    """A convolution with its batch norm folded in and an optional ReLU, channels last.

    Args:
        conv: the convolution, any stride and padding.
        norm: batch norm that follows it, if any.
        relu: whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, *, relu: bool = False) -> None:
        super().__init__()
        weight = conv.weight.detach()
        bias = conv.bias.detach() if conv.bias is not None else None
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        self.stride, self.padding, self.relu = list(conv.stride), [int(side) for side in conv.padding], relu
        self.packed = can_pack(weight)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, self.padding, self.stride, [1, 1], 1, [1, weight.shape[1], 64, 64]
            )
        else:
            self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = bias

    def forward(self, x: Tensor, padding: list[int] | None = None) -> Tensor:
        """`(B, I, H, W)` to `(B, O, H', W')`, channels last; `padding` replaces the layer's own (rows, columns)."""
        padding = self.padding if padding is None else padding
        if self.packed:
            x = x.contiguous(memory_format=torch.channels_last)
            activation = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, padding, self.stride, [1, 1], 1, activation, [], ""
            )
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding)
        return x.relu_() if self.relu else x


class FusedBlock(nn.Module):
    """A backbone block: same numbers, projections packed, residual sums fused, MLP in chunks of tokens."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention: DynamicGraphAttention = block.attn
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.heads, self.backend = attention.heads, attention.backend
        self.qkv = FusedLinear(attention.qkv)
        self.offset = FusedLinear(attention.conv_offset)
        self.proj = FusedLinear(attention.proj)
        self.fc1 = FusedLinear(block.mlp.fc1, gelu=True)
        self.fc2 = FusedLinear(block.mlp.fc2)
        self.hidden = block.mlp.fc1.out_features
        self.rel_height = attention.pos_emb.rel_height.detach()
        self.rel_width = attention.pos_emb.rel_width.detach()

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, N, C)` to `(B, N, C)`; `size` is the map's (H, W) with N = H * W."""
        return self._mlp(self._attend(tokens, size))

    def _attend(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        batch, count, channels = tokens.shape
        normed = self.norm1(tokens)
        mixed = deform_attention(
            self.qkv(normed).view(batch, count, 3, self.heads, channels // self.heads),
            self.offset(normed.view(batch, count, self.heads, channels // self.heads)),
            resample_table(self.rel_height, size[0]),
            resample_table(self.rel_width, size[1]),
            size,
            backend=self.backend,
        )
        return self.proj.add_to(tokens, mixed)

    def _mlp(self, tokens: Tensor) -> Tensor:
        """Adds the MLP's output to `tokens`, `(B, N, C)`, in place where it works in chunks."""
        if tokens.device.type != "cpu":
            return self.fc2.add_to(tokens, self.fc1(self.norm2(tokens)))
        for part in tokens.view(-1, tokens.shape[-1]).split(max(256, CHUNK_ELEMENTS // self.hidden)):
            part.copy_(self.fc2.add_to(part, self.fc1(self.norm2(part))))
        return tokens
