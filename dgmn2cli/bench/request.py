"""What a benchmark is asked to measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dgmn2cli.bench import BASELINES
from dgmn2cli.errors import ConfigError
from dgmn2cli.model.segmentor import Segmentor


@dataclass(frozen=True)
class Request:
    """What to measure.

    Raises:
        ConfigError: no such baseline, or window and size contradict each other.
    """

    bench: str  # one of `BENCHES`
    device: torch.device  # of all implementations
    # dtype, backend, compiled: how this package's implementation runs
    dtype: str = "float32"
    backend: str = "auto"
    compiled: bool = False
    # run it in the inference form (`infer`, `e2e`, `profile`); training has an order of its own
    fused: bool = True
    # width and height of the window, or for `e2e`, `decode` and `stream` of the image; None: the configuration's
    # window, 2048x1024 for `e2e` and `stream`, images of 2, 12 and 24 megapixels for `decode`
    size: tuple[int, int] | None = None
    window: int | None = None  # the same for a square window, for `e2e` too
    batch: int | None = None  # windows at a time; 2 for `train` and 1 for the others if None
    baselines: tuple[str, ...] = ("plain", "torchvision")  # which to measure beside it, keys of `BASELINES`
    # warmup, iters: rounds thrown away, rounds that count
    warmup: int = 1
    iters: int = 5
    memory: bool = True  # measure peak memory too; on the CPU each implementation in a process of its own
    # makes the ONNX graph of a network, for the baselines that are runtimes
    export: Callable[[Segmentor], Any] | None = None

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError("no such baseline", where=name[:60], why=f"wanted some of {', '.join(BASELINES)}")
        if self.size is not None and self.window is not None and self.bench not in ("e2e", "decode", "stream"):
            raise ConfigError("the window's size is given twice", why="--input and --window", hint="Give one of them.")

    @property
    def training(self) -> bool:
        """Forward, backward and optimiser step are measured, not the forward pass alone."""
        return self.bench == "train"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, height, width) of what a network is given; `for_window` was called before."""
        assert self.size is not None
        return self.batch or 1 + self.training, self.size[1], self.size[0]

    def for_window(self, side: int) -> Request:
        """The request with its size filled in, where a configuration's window has this side."""
        side = self.window or side
        return self if self.size else replace(self, size=(side, side), window=None)
