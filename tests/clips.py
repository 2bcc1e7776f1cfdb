"""Drawn clips whose labels are known, and a network whose class follows each pixel's colour, so that noise flips it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.transforms import NORMAL
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.prediction import ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter

SIZE = (64, 96)  # height, width
# blue green red: two grounds that noise mistakes for each other, and three objects
COLOURS = np.array([(100, 100, 100), (124, 112, 100), (100, 100, 160), (160, 100, 100), (60, 160, 80)], np.uint8)
NAMES = ("left", "right", "square", "circle", "bar")
PLAIN = Settings(protocol="native", window=64)
MILLISECOND = Fraction(1, 1000)


def label(number: int, *, moving: bool = True, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8: the classes of a frame."""
    height, width = size
    ids, step = np.zeros(size, np.uint8), number if moving else 0
    ids[:, width // 2 :] = 1
    cv2.rectangle(ids, (4 + step, 6), (19 + step, 21), 2, cv2.FILLED)
    cv2.circle(ids, (width - 14 - step, height - 16), 9, 3, cv2.FILLED)
    cv2.rectangle(ids, (40, 2 + step // 2), (47, 25 + step // 2), 4, cv2.FILLED)
    return ids


def image(ids: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: the classes in their colours, with noise."""
    drawn = COLOURS[ids].astype(np.float64)
    if noise:
        drawn += np.random.default_rng(seed).normal(0, noise, drawn.shape)
    return np.rint(drawn).clip(0, 255).astype(np.uint8)


def clip(count: int, noise: float = 0.0, *, moving: bool = True, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8."""
    return [image(label(i, moving=moving, size=size), noise, i) for i in range(count)]


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    times: Sequence[int] | None = None,
    *,
    rotation: int = 0,
    sound: str = "",
    exact: bool = False,
    aspect: Fraction | None = None,
) -> Path:
    """A film of frames at `times` in milliseconds, else 40 apart; H.264, or lossless where it must be `exact`."""
    frames = list(frames)
    times = times or [40 * number for number in range(len(frames))]
    height, width = frames[0].shape[:2] if frames else SIZE
    with av.open(path, "w") as film:
        stream: Any = film.add_stream("ffv1" if exact else "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0" if exact else "yuv420p"
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if not exact:
            stream.codec_context.options = {"crf": "8"}
        if rotation:
            stream.set_display_rotation(rotation)
        tone: Any = film.add_stream(sound, rate=16000) if sound else None
        if tone:
            tone.layout = "mono"
        for time, frame in zip(times, frames, strict=True):
            made = av.VideoFrame.from_ndarray(frame, format="bgr24")
            made.pts, made.time_base = time, MILLISECOND
            film.mux(stream.encode(made))
        film.mux(stream.encode(None))
        if tone:
            wave = (np.sin(np.arange(16 * times[-1]) / 20) * 0.3).astype(np.float32)[None]
            made = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            made.rate, made.pts = 16000, 0
            film.mux(tone.encode(made))
            film.mux(tone.encode(None))
    return path


def read(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in seconds and frames (H, W, 3) uint8 of a film, by PyAV, as they are stored."""
    with av.open(path) as film:
        found = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="bgr24")) for frame in film.decode(video=0)
        ]
    return [time for time, _ in found], [frame for _, frame in found]


def read_ids(path: Path) -> list[np.ndarray]:
    """Frames (H, W) uint8 of a film of class ids."""
    with av.open(path) as film:
        return [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]


def seen_by_opencv(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in seconds and frames of a film, by OpenCV, which turns them as their flag says."""
    film, times, frames = cv2.VideoCapture(str(path)), [], []
    while True:
        there, frame = film.read()
        if not there:
            return times, frames
        times.append(film.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        frames.append(frame)


def packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time and bytes of each packet of sound."""
    with av.open(path) as film:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in film.demux(audio=0)
            if packet.pts is not None and packet.size
        ]


class Nearest(nn.Module):
    """Logits that fall with the squared distance of a pixel's colour to each class's."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        red_green_blue = COLOURS[:, ::-1].astype(np.int64)
        colours = torch.from_numpy(np.stack([NORMAL[i][red_green_blue[:, i]] for i in range(3)], 1))
        self.weight, self.bias = 8 * colours[:, :, None, None], -4 * (colours**2).sum(1)
        self.then, self.calls = then, 0

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, 5, H, W)`."""
        self.calls += len(images)
        self.then()
        return nn.functional.conv2d(images, self.weight, self.bias)


def segmenter(network: nn.Module | None = None) -> Segmenter:
    """`Nearest`, or another network of its classes, as if it were a model of the zoo."""
    info = RunInfo("nearest", "nearest.pth", "ab" * 32, "cpu", "a test machine", "float32", "reference", "published")
    palette = COLOURS[:, ::-1]
    return Segmenter(network or Nearest(), ClassList(NAMES, palette, cityscapes=False), info, InferenceConfig())
