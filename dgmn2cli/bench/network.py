"""`--bench infer`, `train` and `profile`, and `--graph`: passes or steps beside the baselines, and where time goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from dgmn2cli.bench.implementations import Implementation, NetworkSpec, build, compare, random_images
from dgmn2cli.bench.macs import count_executed, count_macs, count_parameters
from dgmn2cli.bench.report import PartRow, Report, Row
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import Step, alternate, best_gflops, matrix_probes, tell_round
from dgmn2cli.inference.graph import Graph
from dgmn2cli.inference.runtimes import GraphNetwork
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.observer import Observer
from dgmn2cli.runtime import PeakMeter, can_measure, in_fresh_process

TRAINING_FACTOR = 3  # a backward pass is two products for each one of the forward pass
WARM_UP_SIDE = 65  # of the small image that loads libraries and starts threads before memory is measured
LEARNING_RATE = 1e-4
IGNORED = 255
SHOWN = 15
COMPILED_OP = "dgmn2::attention"  # as the profiler calls `deform_attention` by the compiled kernels
_PART = "part of the network: "


def measure_network(
    spec: NetworkSpec, compared: Sequence[Implementation], request: Request, report: Report, observer: Observer
) -> None:
    """Checks that the implementations (this package's first) agree, times them in turn, measures their memory.

    The request's size is filled in; rows, rates and agreements go to `report`.

    Raises:
        CheckFailed: two implementations differ.
        ResourceError: not enough memory.
    """
    device, training = torch.device(compared[0].device), request.training
    batch, height, width = request.shape
    observer.advance(0, detail=f"{spec.name}: building {len(compared)} implementations")
    networks = [build(spec, used, training=training) for used in compared]
    observer.advance(0, detail=f"{spec.name}: do they agree?")
    executed = _check(spec, compared, networks, request, report)
    steps = [make_step(network, used, request) for network, used in zip(networks, compared, strict=True)]
    dtypes = dict.fromkeys(used.torch_dtype for used in compared)
    probes = [probe for dtype in dtypes for probe in matrix_probes(device, dtype)]
    told = partial(tell_round, observer, spec.name)
    timings = alternate([*steps, *(probe.step for probe in probes)], device, request.warmup, request.iters, told)
    rates = [probe.rate(seconds) for probe, seconds in zip(probes, timings[len(compared) :], strict=True)]
    report.rates += rates
    del networks, steps
    peaks: list[int | None] = [None] * len(compared)
    if request.memory and can_measure(device):
        for index, used in enumerate(compared):
            observer.advance(0, detail=f"{spec.name}: memory of {used.name}")
            peaks[index] = measure_peak(spec, used, request)
    with shapes_only():
        model = spec.build()
    macs = count_macs(model, height, width, batch) * (TRAINING_FACTOR if training else 1)
    for used, seconds, peak, counted in zip(compared, timings[: len(compared)], peaks, executed, strict=True):
        row = Row.of(spec.name, request.bench, request.shape, used, seconds, timings[0])
        done = macs if training and used.form == "published" else counted  # the trainer's are not counted
        gflops, best = 2 * (done or 0) / row.median / 1e9, best_gflops(rates, used.dtype)
        row = replace(
            row,
            macs=macs,
            executed=done,
            parameters=count_parameters(model),
            gflops=gflops if done else None,
            utilisation=gflops / best if done else None,
            efficiency=2 * macs / row.median / 1e9 / best,
            peak=peak,
            memory_share=peaks[0] / peak if peak and peaks[0] else None,
        )
        report.rows.append(row)


def _check(
    spec: NetworkSpec,
    compared: Sequence[Implementation],
    networks: Sequence[nn.Module],
    request: Request,
    report: Report,
) -> list[int | None]:
    """Every implementation against the first, on the images that will be timed.

    Returns:
        The multiply-accumulates each executes in a forward pass; None where that is not counted.

    Gradients are compared with the batch norms' stored statistics: through those of the batch, float32 rounding alone
    moves an untrained network's gradients by some percent.
    """
    what = "gradients" if request.training else "logits"
    own: list[Tensor] | None = None
    executed: list[int | None] = []
    for used, network in zip(compared, networks, strict=True):
        images = random_images(*request.shape, used)
        uncounted = used.compiled or used.graph is not None or request.training
        counting = nullcontext([0]) if uncounted else count_executed(network)
        with counting as counted, torch.inference_mode(not request.training):
            answer = [network.eval()(images)]
        executed.append(None if uncounted else counted[0])
        if request.training:
            _loss(answer[0]).backward()
            network.train()
            answer = [_taken_gradient(parameter) for parameter in network.parameters()]
        if own is None:
            own = answer
        else:
            report.agreements.append(compare(spec.name, used, what, compared[0], own, answer).require())
    return executed


def _taken_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    parameter.grad = None
    return gradient


def make_step(network: nn.Module, used: Implementation, request: Request) -> Step:
    """One run of an implementation: a forward pass without gradients, or a training step with AdamW as published."""
    images = random_images(*request.shape, used)
    if not request.training:

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


def measure_graph(graph: Graph, runtimes: Sequence[str], request: Request, report: Report, observer: Observer) -> None:
    """Times windows of the size that the protocol says, in `runtimes` in turn; rows and agreements go to `report`.

    In these rows `times_as_fast` compares with the first runtime, as nothing of this package runs beside it.

    Raises:
        CheckFailed: two runtimes differ.
        ConfigError, IntegrityError, ResourceError: as `GraphNetwork`.
    """
    sized = replace(request, size=_size(graph, request), window=None)
    name, compared, networks = graph.protocol.model, [], []
    for runtime in runtimes:
        observer.advance(0, detail=f"{name}: opening it in {runtime}")
        networks.append(GraphNetwork(graph, runtime, torch.get_num_threads()).eval())
        precision = networks[-1].precision
        compared.append(Implementation(runtime, "cpu", precision, f"{runtime} {version(runtime)}", "graph"))
    images = random_images(*sized.shape, replace(compared[0], dtype="float32"))
    answers = [network(images) for network in networks]
    for used, answer in zip(compared[1:], answers[1:], strict=True):
        agreement = compare(name, used, "logits", compared[0], [answers[0]], [answer])
        report.agreements.append(agreement.require())
    steps = [make_step(network, replace(compared[0], dtype="float32"), sized) for network in networks]
    told = partial(tell_round, observer, name)
    timings = alternate(steps, torch.device("cpu"), request.warmup, request.iters, told)
    for used, seconds in zip(compared, timings, strict=True):
        report.rows.append(Row.of(name, "graph", sized.shape, used, seconds, timings[0]))
    report.weights = f"the graph's, {graph.path}, sha256 {graph.protocol.graph_sha256}"


def _size(graph: Graph, request: Request) -> tuple[int, int]:
    """(width, height) of the images that the graph is given."""
    taken, inference = graph.protocol.input, graph.protocol.inference
    side = request.window or inference.window
    whole = inference.scale if inference.protocol == "whole" else None
    width, height = request.size or whole or (side, side)
    return taken.width or width, taken.height or height


def measure_peak(spec: NetworkSpec, used: Implementation, request: Request) -> int | None:
    """Bytes above the weights at the highest point of a run; on CPU measured in a fresh process."""
    if torch.device(used.device).type == "cpu":
        return in_fresh_process(_peak, spec, used, request, torch.get_num_threads())
    return _peak(spec, used, request, torch.get_num_threads())


def _peak(spec: NetworkSpec, used: Implementation, request: Request, threads: int) -> int | None:
    """Weights stay outside the measurement; images, activations, gradients and optimiser state are in it."""
    torch.set_num_threads(threads)
    network = build(spec, used, training=request.training)
    small = random_images(max(request.shape[0], 2), WARM_UP_SIDE, WARM_UP_SIDE, used)  # batch norm needs two at stage 4
    with torch.set_grad_enabled(request.training):
        answer = network(small)
        if request.training:
            _loss(answer).backward()
    del answer, small
    network.zero_grad(set_to_none=True)
    with PeakMeter(torch.device(used.device)) as meter:
        step = make_step(network, used, request)
        for _ in range(2 if request.training else 1):  # from the second step on the optimiser's state is there
            step()
    return meter.peak


def profile_network(spec: NetworkSpec, used: Implementation, request: Request, report: Report) -> None:
    """Adds the 15 costliest operators of `request.iters` runs to `report`; on the CPU the network's parts, too."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a machine without a GPU is no error to report on stderr
    network = build(spec, used, training=request.training)
    step = make_step(network, used, request)
    for _ in range(request.warmup):
        step()
    on_gpu = torch.device(used.device).type == "cuda"
    if not on_gpu and not used.compiled:  # a GPU's work outlives the call that asked for it
        _name_parts(network)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(request.iters):
            step()
    runs, operators, parts = request.iters, [], {}
    for event in profiler.key_averages():
        if event.key.startswith(_PART):
            parts[event.key.removeprefix(_PART)] = event.cpu_time_total / 1e6 / runs
        else:
            seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / runs
            operators.append((seconds, event))
    operators.sort(key=lambda found: -found[0])
    total = sum(seconds for seconds, _ in operators) or 1.0
    for seconds, event in operators[:SHOWN]:
        calls = event.count // runs
        report.rows.append(PartRow(spec.name, event.key, seconds, seconds / total, "all operators", calls=calls))
    for name, seconds in parts.items():
        report.rows.append(PartRow(spec.name, name, seconds, seconds / sum(parts.values()), "all parts"))
    op = next((event for _, event in operators if event.key == COMPILED_OP), None)
    if op is not None and "backbone" in parts:  # which alone calls it
        seconds = op.cpu_time_total / 1e6 / runs
        share, calls = seconds / parts["backbone"], op.count // runs
        report.rows.append(PartRow(spec.name, "deform_attention", seconds, share, "the backbone", calls=calls))


def _name_parts(network: nn.Module) -> None:
    """Makes each child of the network appear in profiles, under `_PART` and its name."""
    for name, part in network.named_children():
        running: list[record_function] = []

        def begin(module: nn.Module, args: object, name: str = name, running: list[record_function] = running) -> None:
            running.append(record_function(_PART + name))
            running[-1].__enter__()

        def end(module: nn.Module, args: object, out: object, running: list[record_function] = running) -> None:
            running.pop().__exit__(None, None, None)

        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end)
