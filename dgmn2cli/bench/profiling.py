"""Owns `--bench profile`: where a forward pass spends its time, by PyTorch operator and by part of the network."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

from dgmn2cli.bench.network import Workload, make_step
from dgmn2cli.bench.report import Findings, OperatorRow, PartRow
from dgmn2cli.bench.sides import NetworkSpec, Side, build_side

SHOWN = 15
COMPILED_OP = "dgmn2::attention"  # as the profiler calls `deform_attention` by the compiled kernels
_PART = "part of the network: "


def profile_network(spec: NetworkSpec, side: Side, work: Workload, findings: Findings) -> None:
    """Profiles `work.iters` runs after `work.warmup`; adds the 15 costliest operators to `findings`, and on the CPU the
    network's parts with the fused op's share of the backbone."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a machine without a GPU is no error to report on stderr
    network = build_side(spec, side, training=work.training)
    step = make_step(network, side, work)
    for _ in range(work.warmup):
        step()
    on_gpu = torch.device(side.device).type == "cuda"
    if not on_gpu and not side.compiled:  # a GPU's work outlives the call that asked for it
        _name_parts(network)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(work.iters):
            step()
    averages = profiler.key_averages()
    events = [
        (event.key, event.count, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in averages
        if not event.key.startswith(_PART)
    ]
    total = sum(seconds for _, _, seconds in events) or 1.0
    events.sort(key=lambda event: -event[2])
    for key, count, seconds in events[:SHOWN]:
        findings.rows.append(OperatorRow(spec.name, key, count, seconds, seconds / total))
    findings.rows += _part_rows(spec.name, averages, work.iters)


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


def _part_rows(subject: str, averages: Sequence[FunctionEventAvg], runs: int) -> list[PartRow]:
    """Seconds a run of each part, and of the fused op, which only the backbone calls."""
    seconds = {str(event.key): event.cpu_time_total / 1e6 / runs for event in averages}
    parts = {key.removeprefix(_PART): took for key, took in seconds.items() if key.startswith(_PART)}
    rows = [PartRow(subject, name, took, took / sum(parts.values()), "all parts") for name, took in parts.items()]
    if "backbone" in parts and COMPILED_OP in seconds:
        took = seconds[COMPILED_OP]
        rows.append(PartRow(subject, "deform_attention", took, took / parts["backbone"], "the backbone"))
    return rows
