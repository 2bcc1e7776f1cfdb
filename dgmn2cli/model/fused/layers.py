"""The layers an inference form is made of: folded, prepacked for the CPU's matrix units, fused with what follows.

Prepacked weights and fused activations are oneDNN's, through the operators PyTorch's own compiler emits for frozen
weights. Where they are absent (another device, another build) the same numbers come from PyTorch's plain layers.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.model.attention import SAMPLES, AttentionOp, DynamicGraphAttention
from dgmn2cli.model.backbone import Block
from dgmn2cli.model.fused.lanes import side_by_side, spans
from dgmn2cli.ops import resample_table
from dgmn2cli.ops.resample import resize_rows
from dgmn2cli.ops.upsampled import TAPS, can_convolve, convolve_upsampled

LOGGER = logging.getLogger("dgmn2cli")
PACKED_DTYPES = (torch.float32, torch.bfloat16)
CHUNK_ELEMENTS = 1 << 19  # hidden activations of an MLP kept at a time, so that they stay in the cache
BAND_ELEMENTS = 1 << 22  # resized features computed at a time where a convolution follows
SHARED_ROWS = 128  # of a map that threads share: each part takes products of two more rows of the small map
QKV_CHUNK = 1024  # tokens projected to queries, keys and values at a time


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's prepacked operators serve this weight's device and dtype."""
    packable = weight.device.type == "cpu" and weight.dtype in PACKED_DTYPES
    return packable and packing_available(weight.dtype)[0]


def packing_available(dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """Whether this PyTorch's prepacked operators work on the CPU, tried once per process, and why they do not.

    They are private names (`torch.ops.mkldnn`): a release may drop or change them. Then the inference form runs on
    PyTorch's plain layers, slower, with the same results up to rounding; a line in the log says so.
    """
    reason = _packing_fault(dtype)
    return not reason, reason


@lru_cache
def _packing_fault(dtype: torch.dtype) -> str:
    reason = _try_packing(dtype)
    if reason:
        LOGGER.warning("weights are not prepacked (%s): inference on the CPU is slower", reason)
    return reason


def _try_packing(dtype: torch.dtype) -> str:
    """What is wrong with the prepacked operators; empty where they give the plain layers' results."""
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN"
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "oneDNN has no bfloat16 on this CPU"
        linear, conv = nn.Linear(8, 8, device="meta"), nn.Conv2d(8, 8, 1, device="meta")  # no random numbers
        for layer in (linear, conv):
            weight = torch.linspace(-1, 1, 64, device="cpu", dtype=dtype)
            layer.weight, layer.bias = nn.Parameter(weight.view(layer.weight.shape)), nn.Parameter(weight[:8].clone())
        x = torch.ones(1, 8, 2, 2, device="cpu", dtype=dtype)
        with torch.no_grad():
            pairs = (
                (FusedLinear(linear, packed=True), linear, x.flatten(2).mT.contiguous()),
                (FusedConv(conv, packed=True), conv, x),
            )
            wrong = [type(plain).__name__ for fused, plain, given in pairs if not _close(fused(given), plain(given))]
    except (AttributeError, RuntimeError, TypeError) as error:  # no such name, or another signature
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return f"wrong results of {', '.join(wrong)}" if wrong else ""


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours.float(), theirs.float(), atol=0.05 if ours.dtype == torch.bfloat16 else 1e-4)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight `(O, I, kh, kw)` and bias `(O,)` of the one convolution that equals convolution then batch norm."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    if bias is not None:
        shift = shift + bias.double() * factor
    return (weight.double() * factor[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


class _Packed(nn.Module, ABC):
    """A layer whose weight may lie in oneDNN's own layout; copies and pickles carry it in the plain one."""

    packed: bool
    weight: Tensor

    @abstractmethod
    def pack(self, weight: Tensor) -> Tensor:
        """The weight in the layout that the layer computes with."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "weight": self.weight.to_dense() if self.packed else self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = can_pack(self.weight)
        self.weight = self.pack(self.weight)


class FusedLinear(_Packed):
    """A Linear layer with an optional exact GELU, or with a tensor added to its result; `packed` None: where it can."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False, packed: bool | None = None) -> None:
        super().__init__()
        self.inputs = linear.in_features
        self.activation = "gelu" if gelu else "none"
        self.packed = can_pack(linear.weight) if packed is None else packed
        weight = linear.weight.detach()
        self.weight = self.pack(weight)
        self.bias = linear.bias.detach() if linear.bias is not None else None

    def pack(self, weight: Tensor) -> Tensor:
        """`(out, in)` in the layout that is computed with."""
        return torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`(..., in)` to `(..., out)`, plus `residual` of that shape (only without a GELU)."""
        if self.packed and residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        if self.packed:
            algorithm = "none" if self.activation == "gelu" else ""
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], algorithm)
        x = F.linear(x, self.weight, self.bias)
        x = F.gelu(x) if self.activation == "gelu" else x
        return x if residual is None else x + residual


class FusedConv(_Packed):
    """A convolution with its batch norm folded in and an optional ReLU, channels last.

    Args:
        conv: the convolution, any stride and padding.
        norm: batch norm that follows it, if any.
        relu: whether a ReLU follows.
        packed: whether to prepack the weight; None where that can be done.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, *, relu: bool = False, packed: bool | None = None
    ) -> None:
        super().__init__()
        weight = conv.weight.detach()
        bias = conv.bias.detach() if conv.bias is not None else None
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        self.out_channels = conv.out_channels
        self.inputs = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]  # of one output
        self.stride, self.padding, self.relu = list(conv.stride), [int(side) for side in conv.padding], relu
        self.packed = can_pack(weight) if packed is None else packed
        self.weight = self.pack(weight)
        self.bias = bias

    def pack(self, weight: Tensor) -> Tensor:
        """`(O, I, kh, kw)` in the layout that is computed with."""
        if not self.packed:
            return weight.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, [1, 1], 1, [1, weight.shape[1], 64, 64]
        )

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


