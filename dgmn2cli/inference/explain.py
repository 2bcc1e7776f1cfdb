"""Why a position got its class: the nodes that every block and head attended to, in coordinates of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from dgmn2cli.errors import ConfigError
from dgmn2cli.files import atomic_write, to_json
from dgmn2cli.inference.graph_figure import graph_figure
from dgmn2cli.inference.sliding_window import LogitsFunction, View, Windowing, require_finite, stack_windows
from dgmn2cli.model.attention import AttentionOp
from dgmn2cli.model.graph import BlockGraph, recorded
from dgmn2cli.notebook import image_html
from dgmn2cli.plotting import drawing, rendered
from dgmn2cli.zoo import short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "json")
Box = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Window:
    """The window that was looked into."""

    # number, count: which of the image's windows, from 1
    number: int
    count: int
    # x, y, width, height: what it covers, in pixels of the image, from the outer edge of its first pixel
    x: float
    y: float
    width: float
    height: float
    size: tuple[int, int]  # (width, height) as the network saw it


@dataclass(frozen=True)
class Explanation:
    """The graph of one position of an image; notebooks show it as an image.

    Positions are in pixels of the image, 0 being the centre of the first one; nodes may lie outside it.

    Attributes:
        model: the network's name.
        x, y: the position that was asked for.
        window: the window whose centre is nearest to it.
        predicted, confidence: the class that this window alone gives the position, and its probability.
        blocks: the network's blocks in order.
        image: (H, W, 3) uint8, blue green red.
    """

    model: str
    x: float
    y: float
    window: Window
    predicted: str
    confidence: float
    blocks: tuple[BlockGraph, ...] = field(repr=False)
    image: np.ndarray = field(repr=False, metadata={"json": False})

    def render(self, kind: str = "png") -> bytes:
        """The graph drawn on the image, as the bytes of a `png` or `svg` file."""
        with drawing():
            return rendered(self.figure(), kind)

    def figure(self) -> Figure:
        """The drawing as a matplotlib figure; call it within `plotting.drawing()`."""
        seen = self.window
        what = f"what {short_name(self.model)} attends to at {self.x:g}, {self.y:g}"
        title = f"{self.predicted}, {100 * self.confidence:.1f} %: {what}"
        subtitle = (
            f"Window {seen.number} of {seen.count}, {seen.size[0]} x {seen.size[1]}, single scale, not mirrored. "
            "Each head (a colour) attends to nine nodes; the area of a node is its weight, "
            "the softmax of its content and position logits."
        )
        window = seen.x, seen.y, seen.width, seen.height
        return graph_figure(self.image, (self.x, self.y), window, self.blocks, title, subtitle)

    def save(self, folder: str | Path, stem: str, kinds: Sequence[str] = FORMATS) -> dict[str, Path]:
        """Writes `STEM_graph.png`, `.svg` and `.json`, each whole or not at all.

        Raises:
            ResourceError: a file cannot be written.
        """
        paths = {kind: graph_path(folder, stem, kind) for kind in kinds}
        for kind, path in paths.items():
            atomic_write(path, to_json(self) + "\n" if kind == "json" else self.render(kind))
        return paths

    @cached_property
    def _png(self) -> bytes:
        return self.render("png")

    def _repr_png_(self) -> bytes:
        return self._png

    def _repr_html_(self) -> str:
        return image_html(self._png, f"{self.predicted} at {self.x:g}, {self.y:g}")


def graph_path(folder: str | Path, stem: str, kind: str) -> Path:
    """Where `Explanation.save` puts the file of `kind`."""
    return Path(folder, f"{stem}_graph.{kind}")


def explain(
    network: nn.Module,
    logits: LogitsFunction,
    view: View,
    windowing: Windowing,
    at: tuple[float, float],
    image: np.ndarray,
) -> tuple[Window, Tensor, tuple[BlockGraph, ...]]:
    """Runs the window whose centre is nearest to a position, and looks at what the network attends to there.

    Args:
        network: whose attention layers are looked at; `logits` runs it.
        view: the image as the test procedure sees it.
        at: (x, y) in pixels of the image, (H, W, 3).

    Returns:
        The window, the probabilities (C,) of the classes there, the blocks in order.

    Raises:
        ConfigError: a position outside the image, or a network whose attention cannot be looked at.
        NonFiniteError: the network gave NaN or infinity.
    """
    require_explicable(network)
    require_inside(at, image)
    scale = image.shape[1] / view.size[1], image.shape[0] / view.size[0]
    inner = (at[0] + 0.5) / scale[0] - 0.5, (at[1] + 0.5) / scale[1] - 0.5
    boxes = windowing.boxes(*view.size)
    number = min(range(len(boxes)), key=lambda index: _distance(boxes[index], inner))
    rows, columns = boxes[number]

    def place(x: float, y: float) -> tuple[float, float]:
        """In pixels of the image, of a position in pixels of the window."""
        return (x + columns.start + 0.5) * scale[0] - 0.5, (y + rows.start + 0.5) * scale[1] - 0.5

    pixels = stack_windows(view.open(), view.size, [boxes[number]], windowing)
    x, y = inner[0] - columns.start, inner[1] - rows.start
    with recorded(network, (pixels.shape[2], pixels.shape[3]), x, y, place) as blocks:
        scores = logits(pixels)[0]
    require_finite(scores)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    chances = scores[:, min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)].softmax(0)
    covered = columns.start * scale[0], rows.start * scale[1], width * scale[0], height * scale[1]
    return Window(number + 1, len(boxes), *covered, (width, height)), chances, tuple(blocks)


def require_inside(at: tuple[float, float], image: np.ndarray) -> None:
    """Raises ConfigError where a position (x, y) is none of the image's."""
    height, width = image.shape[:2]
    if not (-0.5 <= at[0] <= width - 0.5 and -0.5 <= at[1] <= height - 0.5):
        why = f"x is {at[0]:g} and y is {at[1]:g}, wanted 0 to {width - 1} and 0 to {height - 1}"
        raise ConfigError("the position lies outside the image", why=why, hint="Give it in pixels: --at X,Y.")


def require_explicable(network: nn.Module) -> None:
    """Raises ConfigError where a network has no attention that could be looked at."""
    what = "the network cannot be explained"
    if not any(isinstance(module, AttentionOp) for module in network.modules()):
        raise ConfigError(what, why="it has no attention layers of ours", hint="Use a DGMN2 model, run by PyTorch.")
    if getattr(network, "_compiled_call_impl", None) is not None:
        raise ConfigError(what, why="it is compiled, which hides its layers", hint="Leave --compile out.")


def _distance(box: Box, at: tuple[float, float]) -> float:
    """From a window's centre to a position (x, y), squared."""
    rows, columns = box
    across, down = (columns.start + columns.stop - 1) / 2 - at[0], (rows.start + rows.stop - 1) / 2 - at[1]
    return across * across + down * down
