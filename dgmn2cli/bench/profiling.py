"""`--bench profile`: where a forward pass spends its time, by PyTorch operator and by part of the network."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from dgmn2cli.bench.implementations import Implementation, NetworkSpec, build
from dgmn2cli.bench.network import make_step
from dgmn2cli.bench.report import ProfileRow, Report
from dgmn2cli.bench.request import Request

SHOWN = 15
COMPILED_OP = "dgmn2::attention"  # as the profiler calls `deform_attention` by the compiled kernels
_PART = "part of the network: "


def profile_network(spec: NetworkSpec, used: Implementation, request: Request, report: Report) -> None:
    """Profiles `request.iters` runs after `request.warmup`; adds the 15 costliest operators to `report`, and on the CPU
    the network's parts with the fused op's share of the backbone."""
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
        report.rows.append(ProfileRow(spec.name, event.key, calls, seconds, seconds / total, "all operators"))
    for name, seconds in parts.items():
        report.rows.append(ProfileRow(spec.name, name, 1, seconds, seconds / sum(parts.values()), "all parts"))
    op = next((event for _, event in operators if event.key == COMPILED_OP), None)
    if op is not None and "backbone" in parts:  # which alone calls it
        seconds = op.cpu_time_total / 1e6 / runs
        share = seconds / parts["backbone"]
        report.rows.append(ProfileRow(spec.name, "deform_attention", op.count // runs, seconds, share, "the backbone"))


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