class ResizedConv(nn.Module):
    """A 3x3 convolution with batch norm and ReLU over a map that is resized first, a few rows at a time.

    Where the map is enlarged on the CPU, the products are taken at its own resolution (`ops.upsampled`).

    Args:
        conv: the convolution, 3x3, stride 1, padding 1.
        norm: batch norm that follows it.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = FusedConv(conv, norm, relu=True)
        weight, _ = fold_batch_norm(conv.weight.detach(), None, norm)
        taps = nn.Linear(conv.in_channels, TAPS * conv.out_channels, bias=False, device="meta")
        taps.weight = nn.Parameter(weight.permute(2, 3, 0, 1).flatten(0, 2))  # (3, 3, O, I) to (9 * O, I)
        self.taps = FusedLinear(taps) if can_pack(weight) else None

    def forward(self, x: Tensor, target: tuple[int, int], then: FusedConv | None = None) -> Tensor:
        """`(B, I, h, w)` resized to `target` (H, W) and convolved.

        Returns:
            `(B, O, H, W)`, channels last; with `then`, a 1x1 convolution, what it makes of these, which are never all
            held.
        """
        last = self.conv if then is None else then
        out = x.new_empty(x.shape[0], *target, last.out_channels)
        images = x.permute(0, 2, 3, 1).contiguous()  # (B, h, w, I); no copy when x is channels last
        if self.taps is None or not can_convolve((x.shape[2], x.shape[3]), target, x.dtype):
            self._fill_plainly(images.permute(0, 3, 1, 2), out, then)
        else:
            bands = spans(target[0]) if target[0] >= SHARED_ROWS else [slice(0, target[0])]
            jobs = [(lines, made, span) for lines, made in zip(images, out, strict=True) for span in bands]
            side_by_side(lambda job: self._fill(job[0], job[1], job[2], then), jobs)
        return out.permute(0, 3, 1, 2)

    def _fill(self, lines: Tensor, out: Tensor, span: slice, then: FusedConv | None) -> None:
        """Rows `span` of one image's result `(H, W, O)`, the products taken on the small map `(h, w, I)`."""
        assert self.taps is not None
        assert self.conv.bias is not None
        first = span.start
        into = out if then is None else None
        target = (out.shape[0], out.shape[1])
        for rows in convolve_upsampled(lines, self.taps, self.conv.bias, target, span=span, into=into):
            if then is not None:
                out[first : first + rows.shape[0]] = then(rows.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            first += rows.shape[0]

    def _fill_plainly(self, x: Tensor, out: Tensor, then: FusedConv | None) -> None:
        _, side, width, _ = out.shape
        step = max(4, BAND_ELEMENTS // (x.shape[0] * x.shape[1] * width))
        for first in range(0, side, step):
            last = min(first + step, side)
            above, below = int(first > 0), int(last < side)  # one row of halo, zeros beyond the map
            band = resize_rows(x, (side, width), slice(first - above, last + below))
            if above and below:
                made = self.conv(band, padding=[0, 1])
            else:
                made = self.conv(band)[:, :, above : above + last - first]
            out[:, first:last] = (made if then is None else then(made)).permute(0, 2, 3, 1)


class FusedBlock(nn.Module):
    """A backbone block for the CPU: same numbers, projections packed, tokens worked on in chunks that fit the cache.

    Queries, keys and values are laid out apart and head by head, so that a head's samples lie close together in memory.

    Args:
        block: the block; `can_pack` holds for its weights.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention: DynamicGraphAttention = block.attn
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.heads, self.backend = attention.heads, attention.backend
        self.op = AttentionOp()
        self.qkv = FusedLinear(attention.qkv)
        self.offset = FusedLinear(attention.conv_offset)
        self.proj = FusedLinear(attention.proj)
        self.fc1 = FusedLinear(block.mlp.fc1, gelu=True)
        self.fc2 = FusedLinear(block.mlp.fc2)
        self.chunk = max(256, CHUNK_ELEMENTS // block.mlp.fc1.out_features)
        self.rel_height = attention.pos_emb.rel_height.detach()
        self.rel_width = attention.pos_emb.rel_width.detach()

    def forward(self, tokens: Tensor, size: tuple[int, int], scratch: Tensor) -> None:
        """Works on `tokens`, `(B, N, C)` contiguous, in place.

        Args:
            tokens: the block's input, then its output.
            size: (H, W) of the map, N = H * W.
            scratch: at least `3 * tokens.numel()` numbers to work in; what they hold does not matter.
        """
        batch, count, channels = tokens.shape
        heads, depth = self.heads, channels // self.heads
        rows = tokens.view(-1, channels)  # (B*N, C)
        qkv = scratch[: 3 * tokens.numel()].view(heads, 3, -1, depth)  # (h, 3, B*N, d)
        offset = tokens.new_empty(rows.shape[0], heads, 2 * SAMPLES)

        def project(part: slice) -> None:
            normed = self.norm1(rows[part])
            qkv[:, :, part] = self.qkv(normed).view(-1, 3, heads, depth).permute(2, 1, 0, 3)
            offset[part] = self.offset(normed.view(-1, heads, depth))

        side_by_side(project, spans(rows.shape[0], QKV_CHUNK))
        mixed = self.op(
            qkv.view(heads, 3, batch, count, depth).permute(2, 3, 1, 0, 4),
            offset.view(batch, count, heads, 2 * SAMPLES),
            resample_table(self.rel_height, size[0]),
            resample_table(self.rel_width, size[1]),
            size,
            self.backend,
        )
        updates = mixed.view(-1, channels)

        def finish(part: slice) -> None:
            attended = self.proj(updates[part], rows[part])
            rows[part] = self.fc2(self.fc1(self.norm2(attended)), attended)

        side_by_side(finish, spans(rows.shape[0], self.chunk))
