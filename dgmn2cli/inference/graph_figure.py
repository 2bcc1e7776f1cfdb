"""The drawing of an explanation: the two-hop graph on the image, the last block of each stage, every block in small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dgmn2cli.errors import printable
from dgmn2cli.model.graph import BlockGraph, Node

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

INK, FAINT, OUTSIDE = "#1d2126", "#646b73", "#2b2f33"
# one colour per head, told apart by colour-blind eyes as well; bright, since the image below is dimmed
HEADS = ("#ffb000", "#35c4ff", "#ff5d8f", "#7be35b", "#c08bff", "#ff8a3c", "#3de0c0", "#fff176")
WIDTH, EDGE, GAP = 1600, 36, 22  # pixels
MAIN, STAGE, STRIP, SMALL = 600, 365, 58, 142  # heights of the rows' panels
PARTS = ("weight", "content", "position")
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
    from matplotlib.figure import Figure

    last = {block.stage: block for block in blocks}
    rows = -(-len(blocks) // PER_ROW)
    tops = np.cumsum([EDGE + 64, MAIN + 76, STAGE + 14, 3 * (STRIP + 8) + 50])
    height = int(tops[-1]) + rows * (SMALL + 26) + EDGE
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100)
    page = _Page(figure, height, dimmed(image), at)
    page.text(EDGE, EDGE + 4, title, size=17, weight="bold")
    page.text(EDGE, EDGE + 32, subtitle, size=10, color=FAINT)
    page.overview(int(tops[0]), blocks[-1], window)
    page.stages(int(tops[1]), int(tops[2]), list(last.values()))
    page.text(EDGE, int(tops[3]) - 24, f"All {len(blocks)} blocks at one scale", size=11, weight="bold")
    page.every_block(int(tops[3]), blocks)
    return figure


def dimmed(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, red green blue: half of its colour and light, so that what is drawn on it stands out."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), 0.33, gray, 0.27, 0)


class _Page:
    """A figure whose parts are placed in pixels from its upper left corner."""

    def __init__(self, figure: Figure, height: int, image: np.ndarray, at: tuple[float, float]) -> None:
        self.figure, self.height, self.image, self.at = figure, height, image, at

    def text(self, x: float, y: float, text: str, size: float, weight: str = "normal", color: str = INK) -> None:
        """A line of text, its upper left corner at (x, y)."""
        place = (x / WIDTH, 1 - y / self.height)
        self.figure.text(*place, printable(text), size=size, weight=weight, color=color, va="top")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """An empty drawing area."""
        rectangle = (x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(rectangle)
        axes.set(xticks=[], yticks=[], facecolor=OUTSIDE)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return axes

    def panel(self, x: float, y: float, width: float, height: float, view: View) -> Axes:
        """A part of the image."""
        axes = self.axes(x, y, width, height)
        self._show(axes, view, width, height)
        axes.set_xlim(view[0], view[1])
        axes.set_ylim(view[2], view[3])
        return axes

    def _show(self, axes: Axes, view: View, width: float, height: float) -> None:
        """The image's pixels within `view`, no finer than they are drawn."""
        rows, columns = self.image.shape[:2]
        left, top = max(int(view[0]), 0), max(int(view[3]), 0)
        right, bottom = min(int(view[1]) + 2, columns), min(int(view[2]) + 2, rows)
        if left >= right or top >= bottom:
            return
        part = self.image[top:bottom, left:right]
        fine = (
            max((right - left) / (view[1] - view[0]) * width, 1),
            max((bottom - top) / (view[2] - view[3]) * height, 1),
        )
        if fine[0] < part.shape[1] and fine[1] < part.shape[0]:
            part = cv2.resize(part, (round(fine[0]), round(fine[1])), interpolation=cv2.INTER_AREA)
        extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
        axes.imshow(part, extent=extent, aspect="auto", interpolation="nearest")

    def overview(self, top: int, block: BlockGraph, window: tuple[float, float, float, float]) -> None:
        """The whole image with the window, and beside it the two-hop graph of a block."""
        rows, columns = self.image.shape[:2]
        room = WIDTH - 2 * EDGE - GAP - MAIN
        scale = min(room / columns, MAIN / rows)
        whole = (-0.5, columns - 0.5, rows - 0.5, -0.5)
        axes = self.panel(EDGE, top, columns * scale, rows * scale, whole)
        axes.add_patch(_rectangle((window[0] - 0.5, window[1] - 0.5), *window[2:], "white", "--"))
        hops = [node for hop in block.hops for head in hop.heads for node in head]
        close = _view([*(node for head in block.heads for node in head.nodes), *hops], (block.x, block.y))
        axes.add_patch(_rectangle((close[0], close[3]), close[1] - close[0], close[2] - close[3], HEADS[0]))
        self._cross(axes, 9)
        about = "Dashed: the window. Framed: what is on the right. Edges start at the cell of the map nearest to the +."
        self.text(EDGE, top + rows * scale + 8, about, 9, color=FAINT)

        axes = self.panel(WIDTH - EDGE - MAIN, top, MAIN, MAIN, close)
        _far_edges(axes, block)
        self._block(axes, block, 1.0)
        where = f"stage {block.stage}, block {block.block}"
        about = f"Colour: nodes of {where}. White: their own nodes, in the block before."
        self.text(WIDTH - EDGE - MAIN, top + MAIN + 8, about, 9, color=FAINT)

    def stages(self, top: int, below: int, blocks: Sequence[BlockGraph]) -> None:
        """The last block of each stage, and what its weights are made of."""
        width = (WIDTH - 2 * EDGE - 3 * GAP) / 4
        for index, block in enumerate(blocks):
            left = EDGE + index * (width + GAP)
            many = f"{len(block.heads)} head{'s' * (len(block.heads) > 1)}, stride {block.stride}"
            self.text(left, top - 24, f"Stage {block.stage}, block {block.block}", size=11, weight="bold")
            self.text(left + 164, top - 22, many, 9, color=FAINT)
            view = _view([node for head in block.heads for node in head.nodes], (block.x, block.y))
            self._block(self.panel(left, top, width, STAGE, view), block, 1.0)
            values = {
                "weight": [[node[2] for node in head.nodes] for head in block.heads],
                "content": [head.content for head in block.heads],
                "position": [head.position for head in block.heads],
            }
            for row, part in enumerate(PARTS):
                self._strip(left, below + row * (STRIP + 8), width, part, np.array(values[part]))

    def _strip(self, left: float, top: float, width: float, part: str, values: np.ndarray) -> None:
        """(h, 9) numbers as a strip of cells, a row for each head."""
        self.text(left, top, part, size=8.5, color=FAINT)
        low, high = float(values.min()), float(values.max())
        self.text(left, top + 16, f"{low:.2f} to {high:.2f}", size=7.5, color=FAINT)
        axes = self.axes(left + 84, top, width - 84, STRIP)
        if part == "weight":
            axes.imshow(values, cmap="magma", vmin=0, vmax=max(high, 1e-9), aspect="auto", interpolation="nearest")
        else:
            most = max(abs(low), abs(high), 1e-9)
            axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        for row in range(len(values)):
            axes.plot(
                [-0.68], [row], "s", color=HEADS[row % len(HEADS)], markersize=3.2, clip_on=False, markeredgewidth=0
            )
        axes.set_xlim(-0.9, 8.5)

    def every_block(self, top: int, blocks: Sequence[BlockGraph]) -> None:
        """All blocks, around the position at one scale."""
        view = _view([node for block in blocks for head in block.heads for node in head.nodes], self.at)
        width = (WIDTH - 2 * EDGE - (PER_ROW - 1) * 10) / PER_ROW
        for index, block in enumerate(blocks):
            left, y = EDGE + index % PER_ROW * (width + 10), top + index // PER_ROW * (SMALL + 26)
            self._block(self.panel(left, y, width, SMALL, view), block, 0.3)
            self.text(left, y + SMALL + 3, f"{block.stage}.{block.block}", size=8, color=FAINT)

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
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=width, zorder=2))


def _rectangle(corner: tuple[float, float], width: float, height: float, color: str, line: str = "-") -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor="none", edgecolor=color, linestyle=line)
