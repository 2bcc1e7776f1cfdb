"""Owns the machine's own best: the rates of plain matrix work and of copying, to hold every other figure against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dgmn2cli.model.fused.layers import FusedConv, FusedLinear

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
TOKENS = {"cpu": 8192, "cuda": 131072}
MAP_SIDE = {"cpu": 128, "cuda": 512}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
COPY = "copy"


@dataclass(frozen=True)
class Rate:
    """What the machine does at best at one kind of work.

    Attributes:
        dtype: number format.
        kind: `matrix product`, `prepacked Linear`, `3x3 convolution`, or `copy`.
        gflops: 10^9 operations a second; None for a copy.
        gbytes: 10^9 bytes read and written a second; None for matrix work.
    """

    dtype: str
    kind: str
    gflops: float | None = None
    gbytes: float | None = None


@dataclass(frozen=True)
class Probe:
    """One kind of work: how much of it a step does (operations, or bytes for a copy), and the step."""

    dtype: str
    kind: str
    amount: int
    step: Callable[[], object]

    def rate(self, seconds: Sequence[float]) -> Rate:
        """The rate at the median of the timings."""
        found = self.amount / statistics.median(seconds) / 1e9
        copies = self.kind == COPY
        return Rate(self.dtype, self.kind, None if copies else found, found if copies else None)


def matrix_probes(device: torch.device, dtype: str, number: torch.dtype) -> list[Probe]:
    """A matrix product, a Linear with prepacked weights and a channels-last 3x3 convolution, of sizes that suit them.

    Raises:
        RuntimeError: the device cannot compute in this number format.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    side, tokens, width, channels, plane = MATRIX_SIDE[kind], TOKENS[kind], 512, 256, MAP_SIDE[kind]
    a, b = (torch.randn(side, side, device=device, dtype=number) for _ in range(2))
    linear = FusedLinear(nn.Linear(width, 4 * width, device=device, dtype=number))
    rows = torch.randn(1, tokens, width, device=device, dtype=number)
    conv = FusedConv(nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=number))
    maps = torch.randn(1, channels, plane, plane, device=device, dtype=number)
    maps = maps.contiguous(memory_format=torch.channels_last)
    return [
        Probe(dtype, "matrix product", 2 * side**3, _without_gradients(lambda: a @ b)),
        Probe(dtype, "prepacked Linear", 2 * tokens * 4 * width**2, _without_gradients(lambda: linear(rows))),
        Probe(dtype, "3x3 convolution", 2 * (3 * channels * plane) ** 2, _without_gradients(lambda: conv(maps))),
    ]


def copy_probe(device: torch.device) -> Probe:
    """A copy from memory to memory, far larger than any cache; bytes read and bytes written both count."""
    size = COPY_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return Probe("float32", COPY, 2 * size, lambda: target.copy_(source))


def best_gflops(rates: Sequence[Rate]) -> Mapping[str, float]:
    """The highest matrix rate by number format."""
    best: dict[str, float] = {}
    for rate in rates:
        if rate.gflops is not None:
            best[rate.dtype] = max(best.get(rate.dtype, 0.0), rate.gflops)
    return best


def highest(rates: Sequence[Rate]) -> list[Rate]:
    """Of several series of each kind and number format the highest, in the order of their first appearance."""
    found: dict[tuple[str, str], Rate] = {}
    for rate in rates:
        key = (rate.dtype, rate.kind)
        if key not in found or _amount(rate) > _amount(found[key]):
            found[key] = rate
    return list(found.values())


def _amount(rate: Rate) -> float:
    return rate.gflops or rate.gbytes or 0.0


def _without_gradients(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return step()

    return run
