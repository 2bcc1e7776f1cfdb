"""Owns `--bench infer` and `--bench train`: a network's forward pass, or whole training steps, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmn2cli.bench.agreement import compare, require
from dgmn2cli.bench.macs import count_executed, count_macs, count_parameters
from dgmn2cli.bench.rates import best_gflops, matrix_probes
from dgmn2cli.bench.report import Findings, Row
from dgmn2cli.bench.sides import NetworkSpec, Side, build_side, random_images
from dgmn2cli.bench.timing import Step, alternate, paired_ratio, spread
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.runtime import PeakMeter, can_measure, in_fresh_process

TRAINING_FACTOR = 3  # a backward pass is two products for each one of the forward pass
WARM_UP_SIDE = 65  # of the small picture that loads libraries and starts threads before memory is measured
LEARNING_RATE = 1e-4
IGNORED = 255


@dataclass(frozen=True)
class Workload:
    """What every side does in one run.

    Attributes:
        batch, height, width: of the pictures.
        training: forward, backward and optimiser step; else forward.
        warmup, iters: rounds thrown away, rounds that count.
        memory: measure peak memory too, each side in a process of its own on CPU.
    """

    batch: int = 1
    height: int = 769
    width: int = 769
    training: bool = False
    warmup: int = 1
    iters: int = 5
    memory: bool = True


def measure_network(
    spec: NetworkSpec,
    sides: Sequence[Side],
    work: Workload,
    findings: Findings,
    progress: Callable[[str], object] = lambda doing: None,
) -> None:
    """Checks that the sides agree, times them in turn, measures their memory; adds to `findings`.

    Args:
        spec: which network.
        sides: this package's first.
        work: what they do.
        findings: gets rows, rates, agreements and notes.
        progress: called with what is being done.

    Raises:
        CheckFailed: two sides differ.
        ResourceError: not enough memory.
    """
    device = torch.device(sides[0].device)
    progress(f"{spec.name}: building {len(sides)} sides")
    networks = [build_side(spec, side, training=work.training) for side in sides]
    progress(f"{spec.name}: do the sides agree?")
    executed = _check(spec, sides, networks, work, findings)
    steps = [make_step(network, side, work) for network, side in zip(networks, sides, strict=True)]
    probes = [
        probe
        for dtype, number in {side.dtype: side.number for side in sides}.items()
        for probe in matrix_probes(device, dtype, number)
    ]
    rounds = iter(range(1, work.warmup + work.iters + 1))
    timings = alternate(
        [*steps, *(probe.step for probe in probes)],
        device,
        work.warmup,
        work.iters,
        lambda: progress(f"{spec.name}: round {next(rounds)} of {work.warmup + work.iters}"),
    )
    rates = [probe.rate(seconds) for probe, seconds in zip(probes, timings[len(sides) :], strict=True)]
    del networks, steps
    peaks: list[int | None] = [None] * len(sides)
    if work.memory and can_measure(device):
        for index, side in enumerate(sides):
            progress(f"{spec.name}: memory of {side.name}")
            peaks[index] = measure_peak(spec, side, work)
    best = best_gflops(rates)
    for side, seconds, peak, macs in zip(sides, timings[: len(sides)], peaks, executed, strict=True):
        findings.rows.append(_row(spec, side, work, (seconds, timings[0]), (peak, peaks[0]), (macs, best[side.dtype])))
    findings.rates += rates


def _row(
    spec: NetworkSpec,
    side: Side,
    work: Workload,
    timings: tuple[list[float], list[float]],
    peaks: tuple[int | None, int | None],
    work_done: tuple[int | None, float],
) -> Row:
    """A side's row; `timings` and `peaks` hold its own and this package's, `work_done` its multiply-accumulates of a
    forward pass and the machine's best rate."""
    seen = spread(timings[0])
    with shapes_only():
        model = spec.build()
    factor = TRAINING_FACTOR if work.training else 1
    macs = count_macs(model, work.height, work.width, work.batch) * factor
    executed = macs if work.training else work_done[0]  # training keeps the published order
    gflops = 2 * executed / seen.median / 1e9 if executed is not None else None
    best = work_done[1]
    return Row(
        subject=spec.name,
        task="train" if work.training else "infer",
        side=side.name,
        form=side.form,
        backend=side.backend,
        dtype=side.dtype,
        compiled=side.compiled,
        batch=work.batch,
        height=work.height,
        width=work.width,
        runs=seen.runs,
        median=seen.median,
        p10=seen.p10,
        p90=seen.p90,
        per_second=work.batch / seen.median,
        times_as_fast=paired_ratio(*timings),
        macs=macs,
        gflops=gflops,
        parameters=count_parameters(model),
        peak=peaks[0],
        executed=executed,
        utilisation=gflops / best if gflops else None,
        efficiency=2 * macs / seen.median / 1e9 / best,
        memory_share=peaks[1] / peaks[0] if peaks[0] and peaks[1] else None,
    )


