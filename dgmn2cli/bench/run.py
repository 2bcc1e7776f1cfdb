"""Owns one benchmark from request to report: which sides, which measurement, for which models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from dgmn2cli.bench.machine import describe_machine
from dgmn2cli.bench.names import BASELINES
from dgmn2cli.bench.network import Workload, measure_network
from dgmn2cli.bench.op import ATTENTION, UNFOLD, measure_op, op_sides, stage_cases
from dgmn2cli.bench.pipeline import PICTURE, measure_pipeline
from dgmn2cli.bench.profiling import profile_network
from dgmn2cli.bench.rates import highest
from dgmn2cli.bench.report import Findings, Report
from dgmn2cli.bench.sides import NetworkSpec, own_side, sides_of
from dgmn2cli.config import InferenceConfig
from dgmn2cli.errors import ConfigError
from dgmn2cli.inference.load import Recipe


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        bench: one of `names.BENCHES`.
        device: where.
        dtype, backend, compiled: how this package's side runs.
        fused: run it in the inference form (`infer`, `e2e`, `profile`); training always keeps the published order.
        size: width and height of the window, or for `e2e` of the picture; the configuration's window, or 2048x1024,
            if None.
        window: the same for a square window, for `e2e` too.
        batch: windows at a time; 2 for `train` and 1 for the others if None.
        baselines: which to measure beside it, keys of `names.BASELINES`.
        warmup, iters: rounds thrown away, rounds that count.
        memory: measure peak memory too.

    Raises:
        ConfigError: no such baseline, or window and size contradict each other.
    """

    bench: str
    device: torch.device
    dtype: str = "float32"
    backend: str = "auto"
    compiled: bool = False
    fused: bool = True
    size: tuple[int, int] | None = None
    window: int | None = None
    batch: int | None = None
    baselines: tuple[str, ...] = ("plain", "torchvision")
    warmup: int = 1
    iters: int = 5
    memory: bool = True

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError("no such baseline", where=name[:60], why=f"wanted some of {', '.join(BASELINES)}")
        if self.size is not None and self.window is not None and self.bench != "e2e":
            raise ConfigError("the window's size is given twice", why="--input and --window", hint="Give one of them.")

    def workload(self, inference: InferenceConfig) -> Workload:
        """What every side does in one run, for a network with this configuration."""
        training = self.bench == "train"
        side = self.window or inference.window
        width, height = self.size or (side, side)
        return Workload(self.batch or 1 + training, height, width, training, self.warmup, self.iters, self.memory)


def run_benchmark(
    recipes: Sequence[Recipe], request: Request, progress: Callable[[str], object] = lambda doing: None
) -> Report:
    """Measures every recipe's network (for `op`: the ops at its stages' sizes).

    Args:
        recipes: which networks.
        request: what to measure.
        progress: called with what is being done.

    Raises:
        CheckFailed: compared sides do not agree; nothing is reported then.
        ResourceError: device or backend cannot run, or memory ran out.
    """
    began, findings = time.perf_counter(), Findings()
    machine = describe_machine(request.device)
    for recipe in recipes:
        measure = _measure_ops if request.bench == "op" else _measure_model
        measure(recipe, request, findings, progress)
    return Report(
        request.bench,
        machine,
        findings.rows,
        highest(findings.rates),
        findings.agreements,
        findings.notes,
        time.perf_counter() - began,
    )


def network_spec(recipe: Recipe) -> NetworkSpec:
    """The recipe's network, as measurements see it."""
    config = recipe.config.model
    name = recipe.entry.key if recipe.entry else recipe.config.name
    return NetworkSpec(name, config.backbone, config.head, config.num_classes)


def _measure_model(recipe: Recipe, request: Request, findings: Findings, progress: Callable[[str], object]) -> None:
    spec, inference = network_spec(recipe), recipe.config.inference
    work = request.workload(inference)
    fused = request.fused and not work.training
    own = own_side(request.device, request.dtype, request.backend, fused=fused, compiled=request.compiled)
    if request.bench == "e2e":
        if request.window is not None:
            inference = replace(inference, window=request.window, stride=min(inference.stride, request.window))
        picture = request.size or PICTURE
        measure_pipeline(spec, own, inference, request.warmup, request.iters, findings, picture, progress)
    elif request.bench == "profile":
        progress(f"{spec.name}: profiling")
        profile_network(spec, own, work, findings)
    else:
        # in training this package's side runs in the published order itself
        baselines = [name for name in request.baselines if not (work.training and name == "published")]
        measure_network(spec, sides_of(own, baselines, findings), work, findings, progress)


def _measure_ops(recipe: Recipe, request: Request, findings: Findings, progress: Callable[[str], object]) -> None:
    sides = op_sides(request.device, request.dtype, request.backend, request.baselines, findings)
    work = request.workload(recipe.config.inference)
    for op in (ATTENTION, UNFOLD):
        for case in stage_cases(op, recipe.config.model.head, work.height, work.width, work.batch):
            measure_op(case, sides, work.warmup, work.iters, findings, progress)
