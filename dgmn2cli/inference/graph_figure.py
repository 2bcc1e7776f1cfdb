"""The drawing of an explanation: the two-hop graph on the image, the last block of each stage, every block in small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dgmn2cli.errors import printable
from dgmn2cli.model.graph import BlockGraph, Node
from dgmn2cli.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FAINT, OUTSIDE = "#646b73", "#2b2f33"
# one colour per head, told apart by colour-blind eyes as well; bright, since the image below is dimmed
HEADS = ("#ffb000", "#35c4ff", "#ff5d8f", "#7be35b", "#c08bff", "#ff8a3c", "#3de0c0", "#fff176")
LARGEST_NODE = 420.0  # area of a node that has all the weight, in square points
SMALLEST_SIDE = 24.0  # of what a panel shows, in pixels of the image
FAR_EDGES = 150  # edges of the second hop that are drawn
PER_ROW = 10  # blocks in small, side by side
View = tuple[float, float, float, float]  # left, right, bottom, top in pixels of the image


def graph_figure(
    image: np.ndarray,
    at: tuple[float, float],
    window: tuple[float, float, float, float],
    blocks: Sequence[BlockGraph],
    title: str,
    subtitle: str,
) -> Figure:
    """Draws what attends to what; call it within `plotting.drawing()`.

    Args:
        image: (H, W, 3) uint8, blue green red.
        at: the position (x, y), in pixels of the image, 0 being the centre of the first one.
        window: x, y, width and height of the window, from the outer edge of its first pixel.
    """
    rows = -(-len(blocks) // PER_ROW)
    heights = 6.9, 5.7, 0.35 + 1.75 * rows
    figure = new_figure(16, sum(heights) + 0.4, title)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    page = _Page(dimmed(image), at)
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    for part, text in zip(parts, (subtitle, "The last block of each stage", "All blocks at one scale"), strict=True):
        part.suptitle(printable(text), x=0.005, ha="left", size=10, color=FAINT)
    page.overview(parts[0], blocks[-1], window)
    page.stages(parts[1], list({block.stage: block for block in blocks}.values()))
    page.every_block(parts[2], rows, blocks)
    return figure


def dimmed(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, red green blue: half of its colour and light, so that what is drawn on it stands out."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), 0.33, gray, 0.27, 0)


class _Page:
    """What all parts of the drawing share: the dimmed image and the position on it."""

    def __init__(self, image: np.ndarray, at: tuple[float, float]) -> None:
        self.image, self.at = image, at

    def overview(self, part: SubFigure, block: BlockGraph, window: tuple[float, float, float, float]) -> None:
        """The whole image with the window, and beside it the two-hop graph of a block."""
        from matplotlib.patches import Rectangle

        rows, columns = self.image.shape[:2]
        whole, near = part.subplots(1, 2, width_ratios=(3, 2))
        hops = [node for hop in block.hops for head in hop.heads for node in head]
        close = _view([*(node for head in block.heads for node in head.nodes), *hops], (block.x, block.y))
        self._panel(whole, (-0.5, columns - 0.5, rows - 0.5, -0.5))
        corner, close_corner = (window[0] - 0.5, window[1] - 0.5), (close[0], close[3])
        sides = close[1] - close[0], close[2] - close[3]
        whole.add_patch(Rectangle(corner, *window[2:], facecolor="none", edgecolor="white", linestyle="--"))
        whole.add_patch(Rectangle(close_corner, *sides, facecolor="none", edgecolor=HEADS[0]))
        self._cross(whole, 9)
        _caption(
            whole,
            "Dashed: the window. Framed: what is on the right. Edges start at the cell of the map nearest to the +.",
        )
        self._panel(near, close)
        _far_edges(near, block)
        self._block(near, block, 1.0)
        where = f"stage {block.stage}, block {block.block}"
        _caption(near, f"Colour: nodes of {where}. White: their own nodes, in the block before.")

    def stages(self, part: SubFigure, blocks: Sequence[BlockGraph]) -> None:
        """The last block of each stage, and what its weights are made of."""
        grid = part.subplots(4, len(blocks), height_ratios=(5, 1, 1, 1), squeeze=False)
        for block, (panel, *strips) in zip(blocks, grid.T, strict=True):
            many = f"{len(block.heads)} head{'s' * (len(block.heads) > 1)}, stride {block.stride}"
            panel.set_title(f"Stage {block.stage}, block {block.block}: {many}")
            self._panel(panel, _view([node for head in block.heads for node in head.nodes], (block.x, block.y)))
            self._block(panel, block, 1.0)
            _strip(strips[0], "weight", [[node[2] for node in head.nodes] for head in block.heads])
            _strip(strips[1], "content", [head.content for head in block.heads])
            _strip(strips[2], "position", [head.position for head in block.heads])

    def every_block(self, part: SubFigure, rows: int, blocks: Sequence[BlockGraph]) -> None:
        """All blocks, around the position at one scale."""
        view = _view([node for block in blocks for head in block.heads for node in head.nodes], self.at)
        panels = part.subplots(rows, PER_ROW, squeeze=False).ravel()
        for panel in panels[len(blocks) :]:
            panel.set_axis_off()
        for panel, block in zip(panels, blocks, strict=False):
            self._panel(panel, view)
            self._block(panel, block, 0.3)
            _caption(panel, f"{block.stage}.{block.block}")

    def _panel(self, axes: Axes, view: View) -> None:
        """A part of the image."""
        _bare(axes)
        axes.set_anchor("NW")
        axes.imshow(self.image)
        axes.set(xlim=view[:2], ylim=view[2:])

    def _block(self, axes: Axes, block: BlockGraph, scale: float) -> None:
        """A block's nodes with their edges, a colour for each head; `scale`: of areas and lines."""
        for index, head in enumerate(block.heads):
            color = HEADS[index % len(HEADS)]
            _edges(axes, (block.x, block.y), head.nodes, color, 1.0, 1.6 * scale**0.5)
            _nodes(axes, head.nodes, color, LARGEST_NODE * scale, edge=scale == 1)
        self._cross(axes, 11 * scale**0.5)

    def _cross(self, axes: Axes, size: float) -> None:
        axes.plot(*[[value] for value in self.at], "+", color="black", markersize=size + 2, markeredgewidth=3.2)
        axes.plot(*[[value] for value in self.at], "+", color="white", markersize=size, markeredgewidth=1.5)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[], facecolor=OUTSIDE)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _caption(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, loc="left", size=9, color=FAINT)