def _check(
    spec: NetworkSpec, sides: Sequence[Side], networks: Sequence[nn.Module], work: Workload, findings: Findings
) -> list[int | None]:
    """Every side against the first, on the pictures that will be timed.

    Returns:
        The multiply-accumulates each side executes in a forward pass; None where that is not counted.

    Gradients are compared with the batch norms' stored statistics: through those of the batch, float32 rounding alone
    moves an untrained network's gradients by some percent.
    """
    what = "gradients" if work.training else "logits"
    own: list[Tensor] | None = None
    executed: list[int | None] = []
    for side, network in zip(sides, networks, strict=True):
        images = random_images(work.batch, work.height, work.width, side)
        counting = nullcontext([0]) if side.compiled or work.training else count_executed(network)
        with counting as counted, torch.inference_mode(not work.training):
            answer = [network.eval()(images)]
        executed.append(None if side.compiled or work.training else counted[0])
        if work.training:
            _loss(answer[0]).backward()
            network.train()
            answer = [_taken_gradient(parameter) for parameter in network.parameters()]
        if own is None:
            own = answer
        else:
            findings.agreements.append(require(compare(spec.name, side, what, sides[0], own, answer)))
    return executed


def _taken_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    parameter.grad = None
    return gradient


def make_step(network: nn.Module, side: Side, work: Workload) -> Step:
    """One run of a side: a forward pass without gradients, or a training step with AdamW as published."""
    images = random_images(work.batch, work.height, work.width, side)
    if not work.training:

        def infer() -> Tensor:
            with torch.inference_mode():
                return network(images)

        return infer
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=LEARNING_RATE)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(network(images)).backward()
        optimizer.step()

    return train


def _loss(logits: Tensor) -> Tensor:
    """Cross entropy over all pixels against labels in broad bands, an ignored one among them."""
    batch, classes, height, width = logits.shape
    labels = torch.arange(height * width, device=logits.device).view(height, width) // 97 % (classes + 1)
    labels = labels.where(labels < classes, IGNORED).expand(batch, height, width)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / labels.numel()


def measure_peak(spec: NetworkSpec, side: Side, work: Workload) -> int | None:
    """Bytes above the weights at the highest point of a side's run; on CPU measured in a fresh process."""
    if torch.device(side.device).type == "cpu":
        return in_fresh_process(_peak, spec, side, work, torch.get_num_threads())
    return _peak(spec, side, work, torch.get_num_threads())


def _peak(spec: NetworkSpec, side: Side, work: Workload, threads: int) -> int | None:
    """Weights stay outside the measurement; pictures, activations, gradients and optimiser state are in it."""
    torch.set_num_threads(threads)
    network = build_side(spec, side, training=work.training)
    small = random_images(max(work.batch, 2), WARM_UP_SIDE, WARM_UP_SIDE, side)  # batch norm needs two at stage 4
    with torch.set_grad_enabled(work.training):
        answer = network(small)
        if work.training:
            _loss(answer).backward()
    del answer, small
    network.zero_grad(set_to_none=True)
    with PeakMeter(torch.device(side.device)) as meter:
        step = make_step(network, side, work)
        for _ in range(2 if work.training else 1):  # from the second step on the optimiser's state is there
            step()
    return meter.peak
