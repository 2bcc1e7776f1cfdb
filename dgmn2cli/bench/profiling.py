"""Owns `--bench profile`: where a forward pass spends its time, by PyTorch operator."""

from __future__ import annotations

import os

import torch
from torch.profiler import ProfilerActivity, profile

from dgmn2cli.bench.network import Workload, make_step
from dgmn2cli.bench.report import Findings, OperatorRow
from dgmn2cli.bench.sides import NetworkSpec, Side, build_side

SHOWN = 15


def profile_network(spec: NetworkSpec, side: Side, work: Workload, findings: Findings) -> None:
    """Profiles `work.iters` runs after `work.warmup`; adds the 15 costliest operators to `findings`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a machine without a GPU is no error to report on stderr
    step = make_step(build_side(spec, side, training=work.training), side, work)
    for _ in range(work.warmup):
        step()
    on_gpu = torch.device(side.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(work.iters):
            step()
    events = [
        (event.key, event.count, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
    ]
    total = sum(seconds for _, _, seconds in events) or 1.0
    events.sort(key=lambda event: -event[2])
    for key, count, seconds in events[:SHOWN]:
        findings.rows.append(OperatorRow(spec.name, key, count, seconds, seconds / total))
