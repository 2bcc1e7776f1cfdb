"""Steps run in turn, warm-up rounds are dropped, quantiles are what they say."""

from __future__ import annotations

import time

import pytest
import torch

from dgmn2cli.bench import timing
from dgmn2cli.bench.timing import (
    Probe,
    Rate,
    alternate,
    best_gflops,
    copy_probe,
    highest,
    matrix_probes,
    paired_ratio,
    quantile,
)  # fmt: skip

CPU = torch.device("cpu")


def test_rounds_alternate() -> None:
    order: list[str] = []
    rounds: list[int] = []
    steps = [lambda: order.append("a"), lambda: order.append("b")]
    timings = alternate(steps, CPU, warmup=2, iters=3, progress=lambda *_: rounds.append(len(order)))
    assert order == ["a", "b"] * 5
    assert rounds == [2, 4, 6, 8, 10]
    assert [len(kept) for kept in timings] == [3, 3]


def test_slow_steps_sit_out_what_follows_their_first_rounds() -> None:
    quick, slow = alternate([lambda: None, lambda: time.sleep(0.01)], CPU, warmup=1, iters=50, enough=0.005)
    assert (len(quick), len(slow)) == (50, 1)
    _, ample = alternate([lambda: None, lambda: time.sleep(0.01)], CPU, warmup=0, iters=4, enough=60.0)
    assert len(ample) == 4
    assert paired_ratio([6.0], [3.0, 1.0, 1.0]) == 2  # of the round that both ran


def test_a_step_is_timed_whole() -> None:
    slow, quick = alternate([lambda: time.sleep(0.02), lambda: None], CPU, warmup=0, iters=3)
    assert min(slow) >= 0.02
    assert min(quick) >= 0


def test_quantiles() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    assert quantile([7.0], 0.95) == 7


def test_ratios_pair_the_timings_of_a_round() -> None:
    """A machine that slows down threefold in the last round changes both timings of it, not the ratio."""
    assert paired_ratio([2.0, 2.0, 6.0], [1.0, 1.0, 3.0]) == 2


def test_probes_do_the_work_they_state(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("MATRIX_SIDE", 48), ("TOKENS", 10), ("MAP_SIDE", 9)):
        monkeypatch.setitem(getattr(timing, name), "cpu", size)
    probes = {probe.kind: probe for probe in matrix_probes(CPU, torch.float32)}
    results = {kind: probe.step() for kind, probe in probes.items()}
    inner = {"matrix product": 48, "prepacked Linear": 512, "3x3 convolution": 9 * 256}
    assert probes.keys() == inner.keys()
    for kind, length in inner.items():
        result = results[kind]
        assert isinstance(result, torch.Tensor)
        assert probes[kind].amount == 2 * result.numel() * length


def test_a_copy_counts_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 4096)
    probe = copy_probe(CPU)
    probe.step()
    assert probe.rate([1e-6]) == Rate("float32", "copy", None, pytest.approx(8.192))


def test_the_best_rate_of_each_dtype() -> None:
    probe = Probe("float32", "matrix product", 6 * 10**9, lambda: None)
    slow, quick = probe.rate([3.0, 3.0, 9.0]), probe.rate([1.5])
    half, copies = Rate("bfloat16", "3x3 convolution", 9.0), Rate("float32", "copy", None, 20.0)
    assert (slow.gflops, quick.gflops) == (2, 4)
    assert [best_gflops([slow, quick, half, copies], dtype) for dtype in ("float32", "bfloat16")] == [4, 9]
    assert highest([slow, half, quick, copies]) == [quick, half, copies]
