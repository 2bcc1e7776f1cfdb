"""A small data set and a small training on it, for the training tests and the kill campaign."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from dgmn2cli.config import load_config
from dgmn2cli.data.images import write_png
from dgmn2cli.observer import Silent
from dgmn2cli.training.report import Evaluated, StepResult
from dgmn2cli.training.request import TrainRequest

SIZE = (64, 96)  # height, width


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its training ids: upright rectangles, each class in its own colour, a few ignored rows."""
    random = np.random.default_rng(seed)
    label = np.zeros(SIZE, np.uint8)
    for _ in range(8):
        y, x = random.integers(0, SIZE[0] - 16), random.integers(0, SIZE[1] - 16)
        label[y : y + random.integers(8, 30), x : x + random.integers(8, 30)] = random.integers(0, 19)
    shades = np.random.default_rng(0).integers(0, 256, (19, 3))
    image = np.clip(shades[label] + random.normal(0, 12, (*SIZE, 3)), 0, 255).astype(np.uint8)
    label[-3:] = 255
    return cv2.GaussianBlur(image, (3, 3), 0), label


def write_streets(root: Path, train: int = 4, val: int = 2) -> Path:
    """A Cityscapes tree of such scenes."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for i in range(count):
            image, label = scene(first + i)
            name = f"ulm_{i:06d}_000019"
            write_png(root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png", image)
            write_png(root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelTrainIds.png", label)
    return root


SMALL = {
    "train.init": "scratch",
    "train.iters": 4,
    "train.batch_size": 2,
    "train.val_every": 2,
    "train.save_every": 2,
    "augment.scale": [96, 64],
    "augment.crop": 64,
    "inference.scale": [96, 64],
    "inference.window": 64,
    "inference.stride": 48,
    "data.workers": 0,
}
FPN = "fpn_dgmn2_tiny_4x2_769x769_40k_cityscapes"


def small_request(data: Path, out: Path, *, model: str = FPN, settings=None, **request) -> TrainRequest:
    """A training of a few quick steps; `settings` are configuration keys, the rest fields of the request."""
    values = {"data.root": str(data), **SMALL, **(settings or {})}
    texts = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    return TrainRequest(load_config(model, texts), out, **{"device": "cpu", **request})


class Watcher(Silent):
    """Collects what a training tells; `on_step` and `on_part` are called in its course."""

    def __init__(self, on_step=None, on_part=None):
        self.notes, self.steps, self.evaluations, self.task = [], [], [], ""
        self.on_step, self.on_part = on_step or (lambda step: None), on_part or (lambda task: None)

    def note(self, message):
        self.notes.append(message)

    def begin(self, task, total=None, *, done=0, unit=""):
        self.task = task

    def advance(self, parts=1, *, done=None, total=None, detail="", left=None):
        self.on_part(self.task)

    def result(self, value):
        if isinstance(value, StepResult):
            self.steps.append(value)
            self.on_step(value)
        elif isinstance(value, Evaluated):
            self.evaluations.append((value.iteration, value.miou, value.best))


def outcome(out: Path) -> tuple[str, bytes]:
    """What two runs must have in common to the last bit: the newest state's digest, and the log."""
    content = torch.load(out / "checkpoints" / "last.pth", weights_only=True)
    return content["training"]["digest"], (out / "log.jsonl").read_bytes()
