"""Timing of steps in turn, A B A B, so that drift and other load reach all alike; and the machine's own rates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dgmn2cli.model.fused.layers import FusedConv, FusedLinear
from dgmn2cli.observer import Observer

Step = Callable[[], object]
# sizes of the probes by device type
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
TOKENS = {"cpu": 8192, "cuda": 131072}
MAP_SIDE = {"cpu": 128, "cuda": 512}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
COPY = "copy"


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, linear between neighbours."""
    return float(np.quantile(samples, share))


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as long `slower` took: the median over the rounds that both ran, neighbours in time."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=False))


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def alternate(
    steps: Sequence[Step],
    device: torch.device,
    warmup: int,
    iters: int,
    progress: Callable[[int, int], object] = lambda _done, _of: None,
    enough: float = float("inf"),
) -> list[list[float]]:
    """Times `steps` in turn, round after round, each from a quiet device to a quiet device.

    Args:
        warmup, iters: rounds thrown away, rounds that count.
        progress: told after each round how many are done, and of how many.
        enough: seconds after whose counted rounds a step sits out the rest; it always has one.

    Returns:
        Seconds, per step one list of `iters` timings, or fewer; equal positions are of one round.
    """
    timings: list[list[float]] = [[] for _ in steps]
    for index in range(warmup + iters):
        for step, kept in zip(steps, timings, strict=True):
            if kept and sum(kept) > enough:
                continue
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if index >= warmup:
                kept.append(time.perf_counter() - start)
        progress(index + 1, warmup + iters)
    return timings


def tell_round(observer: Observer, name: str, done: int, of: int) -> None:
    """Says which round of the timings of `name` is done."""
    observer.advance(0, detail=f"{name}: round {done} of {of}")


@dataclass(frozen=True)
class Rate:
    """What the machine does at best at one kind of work."""

    dtype: str  # of the numbers
    kind: str  # `matrix product`, `prepacked Linear`, `3x3 convolution`, or `copy`
    gflops: float | None = None  # 10^9 operations a second; None for a copy
    gbytes: float | None = None  # 10^9 bytes read and written a second; None for matrix work


@dataclass(frozen=True)
class Probe:
    """One kind of work: how much of it a step does (operations, or bytes for a copy), and the step."""

    dtype: str
    kind: str
    amount: int
    step: Step

    def rate(self, seconds: Sequence[float]) -> Rate:
        """The rate at the median of the timings."""
        found = self.amount / statistics.median(seconds) / 1e9
        copies = self.kind == COPY
        return Rate(self.dtype, self.kind, None if copies else found, found if copies else None)


def matrix_probes(device: torch.device, dtype: torch.dtype) -> list[Probe]:
    """A matrix product, a Linear with prepacked weights and a channels-last 3x3 convolution, of sizes that suit them.

    Raises:
        RuntimeError: the device cannot compute in this dtype.
    """
    kind, name = "cuda" if device.type == "cuda" else "cpu", str(dtype).removeprefix("torch.")
    side, tokens, width, channels, plane = MATRIX_SIDE[kind], TOKENS[kind], 512, 256, MAP_SIDE[kind]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    linear = FusedLinear(nn.Linear(width, 4 * width, device=device, dtype=dtype))
    rows = torch.randn(1, tokens, width, device=device, dtype=dtype)
    conv = FusedConv(nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype))
    maps = torch.randn(1, channels, plane, plane, device=device, dtype=dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    inference = torch.inference_mode()
    return [
        Probe(name, "matrix product", 2 * side**3, inference(lambda: a @ b)),
        Probe(name, "prepacked Linear", 2 * tokens * 4 * width**2, inference(lambda: linear(rows))),
        Probe(name, "3x3 convolution", 2 * (3 * channels * plane) ** 2, inference(lambda: conv(maps))),
    ]


def copy_probe(device: torch.device) -> Probe:
    """A copy from memory to memory, far larger than any cache; bytes read and bytes written both count."""
    size = COPY_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return Probe("float32", COPY, 2 * size, lambda: target.copy_(source))


def best_gflops(rates: Sequence[Rate], dtype: str) -> float:
    """The highest matrix rate in a dtype."""
    return max(rate.gflops for rate in rates if rate.dtype == dtype and rate.gflops is not None)


def highest(rates: Sequence[Rate]) -> list[Rate]:
    """Of several series of each kind and dtype the highest, in the order of their first appearance."""
    found: dict[tuple[str, str], Rate] = {}
    for rate in rates:
        held = found.setdefault((rate.dtype, rate.kind), rate)
        if (rate.gflops or rate.gbytes or 0) > (held.gflops or held.gbytes or 0):
            found[rate.dtype, rate.kind] = rate
    return list(found.values())
