"""Dynamic graph message passing attention: projections around the fused deformable op (arXiv 2209.09760)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgmn2cli.ops import deform_attention, resample_table

HEAD_WIDTH = 64
SAMPLES = 9
TABLE_MARGIN = 8  # rows a table holds beyond the side length of the map it serves


class RelativePositionTables(nn.Module):
    """The learned relative position tables of one attention layer, `(rows, head width)` each.

    They are resampled to the map in use, so one checkpoint serves every image size.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rel_height = nn.Parameter(nn.init.normal_(torch.empty(rows, width), std=width**-0.5))
        self.rel_width = nn.Parameter(nn.init.normal_(torch.empty(rows, width), std=width**-0.5))


class AttentionOp(nn.Module):
    """The op as a module without parameters: a forward hook on it sees what any form of the network samples from."""

    def forward(
        self,
        qkv: Tensor,
        offset: Tensor,
        height_table: Tensor,
        width_table: Tensor,
        size: tuple[int, int],
        backend: str,
    ) -> Tensor:
        """As `ops.deform_attention`."""
        return deform_attention(qkv, offset, height_table, width_table, size, backend)


class DynamicGraphAttention(nn.Module):
    """Each query position attends, per head, to 9 neighbours at learned offsets.

    Args:
        channels: C, a multiple of the number of heads.
        heads: number of attention heads h; the head width is d = C / h.
        table_rows: rows of the stored relative position tables.
    """

    def __init__(self, channels: int, heads: int, table_rows: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads})")
        self.heads = heads
        self.backend = "auto"
        self.op = AttentionOp()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.conv_offset = nn.Linear(channels // heads, 2 * SAMPLES)  # a Linear; the name is the checkpoints'
        self.pos_emb = RelativePositionTables(table_rows, channels // heads)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Attention over one map, `(B, N, C)`.

        Args:
            tokens: `(B, N, C)` float, N = H * W in row-major order, already normed.
            size: `(H, W)` of the map.
        """
        batch, count, channels = tokens.shape
        height, width = size
        # offsets come from the normed input, not from q; both are read in place by the op
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, channels // self.heads)
        offset = self.conv_offset(tokens.view(batch, count, self.heads, channels // self.heads))
        mixed = self.op(
            qkv,
            offset,
            resample_table(self.pos_emb.rel_height, height),
            resample_table(self.pos_emb.rel_width, width),
            size,
            self.backend,
        )
        return self.proj(mixed)


def use_backend(model: nn.Module, backend: str) -> None:
    """Makes every attention layer of `model` run on the named op backend."""
    for module in model.modules():
        if isinstance(module, DynamicGraphAttention):
            module.backend = backend
