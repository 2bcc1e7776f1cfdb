"""What the tests of evaluations share: tiny Cityscapes trees, and a network that costs nothing.

It is a module of its own so that spawned processes can import it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgmn2cli.config import Config, InferenceConfig
from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import NonFiniteError
from dgmn2cli.evaluate import Counted, Settings
from dgmn2cli.inference.load import Recipe
from dgmn2cli.inference.prediction import CITYSCAPES, ClassList
from dgmn2cli.inference.report import InferReport
from dgmn2cli.inference.run import InferRequest, run
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent

SMALL = Settings(scale=(48, 24), window=24, stride=16)
SIZE = (24, 40)  # height, width


def scene(seed: int, size: tuple[int, int] = SIZE, classes: Sequence[int] = range(19)) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) and its label (H, W) in training ids, with blocks of `classes` and some ignored pixels."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.array([*classes, 255], np.uint8), (-(-size[0] // 4), -(-size[1] // 4)))
    label = np.repeat(np.repeat(blocks, 4, axis=0), 4, axis=1)[: size[0], : size[1]]
    noise = rng.integers(0, 40, (*size, 3))
    return (label[..., None].astype(int) * (5, 7, 11) % 216 + noise).astype(np.uint8), np.ascontiguousarray(label)


def make_tree(
    root: Path,
    count: int = 4,
    *,
    split: str = "val",
    ids: Sequence[str] = ("labelIds",),
    size: tuple[int, int] = SIZE,
    classes: Sequence[int] = range(19),
) -> Path:
    """A Cityscapes tree with `count` pairs in two cities; no label files with `ids=()`."""
    for i in range(count):
        city = ("ulm", "aachen")[i % 2]
        name = f"{city}_{i:06d}_000019"
        image, label = scene(i, size, classes)
        write_png(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
        for kind in ids:
            stored = label if kind == "labelTrainIds" else LABEL_ID_OF_TRAIN_ID[label]
            write_png(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", stored)
    return root


class Colours(nn.Module):
    """Logits of 19 classes from each pixel's colour alone, by fixed weights; the classes `never` are not given."""

    def __init__(self, never: Sequence[int] = (), seconds: float = 0.0) -> None:
        super().__init__()
        weights = torch.from_numpy(np.random.default_rng(7).normal(size=(19, 3, 1, 1)))
        self.weight = nn.Parameter(weights.float(), requires_grad=False)
        self.never, self.seconds = list(never), seconds

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, 19, H, W)`."""
        time.sleep(self.seconds)
        logits = nn.functional.conv2d(images, self.weight)
        logits[:, self.never] = -1e4
        return logits


def segmenter(
    network: nn.Module | None = None, sha256: str = "ab" * 32, classes: ClassList = CITYSCAPES, model: str = "fake"
) -> Segmenter:
    """`network`, or `Colours`, as if it were a model of the zoo."""
    info = RunInfo(model, "fake.pth", sha256, "cpu", "a test machine", "float32", "reference", "published")
    return Segmenter(network or Colours(), classes, info, InferenceConfig())


class Load(Recipe):
    """Loads a network in whichever process: `how` is "well", "slow", "killed", "broken", "nan" or "odd"."""

    def __init__(self, how: str = "well", sha256: str = "ab" * 32, model: str = "fake") -> None:
        super().__init__(Config(model), None)
        vars(self).update(how=how, sha256=sha256, model=model)

    def __call__(self, *, device: str, observer: Observer | None = None) -> Segmenter:  # type: ignore[override]
        """The network; the device is ignored, and nothing is told."""
        if self.how == "broken":
            raise NonFiniteError("the weights are not finite", where="fake.pth")
        if self.how == "odd":
            raise KeyError("something unforeseen")
        network: nn.Module = Colours(seconds=0.1 if self.how in ("slow", "killed") else 0.0)
        if self.how == "nan":
            network.weight.data[3] = torch.nan
        made = segmenter(network, self.sha256, model=self.model)
        if self.how == "killed":
            network.register_forward_hook(self._die)
        return made

    def _die(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def predict_files(
    made: Segmenter, sources: Path | Sequence[Path], out: Path, kinds: Sequence[str], settings: Settings, **how: Any
) -> InferReport:
    """Whole run of `infer` on this process; `how`: its `observer`, and attributes of `InferRequest`."""
    observer, named = how.pop("observer", None), [sources] if isinstance(sources, Path) else sources
    request = InferRequest(tuple(map(str, named)), str(out), tuple(kinds), settings=settings, device="cpu", **how)
    return run(request, lambda **_: made, observer)


class Watcher(Silent):
    """An observer that remembers; `stop_after` images it raises KeyboardInterrupt."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.parts, self.notes = 0.0, list[str]()
        self.started: list[tuple[str, float | None, float]] = []
        self.images: list[Counted] = []
        self.stop_after = stop_after

    def note(self, message: str) -> None:
        """Remembers."""
        self.notes.append(message)

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        """Remembers evaluations."""
        self.parts = 0.0
        if task.startswith("evaluating"):
            self.started.append((task.removeprefix("evaluating "), total, done))

    def advance(
        self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
    ) -> None:
        """Adds up, within a task."""
        self.parts += parts

    def result(self, value: object) -> None:
        """Remembers, and stops where it should."""
        assert isinstance(value, Counted)
        self.images.append(value)
        if self.stop_after is not None and len(self.images) >= self.stop_after:
            raise KeyboardInterrupt
