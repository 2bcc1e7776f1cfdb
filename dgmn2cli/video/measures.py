"""How steady predictions are over time: temporal consistency (TC), video consistency (VC), share of changing pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from dgmn2cli.data.dataset import IGNORE
from dgmn2cli.evaluate.counting import compute_scores, confusion

CLIPS = (8, 16)  # frames of VSPW's clips
SMALLEST = 12  # pixels of a side that the optical flow needs
OCCLUDED = 0.01, 0.5  # Sundaram, Brox and Keutzer (ECCV 2010): share of the squared flows, squared pixels
STATE_BYTES = 64  # per pixel: two flows and what is made of them


@dataclass(frozen=True)
class Steadiness:
    """How steady predictions are; shares from 0 to 1, NaN where the video is too short."""

    tc: float  # temporal consistency: mIoU of each prediction with the one before, moved along the optical flow
    tc_seen: float  # share of pixels that TC counts: they come from inside the image and were not hidden
    # vc8, vc16: share of pixels that keep their class for 8 and for 16 frames
    vc8: float
    vc16: float
    changing: float  # share of pixels whose class is another than one frame before


class Steady:
    """Collects what `Steadiness` tells of classes called `names`, frame by frame."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._counts = np.zeros((len(names), len(names) + 1), np.int64)
        self._before: tuple[np.ndarray, np.ndarray] | None = None  # gray image, ids
        self._kept = np.empty(0, np.uint8)  # frames for which each pixel has had its class, at most the longest clip's
        self._seen: list[float] = []
        self._changing: list[float] = []
        self._clips: dict[int, list[float]] = {length: [] for length in CLIPS}
        self._frames = 0

    def add(self, image: np.ndarray, ids: np.ndarray) -> None:
        """The next frame: (H, W, 3) uint8 blue green red, and its class ids (H, W) uint8."""
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        self._frames += 1
        if self._before is None:
            self._kept = np.ones(ids.shape, np.uint8)
        else:
            moved = self._moved(gray)
            self._counts += confusion(ids, moved, len(self._names))
            self._seen.append(float(np.mean(moved != IGNORE)))
            same = ids == self._before[1]
            self._changing.append(1 - float(np.mean(same)))
            self._kept = np.where(same, np.minimum(self._kept, max(CLIPS) - 1) + np.uint8(1), np.uint8(1))
        for length, shares in self._clips.items():
            if self._frames >= length:
                shares.append(float(np.mean(self._kept >= length)))
        self._before = gray, ids

    def _moved(self, gray: np.ndarray) -> np.ndarray:
        """The ids of the frame before, moved to where the flow has them now; `IGNORE` where they cannot be seen."""
        assert self._before is not None
        former, ids = self._before
        height, width = gray.shape
        flow: Callable[..., np.ndarray] = self._flow.calc  # OpenCV's types do not know that it needs no first guess
        back = flow(gray, former, None)  # (H, W, 2): where each pixel was, relative to it
        forth = flow(former, gray, None)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        x, y = x + back[..., 0], y + back[..., 1]
        column, row = np.rint(x).astype(np.int32), np.rint(y).astype(np.int32)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row = column.clip(0, width - 1), row.clip(0, height - 1)
        onward = forth[row, column]
        share, pixels = OCCLUDED
        lengths = (back**2).sum(2) + (onward**2).sum(2)
        visible = ((back + onward) ** 2).sum(2) <= share * lengths + pixels
        return np.where(inside & visible, ids[row, column], np.uint8(IGNORE))

    def result(self) -> Steadiness:
        """What was found so far."""
        vc8, vc16 = (_mean(self._clips[length]) for length in CLIPS)
        tc = compute_scores(self._counts, self._names).mean_iou if self._counts.any() else math.nan
        return Steadiness(tc, _mean(self._seen), vc8, vc16, _mean(self._changing))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
