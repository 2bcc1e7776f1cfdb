"""Drawing for synthetic streets: a canvas with colours, label ids and instances, its camera and its brush.

Everything is polygons with whole-pixel corners, divisions and integer random numbers, so that a seed gives the same
bytes everywhere. Distances are in metres: x to the right, z away from the camera, heights above the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

Color = tuple[int, int, int]  # red green blue
NEAR, FAR = 3.0, 90.0  # metres
HAZE_DISTANCE = 110.0


@dataclass
class Canvas:
    """The image so far: colors (H, W, 3) float32 red green blue, ids (H, W) uint8, instances (H, W) uint16."""

    height: int
    width: int
    haze: Color
    colors: np.ndarray = field(init=False)
    ids: np.ndarray = field(init=False)
    instances: np.ndarray = field(init=False)
    counts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.colors = np.zeros((self.height, self.width, 3), np.float32)
        self.ids = np.zeros((self.height, self.width), np.uint8)
        self.instances = np.zeros((self.height, self.width), np.uint16)

    def new_instance(self, label: int) -> int:
        """The next instance id of a class, as Cityscapes numbers them: label id x 1000 + a count."""
        self.counts[label] = self.counts.get(label, -1) + 1
        return label * 1000 + self.counts[label]

    def fill(self, area: Area, colors: np.ndarray | Color, label: int, instance: int = 0, distance: float = 0) -> None:
        """Paints `area` with one colour or with colours (h, w, 3), hazy with distance, and labels it.

        Label 0 paints without labelling.
        """
        rows, columns = area.window
        part = np.asarray(colors, np.float32)
        haze = min(distance / HAZE_DISTANCE, 0.75)
        part = part * np.float32(1 - haze) + np.float32(haze) * np.array(self.haze, np.float32)
        view = self.colors[rows, columns]
        view[area.mask] = part[area.mask] if part.ndim == 3 else part
        if label:
            self.ids[rows, columns][area.mask] = label
            self.instances[rows, columns][area.mask] = instance or label

    def darken(self, area: Area, factor: float) -> None:
        """A shadow: the colours in `area` times a factor; labels stay."""
        rows, columns = area.window
        self.colors[rows, columns][area.mask] *= np.float32(factor)

    def polygon(self, points: Sequence[tuple[float, float]]) -> Area | None:
        """The pixels inside a polygon of (x, y) pixel corners; None where it lies outside the image."""
        limit = 8 * max(self.width, self.height)
        corners = [[max(-limit, min(limit, round(v))) for v in point] for point in points]
        left, top = (max(min(values), 0) for values in zip(*corners, strict=True))
        right, bottom = min(max(x for x, _ in corners), self.width), min(max(y for _, y in corners), self.height)
        if left >= right or top >= bottom:
            return None
        columns, rows = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
        mask = np.zeros((bottom - top, right - left), bool)
        for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if y1 == y2:
                continue
            crossed = (rows > min(y1, y2)) & (rows < max(y1, y2))  # rows that this edge passes: the even-odd rule
            border = x1 + (rows[crossed] - y1) * (x2 - x1) / (y2 - y1)
            mask[crossed] ^= columns[None] < border[:, None]
        return Area((slice(top, bottom), slice(left, right)), mask)

    def ellipse(self, x: float, y: float, across: float, down: float) -> Area | None:
        """The pixels of an ellipse around (x, y) with half-axes `across` and `down`."""
        left, right = max(0, int(x - across)), min(self.width, int(x + across) + 2)
        top, bottom = max(0, int(y - down)), min(self.height, int(y + down) + 2)
        if left >= right or top >= bottom or across <= 0 or down <= 0:
            return None
        dx = (np.arange(left, right) + 0.5 - x) / across
        dy = (np.arange(top, bottom) + 0.5 - y) / down
        return Area((slice(top, bottom), slice(left, right)), dx[None] ** 2 + dy[:, None] ** 2 <= 1)


@dataclass(frozen=True)
class Area:
    """A rectangular window of the canvas and the pixels in it that are meant, a mask of the window's size."""

    window: tuple[slice, slice]
    mask: np.ndarray

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres of the window: x (1, w) and y (h, 1), float64."""
        rows, columns = self.window
        return np.arange(columns.start, columns.stop)[None] + 0.5, np.arange(rows.start, rows.stop)[:, None] + 0.5

    def where(self, chosen: np.ndarray) -> Area:
        """The part of the area where `chosen` (of the window's size) holds."""
        return replace(self, mask=self.mask & chosen)


@dataclass(frozen=True)
class Camera:
    """A pinhole above the ground: the vanishing point in pixels, the focal length in pixels, the height in metres."""

    x: float
    horizon: float
    focal: float
    height: float

    def point(self, x: float, z: float, up: float = 0) -> tuple[float, float]:
        """The pixel of a point in space."""
        return self.x + self.focal * x / z, self.horizon + self.focal * (self.height - up) / z

    def scale(self, z: float) -> float:
        """Pixels per metre at a distance."""
        return self.focal / z

    def ground(self, area: Area) -> tuple[np.ndarray, np.ndarray]:
        """(x, z) in metres of the ground seen in each pixel of an area below the horizon."""
        columns, rows = area.grid()
        z = self.focal * self.height / np.maximum(rows - self.horizon, 0.25)
        return (columns - self.x) * z / self.focal, np.broadcast_to(z, (len(rows), columns.shape[1]))

    def side(self, area: Area, x: float) -> tuple[np.ndarray, np.ndarray]:
        """(z, up) in metres of the upright plane along the street at lateral distance `x`, in each pixel."""
        columns, rows = area.grid()
        offset = (columns - self.x) if x > 0 else (self.x - columns)
        z = self.focal * abs(x) / np.maximum(offset, 0.25)
        return np.broadcast_to(z, (len(rows), columns.shape[1])), self.height - (rows - self.horizon) * z / self.focal


def grain(rng: np.random.RandomState, shape: tuple[int, int], cell: int, amplitude: int) -> np.ndarray:
    """(h, w) float32: random squares of `cell` pixels, brighter or darker by up to `amplitude`."""
    height, width = shape
    coarse = rng.randint(-amplitude, amplitude + 1, (height // cell + 1, width // cell + 1))
    return np.repeat(np.repeat(coarse, cell, axis=0), cell, axis=1)[:height, :width].astype(np.float32)


def varied(rng: np.random.RandomState, color: Color, spread: int = 18) -> Color:
    """A colour near `color`: lighter or darker as a whole by up to `spread`, and a little off in each channel."""
    shift, channels = int(rng.randint(-spread, spread + 1)), rng.randint(-spread // 3, spread // 3 + 1, 3)
    red, green, blue = (min(255, max(0, c + shift + int(d))) for c, d in zip(color, channels, strict=True))
    return red, green, blue


def pick(rng: np.random.RandomState, colors: Sequence[Color], spread: int = 18) -> Color:
    """A colour near one of several."""
    return varied(rng, colors[rng.randint(len(colors))], spread)


def shaded(color: Color, by: int) -> Color:
    """A lighter (positive) or darker colour."""
    red, green, blue = (min(255, max(0, c + by)) for c in color)
    return red, green, blue


@dataclass(frozen=True)
class Brush:
    """Draws one upright object in metres around its foot: x to the right, y up."""

    canvas: Canvas
    rng: np.random.RandomState
    foot: tuple[float, float]  # the pixel where the object stands
    scale: float  # pixels per metre
    # label, instance: what its pixels are called
    label: int
    instance: int = 0
    distance: float = 0  # of the object, for the haze
    mirrored: bool = False  # left and right are exchanged

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        return self.foot[0] + (-x if self.mirrored else x) * self.scale, self.foot[1] - y * self.scale

    def _paint(self, area: Area | None, color: Color) -> None:
        """Fills with a light gradient, brighter above, and a little grain."""
        if area is None:
            return
        rows = np.linspace(9, -9, area.mask.shape[0], dtype=np.float32)[:, None]
        tone = rows + grain(self.rng, area.mask.shape, max(1, int(self.scale / 12)), 5)
        self.canvas.fill(area, np.array(color, np.float32) + tone[..., None], self.label, self.instance, self.distance)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """A polygon of corners in metres."""
        self._paint(self.canvas.polygon([self._pixel(x, y) for x, y in points]), color)

    def box(self, left: float, bottom: float, right: float, top: float, color: Color) -> None:
        """An upright rectangle."""
        self.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """A disc."""
        px, py = self._pixel(x, y)
        self._paint(self.canvas.ellipse(px, py, max(radius * self.scale, 0.8), radius * self.scale), color)

    def ring(self, x: float, y: float, radius: float, width: float, color: Color) -> None:
        """A ring whose inside shows what is behind, but bears the object's label."""
        px, py = self._pixel(x, y)
        outer = self.canvas.ellipse(px, py, radius * self.scale, radius * self.scale)
        if outer is None:
            return
        columns, rows = outer.grid()
        inner = max((radius - width) * self.scale, 0)
        hole = (columns - px) ** 2 + (rows - py) ** 2 < inner * inner
        rows_of, columns_of = outer.window
        self.canvas.ids[rows_of, columns_of][outer.mask] = self.label
        self.canvas.instances[rows_of, columns_of][outer.mask] = self.instance or self.label
        self._paint(outer.where(~hole), color)

    def shadow(self, half_width: float, depth: float = 0.25) -> None:
        """A soft dark spot on the ground below the object."""
        px, py = self.foot
        for size, factor in ((1.15, 0.86), (0.95, 0.72)):
            spot = self.canvas.ellipse(px, py, half_width * self.scale * size, depth * self.scale * size)
            if spot is not None:
                self.canvas.darken(spot, factor)
