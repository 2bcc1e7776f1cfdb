"""Owns the clock: steps run in turn, A B A B, so that a machine's drift and its other load reach every side alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """What a series of timings looked like, in seconds.

    Attributes:
        median, p10, p90: quantiles, linear between neighbours.
        runs: how many timings.
    """

    median: float
    p10: float
    p90: float
    runs: int


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, linear between neighbours."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(samples: Sequence[float]) -> Spread:
    """The quantiles of a series of timings."""
    return Spread(statistics.median(samples), quantile(samples, 0.1), quantile(samples, 0.9), len(samples))


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as long `slower` took: the median over the rounds that both ran, neighbours in time."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=False))


def seconds_of(step: Step, device: torch.device) -> float:
    """One run of `step`, from a quiet device to a quiet device."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


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
    progress: Callable[[], object] | None = None,
    enough: float = float("inf"),
) -> list[list[float]]:
    """Times `steps` in turn, round after round.

    Args:
        steps: the sides; every round runs each of them once.
        device: what to wait for.
        warmup: rounds whose timings are thrown away.
        iters: rounds that count.
        progress: called after each round.
        enough: seconds after whose counted rounds a step sits out the rest; it always has one.

    Returns:
        Seconds, per step one list of `iters` timings, or fewer; equal positions are of one round.
    """
    timings: list[list[float]] = [[] for _ in steps]
    for index in range(warmup + iters):
        for step, kept in zip(steps, timings, strict=True):
            if kept and sum(kept) > enough:
                continue
            seconds = seconds_of(step, device)
            if index >= warmup:
                kept.append(seconds)
        if progress is not None:
            progress()
    return timings