def _strip(axes: Axes, part: str, numbers: Sequence[Sequence[float]]) -> None:
    """(h, 9) numbers as a strip of cells, a row for each head."""
    _bare(axes)
    values = np.array(numbers)
    low, high = float(values.min()), float(values.max())
    most = max(abs(low), abs(high), 1e-9)
    colors, least = ("magma", 0.0) if part == "weight" else ("RdBu_r", -most)
    axes.imshow(values, cmap=colors, vmin=least, vmax=most, aspect="auto", interpolation="nearest")
    axes.scatter([-0.7] * len(values), range(len(values)), s=9, c=[HEADS[i % len(HEADS)] for i in range(len(values))])
    axes.set_xlim(-0.9, 8.5)
    text = f"{part}\n{low:.2f} to {high:.2f}"
    axes.set_ylabel(text, rotation=0, ha="left", va="center", labelpad=72, size=8, color=FAINT)


def _view(nodes: Sequence[Node], centre: tuple[float, float]) -> View:
    """A square around a position that shows the nodes, but for a few far ones."""
    far = np.array([max(abs(x - centre[0]), abs(y - centre[1])) for x, y, _ in nodes])
    half = max(1.12 * float(np.quantile(far, 0.98)), SMALLEST_SIDE / 2)
    return centre[0] - half, centre[0] + half, centre[1] + half, centre[1] - half


def _far_edges(axes: Axes, block: BlockGraph) -> None:
    """The nodes' own nodes, by what they weigh after two hops; edges of the heaviest only, or nothing would be seen."""
    hops = block.second_hop()
    if not hops:
        return
    heaviest = hops[0][1][2]
    for start, node in hops[:FAR_EDGES]:
        _edges(axes, start, [node], "white", 0.5 / heaviest)
    _nodes(axes, [(x, y, weight / heaviest) for _, (x, y, weight) in hops], "white", LARGEST_NODE / 12, edge=False)


def _nodes(axes: Axes, nodes: Sequence[Node], color: str, area: float, *, edge: bool) -> None:
    x, y, weight = np.array(nodes).reshape(-1, 3).T
    sizes = np.maximum(area * weight, 2)
    axes.scatter(x, y, s=sizes, c=color, alpha=0.85, linewidths=0.7 if edge else 0, edgecolors="black", zorder=3)


def _edges(
    axes: Axes, start: tuple[float, float], nodes: Iterable[Node], color: str, strength: float, width: float = 0.8
) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    lines = [[start, (x, y)] for x, y, _ in nodes]
    colors = [to_rgba(color, min(0.12 + 1.6 * strength * weight, 0.9)) for _, _, weight in nodes]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=width, zorder=2), autolim=False)
