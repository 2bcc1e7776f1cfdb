"""One benchmark from request to report: which implementations, which measurement, for which models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from dgmn2cli.bench.images import measure_decoding, measure_pipeline, measure_stream
from dgmn2cli.bench.implementations import NetworkSpec, ours, with_baselines, write_graph
from dgmn2cli.bench.network import measure_graph, measure_network, profile_network
from dgmn2cli.bench.op import ATTENTION, UNFOLD, measure_op, op_implementations, stage_cases
from dgmn2cli.bench.report import Report, describe_machine
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import highest
from dgmn2cli.folders import temporary_folder
from dgmn2cli.inference.graph import Graph
from dgmn2cli.inference.load import Recipe
from dgmn2cli.inference.runtimes import RUNTIMES
from dgmn2cli.observer import Observer


def run_benchmark(
    recipes: Sequence[Recipe], request: Request, observer: Observer, graph: Graph | None = None
) -> Report:
    """Measures every recipe's network (for `op`: the ops at its stages' sizes; `decode` and `stream` need no network).

    Where a graph is given, it alone is measured, in the runtimes among the baselines.

    Raises:
        CheckFailed: compared implementations do not agree; nothing is reported then.
        ResourceError: device or backend cannot run, or memory ran out.
    """
    kind = request.bench if graph is None else "graph"
    began, report = time.perf_counter(), Report(kind, describe_machine(request.device))
    observer.begin("measuring")
    try:
        if graph is not None:
            measure_graph(graph, request.baselines, request, report, observer)
        elif request.bench == "decode":
            measure_decoding(request, report, observer)
        elif request.bench == "stream":
            measure_stream(request, report, observer)
        else:
            for recipe in recipes:
                _measure(recipe, request, report, observer)
    finally:
        observer.end()
    report.rates = highest(report.rates)
    report.seconds = time.perf_counter() - began
    return report


def _measure(recipe: Recipe, request: Request, report: Report, observer: Observer) -> None:
    config, inference = recipe.config.model, recipe.config.inference
    name = recipe.name
    spec = NetworkSpec(name, config.backbone, config.head, config.num_classes)
    sized = request.for_window(inference.window)
    if request.bench == "op":
        compared = op_implementations(request, report)
        batch, height, width = sized.shape
        for op in (ATTENTION, UNFOLD):
            for case in stage_cases(op, config.head, height, width, batch):
                measure_op(case, compared, request, report, observer)
        return
    form = "trainer" if request.training else "fused" if request.fused else "published"
    own = ours(request.device, request.dtype, request.backend, form, compiled=request.compiled)
    if request.bench == "e2e":
        if request.window is not None:
            inference = replace(inference, window=request.window, stride=min(inference.stride, request.window))
        measure_pipeline(spec, own, inference, request, report, observer)
    elif request.bench == "profile":
        observer.advance(0, detail=f"profiling {spec.name}")
        profile_network(spec, own, sized, report)
    else:
        with temporary_folder("dgmn2-graph") as folder:
            graph = None
            if request.export is not None and not request.training and set(RUNTIMES) & set(request.baselines):
                observer.advance(0, detail=f"exporting {spec.name}")
                graph = write_graph(spec, request.export, folder / "window.onnx")
            measure_network(spec, with_baselines(own, request.baselines, report.note, graph), sized, report, observer)
