"""Images made worse on purpose, to see what a network withstands: fog, night, blur, noise, JPEG, at five levels.

Fog, blur, noise and JPEG have ImageNet-C's parameters (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261; blur is
the Gaussian blur of its extra set); fog is spread over the whole image, whatever its size. Night is ours.
Draws come from a seed and the image's name: no order and no number of processes changes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

LEVELS = 5
FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # amount, decay from octave to octave
BLUR = (1, 2, 3, 4, 6)  # standard deviation in pixels
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of 0 to 1
JPEG = (25, 18, 15, 10, 7)  # quality
NIGHT = ((0.5, 0.01), (0.35, 0.02), (0.22, 0.03), (0.13, 0.04), (0.07, 0.05))  # light that is left, sensor noise
LAMPS = 30  # what is smaller than the image's smaller side by this may be a lamp
TINT = (1.12, 0.98, 0.84)  # blue, green, red: what is left of the light at night

Draws = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """Kinds with their levels (1 to 5), applied one after the other."""

    steps: tuple[tuple[str, int], ...]  # pairs of kind and level
    seed: int = 0  # of everything random

    def __str__(self) -> str:
        return ",".join(f"{kind}:{level}" for kind, level in self.steps)

    @classmethod
    def parse(cls, text: str) -> Corruption:
        """What `fog:3,noise:1` says.

        Raises:
            ValueError: an unknown kind, or a level that is not 1 to 5.
        """
        steps = []
        for part in text.split(","):
            kind, colon, level = part.strip().partition(":")
            if kind not in KINDS:
                raise ValueError(f"'{kind[:30]}' is none of {', '.join(KINDS)}")
            if not (colon and level.isascii() and level.isdigit() and 1 <= int(level) <= LEVELS):
                raise ValueError(f"the level of {kind} is '{level[:30]}', wanted 1 to {LEVELS}, such as {kind}:3")
            steps.append((kind, int(level)))
        return cls(tuple(steps))

    def __call__(self, image: np.ndarray, name: str) -> np.ndarray:
        """The image (H, W, 3) uint8, blue green red, made worse; `name` is the image's."""
        key = int.from_bytes(
            hashlib.sha256(f"{self.seed} {name}".encode("utf-8", "surrogateescape")).digest()[:8], "big"
        )
        for place, (kind, level) in enumerate(self.steps):
            draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence([key, place])))
            image = KINDS[kind](image, level - 1, draws)
        return image


def _bytes(values: np.ndarray) -> np.ndarray:
    """Values of 0 to 1 as bytes, cut as ImageNet-C cuts them."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _fog(image: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    amount, decay = FOG[level]
    values = image.astype(np.float32) / 255
    brightest = float(values.max())
    values += amount * plasma(image.shape[:2], decay, draws)[:, :, None]
    return _bytes(values * (brightest / (brightest + amount)))


def _night(image: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    """Less and bluer light; small bright things, lamps, keep theirs; a noisy sensor."""
    light, noise = NIGHT[level]
    values = (image.astype(np.float32) / 255) ** 2.2  # to light, as a camera's curve would have it
    bright = values.max(2)
    side = max(3, min(bright.shape) // LAMPS)
    broad = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    lamp = (np.clip((bright - 0.6) / 0.4, 0, 1) * np.clip((bright - broad) / 0.4, 0, 1))[:, :, None]
    seen = (values * (light * np.array(TINT, np.float32) * (1 - lamp) + lamp)).clip(0, 1) ** np.float32(1 / 2.2)
    return _bytes(seen + draws.normal(0, noise, image.shape).astype(np.float32))


def _blur(image: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), BLUR[level], borderType=cv2.BORDER_REPLICATE)


def _noise(image: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    return _bytes(image / 255 + draws.normal(0, NOISE[level], image.shape))


def _jpeg(image: np.ndarray, level: int, draws: Draws) -> np.ndarray:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG[level]])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None  # what was encoded just now
    return decoded


KINDS: dict[str, Callable[[np.ndarray, int, Draws], np.ndarray]] = {
    "fog": _fog,
    "night": _night,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
}


def plasma(size: tuple[int, int], decay: float, draws: Draws) -> np.ndarray:
    """Clouds (H, W) float32 from 0 to 1 by midpoint displacement, their detail weaker by `decay` at each halving."""
    field, roughness = draws.uniform(-1, 1, (2, 2)), 1.0
    while min(field.shape[0] - 1, field.shape[1] - 1) < max(size):
        rows = np.empty((2 * field.shape[0] - 1, field.shape[1]))
        rows[::2], rows[1::2] = field, (field[:-1] + field[1:]) / 2
        field = np.empty((rows.shape[0], 2 * rows.shape[1] - 1))
        field[:, ::2], field[:, 1::2] = rows, (rows[:, :-1] + rows[:, 1:]) / 2
        new = np.ones(field.shape, bool)
        new[::2, ::2] = False  # the coarser points stay
        roughness /= decay
        field[new] += roughness * draws.uniform(-1, 1, int(new.sum()))
    part = field[: size[0], : size[1]]
    spread = float(part.max() - part.min()) or 1.0
    return ((part - part.min()) / spread).astype(np.float32)
