"""The graph that a network's attention makes at one position: its nodes in every block, and the nodes of those nodes.

What is recorded is what the network used: the tensors that its attention op was given while it ran, in whatever form
it ran (published or fused). Nodes, logits and weights of single positions are then taken from the op's definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgmn2cli.model.attention import AttentionOp
from dgmn2cli.model.backbone import CHANNELS
from dgmn2cli.ops.reference import Neighbours, neighbours

Node = tuple[float, float, float]  # x, y, weight
Cell = tuple[int, int]  # row, column
Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class HeadGraph:
    """What one head attends to."""

    nodes: tuple[Node, ...]  # nine `(x, y, weight)`; the weights sum to 1. A node beyond the map counts as zeros.
    # content, position: nine each, the two parts of the logits whose softmax the weights are
    content: tuple[float, ...]
    position: tuple[float, ...]


@dataclass(frozen=True)
class HopGraph:
    """A cell of the map that nodes of a block fall into, and what that cell attended to in the block before."""

    # x, y: its centre
    x: float
    y: float
    weight: float  # the weights of the nodes nearest to it, summed, the mean over the block's heads
    heads: tuple[tuple[Node, ...], ...]  # nine `(x, y, weight)` for each head of the block before


@dataclass(frozen=True)
class BlockGraph:
    """One block at one position."""

    # stage, block: counted from 1
    stage: int
    block: int
    map: tuple[int, int]  # (width, height) of the map
    stride: int  # pixels of the window from one cell of the map to the next
    # x, y: the cell nearest to the position
    x: float
    y: float
    heads: tuple[HeadGraph, ...]  # what each head attends to
    hops: tuple[HopGraph, ...]  # the nodes of the nodes, in the block before; none in the network's first block

    def second_hop(self) -> list[tuple[tuple[float, float], Node]]:
        """The nodes of the nodes, each with the cell (x, y) it belongs to, by what they weigh after two hops."""
        edges = [
            ((hop.x, hop.y), (x, y, hop.weight * weight / len(hop.heads)))
            for hop in self.hops
            for head in hop.heads
            for x, y, weight in head
        ]
        return sorted(edges, key=lambda edge: -edge[1][2])


@contextmanager
def recorded(
    network: nn.Module, window: tuple[int, int], x: float, y: float, place: Place = lambda x, y: (x, y)
) -> Iterator[list[BlockGraph]]:
    """While the block runs, every attention layer of `network` adds what it does at one position, in their order.

    Args:
        network: runs one window, once.
        window: its (height, width).
        x, y: the position in pixels of the window, 0 being the centre of the first one; the nearest cell of each map is
            looked at.
        place: of such a position, the coordinates that the graphs have.
    """
    recorder = _Recorder(window, x, y, place)
    ops = [module for module in network.modules() if isinstance(module, AttentionOp)]
    hooks = [op.register_forward_hook(recorder.take) for op in ops]
    try:
        yield recorder.blocks
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Layer:
    """What an attention op was given, its map's size (height, width) and stride."""

    given: tuple[Tensor, Tensor, Tensor, Tensor]
    size: tuple[int, int]
    stride: int

    def cell(self, x: float, y: float) -> Cell:
        """The cell nearest to a position in pixels of the window."""
        row, column = round(y / self.stride), round(x / self.stride)
        return min(max(row, 0), self.size[0] - 1), min(max(column, 0), self.size[1] - 1)

    def centre(self, cell: Cell) -> tuple[float, float]:
        """(x, y) of a cell in pixels of the window."""
        return float(cell[1] * self.stride), float(cell[0] * self.stride)

    def look(self, cells: Sequence[Cell]) -> Neighbours:
        """What these cells attend to."""
        numbers = torch.tensor([row * self.size[1] + column for row, column in cells], device=self.given[0].device)
        return neighbours(*self.given, self.size, numbers)


class _Recorder:
    """Collects what attention ops are given, one after the other."""

    def __init__(self, window: tuple[int, int], x: float, y: float, place: Place) -> None:
        self.window, self.x, self.y, self.place = window, x, y, place
        self.blocks: list[BlockGraph] = []
        self.before: _Layer | None = None

    def take(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        """A forward hook of the op; its inputs may be overwritten later, so what the next block needs is copied."""
        qkv, offset, height_table, width_table, size, _ = given
        layer = _Layer((qkv, offset, height_table, width_table), size, self._stride(size))
        stage = CHANNELS.index(qkv.shape[3] * qkv.shape[4]) + 1
        block = 1 + sum(found.stage == stage for found in self.blocks)
        cell = layer.cell(self.x, self.y)
        found = layer.look([cell])
        heads = [
            HeadGraph(nodes, content, position)
            for nodes, content, position in zip(
                self._nodes(layer, found, 0), _rows(found.content), _rows(found.position), strict=True
            )
        ]
        hops = self._hops(layer, found, self.before) if self.before is not None else ()
        at = self.place(*layer.centre(cell))
        self.blocks.append(BlockGraph(stage, block, (size[1], size[0]), layer.stride, *at, tuple(heads), hops))
        self.before = _Layer((qkv.clone(), offset.clone(), height_table, width_table), size, layer.stride)

    def _stride(self, size: tuple[int, int]) -> int:
        """A map of stride s has (side - 1) // s + 1 cells along a side, and s is a power of two."""
        side, cells = max(zip(self.window, size, strict=True))
        return 1 << max((side - 1) // max(cells - 1, 1), 1).bit_length() - 1

    def _nodes(self, layer: _Layer, found: Neighbours, index: int) -> list[tuple[Node, ...]]:
        """The nodes of each head of cell `index` among those that were looked at."""
        weights = (found.content.double() + found.position.double()).softmax(3)
        parts = [values[0, :, index].double().tolist() for values in (found.x, found.y, weights)]
        return [
            tuple((*self.place(x * layer.stride, y * layer.stride), weight) for x, y, weight in zip(*head, strict=True))
            for head in zip(*parts, strict=True)
        ]

    def _hops(self, layer: _Layer, found: Neighbours, before: _Layer) -> tuple[HopGraph, ...]:
        """The cells that the nodes are nearest to, and their own nodes; nodes beyond the map have none."""
        (height, width), heads = layer.size, found.x.shape[1]
        x, y, weights = (values.flatten().tolist() for values in (found.x, found.y, found.weights))
        shares: dict[Cell, float] = {}
        for right, down, weight in zip(x, y, weights, strict=True):
            if -1 < right < width and -1 < down < height:
                cell = layer.cell(right * layer.stride, down * layer.stride)
                shares[cell] = shares.get(cell, 0.0) + weight / heads
        if not shares:
            return ()
        centres = [layer.centre(cell) for cell in shares]
        own = before.look([before.cell(*centre) for centre in centres])
        return tuple(
            HopGraph(*self.place(*centre), share, tuple(self._nodes(before, own, index)))
            for index, (centre, share) in enumerate(zip(centres, shares.values(), strict=True))
        )


def _rows(values: Tensor) -> list[tuple[float, ...]]:
    """Nine numbers of each head of the only cell, `(1, h, 1, 9)`."""
    return [tuple(row) for row in values[0, :, 0].double().tolist()]
