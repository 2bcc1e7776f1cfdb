"""`--graph`: windows of an exported graph, anybody's, in one runtime or in several in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import torch

from dgmn2cli.bench.implementations import Implementation, compare, random_images
from dgmn2cli.bench.network import make_step
from dgmn2cli.bench.report import Report, Row
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import alternate, tell_round
from dgmn2cli.inference.graph import Graph
from dgmn2cli.inference.runtimes import GraphNetwork
from dgmn2cli.observer import Observer


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
