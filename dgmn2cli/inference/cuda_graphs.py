"""Passes over a network recorded once for each shape and replayed: CUDA graphs, used where they give the same bits.

A pass is hundreds of kernels that Python asks for one by one, which for a small network can take longer than they run.
A recorded pass is asked for at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgmn2cli.errors import printable
from dgmn2cli.ops.operators import held

LOGGER = logging.getLogger("dgmn2cli")
MOST_SHAPES = 8  # each recording keeps the memory of a pass
PASSES_BEFORE = 1  # of a shape that are not recorded: what comes once is not worth it

Replay = Callable[[Tensor], Tensor]  # takes images of one shape, gives their logits, which the next call overwrites


@dataclass(frozen=True)
class Recording:
    """One recorded pass."""

    graph: torch.cuda.CUDAGraph
    images: Tensor  # what it is made over
    logits: Tensor  # where it puts them
    tables: list[Any]  # constants it reads, whose addresses alone the graph knows

    def __call__(self, images: Tensor) -> Tensor:
        """The logits of `images`, overwritten by the next call."""
        self.images.copy_(images)
        self.graph.replay()
        return self.logits


def record(network: nn.Module, images: Tensor) -> Replay:
    """A pass over `images`, on their GPU, ready to be repeated for others of the same shape and dtype."""
    images, graph = images.clone(), torch.cuda.CUDAGraph()
    network(images)  # libraries choose their kernels and tables are made on a first pass, which cannot be recorded
    stream = torch.cuda.Stream(images.device)
    capturing = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")  # other threads may allocate
    with held() as tables, torch.cuda.device(images.device), capturing:
        logits = network(images)
    return Recording(graph, images, logits, tables)


class RecordedNetwork(nn.Module):
    """A network for inference whose passes are recorded by shape, and otherwise made as ever.

    A recording serves only after it gave the same bits as the network for two batches unlike each other. If one
    does not, or cannot be made, a warning says so and no more are tried. A copy or pickle has none of the recordings.
    """

    def __init__(self, network: nn.Module, record: Callable[[nn.Module, Tensor], Replay] = record) -> None:
        super().__init__()
        self.network, self.record = network, record
        self._forget()

    def _forget(self) -> None:
        self._passes: Counter[tuple[torch.Size, torch.dtype]] = Counter()
        self._replays: dict[tuple[torch.Size, torch.dtype], Replay] = {}
        self._failed = False

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_passes", "_replays", "_failed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C, H, W)` of normalised RGB images `(B, 3, H, W)`."""
        shape = images.shape, images.dtype
        if shape not in self._replays:
            self._passes[shape] += 1
            if self._failed or self._passes[shape] <= PASSES_BEFORE or len(self._replays) == MOST_SHAPES:
                return self.network(images)
            replay = self._checked(images)
            if replay is None:
                self._failed = True
                return self.network(images)
            self._replays[shape] = replay
        return self._replays[shape](images).clone()

    def _checked(self, images: Tensor) -> Replay | None:
        try:
            replay = self.record(self.network, images)
            same = all(torch.equal(replay(seen), self.network(seen)) for seen in (images, -images.flip(3)))
            why = "" if same else "it does not give the same bits"
        except (RuntimeError, MemoryError) as error:
            why = printable(str(error).strip().split("\n")[0])
        if not why:
            return replay
        LOGGER.warning("passes of shape %s are not recorded as a CUDA graph: %s", tuple(images.shape), why)
        return None


def unrecorded(network: nn.Module) -> nn.Module:
    """The network itself, whose layers can be looked at while it runs."""
    return network.network if isinstance(network, RecordedNetwork) else network
