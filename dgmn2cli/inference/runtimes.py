"""Exported graphs as networks: ONNX Runtime and OpenVINO behind the same segmenter as a network of PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgmn2cli.data.transforms import normal_table
from dgmn2cli.errors import ConfigError, DataError, Dgmn2Error, IntegrityError, first_line, require_installed
from dgmn2cli.inference.arithmetic import open_runtime, resize_rows, runtime_failures, softmax, source_rows
from dgmn2cli.inference.graph import Graph, GraphInference, load_graph
from dgmn2cli.inference.load import Recipe, choose_palette
from dgmn2cli.inference.onnx_model import complete
from dgmn2cli.inference.plan import require_room
from dgmn2cli.inference.prediction import CITYSCAPES, ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.sliding_window import Finish
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import describe_device
from dgmn2cli.zoo import Zoo, ZooEntry

RUNTIMES = {"onnxruntime": "onnx", "openvino": "openvino"}  # and the extra that installs it
SURE, UNSURE = 0.0, -30.0  # logits of the class that a graph of labels gives, and of the others
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


def require_runtime(name: str) -> None:
    """Raises ResourceError where a runtime, or what is needed beside it, is not installed."""
    require_installed(RUNTIMES[name], name, "onnx")


def installed() -> tuple[str, ...]:
    """The runtimes that are.

    Raises:
        ResourceError: there is none.
    """
    found = tuple(name for name in RUNTIMES if find_spec(name) is not None)
    if not found:
        require_runtime("onnxruntime")
    return found


class GraphNetwork(nn.Module):
    """An exported graph that is called like a network. It can be copied and pickled; then it is read and opened again.

    Args:
        runtime: a key of `RUNTIMES`.

    Raises:
        ConfigError: the protocol says something else than the graph.
        IntegrityError: the graph is not the one that was hashed, or the runtime cannot take it.
        ResourceError: the runtime is not installed, or a file cannot be read.
    """

    def __init__(self, graph: Graph, runtime: str, threads: int) -> None:
        super().__init__()
        self.graph, self.runtime, self.threads = graph, runtime, threads
        self._open()

    def _open(self) -> None:
        require_runtime(self.runtime)
        model, precision = complete(self.graph)
        names = self.graph.protocol.input.name, self.graph.protocol.output.name
        self.precision = "float32" if self.runtime == "openvino" else precision  # in which it computes
        self.failures = runtime_failures(self.runtime)
        try:
            self.run = open_runtime(self.runtime, model, *names, self.threads)
        except self.failures as error:
            raise self._failure("the runtime does not take the graph", error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("run", "failures")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open()

    def _failure(self, what: str, error: Exception) -> Dgmn2Error:
        hint = f"Try another --runtime: {', '.join(RUNTIMES)}."
        return IntegrityError(what, where=f"{self.runtime}, {self.graph.path}", why=first_line(error), hint=hint)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C, H, W)` float32 of normalised RGB images `(B, 3, H, W)` float32.

        Raises:
            DataError: the graph does not take windows of this size.
            IntegrityError: the graph does not run, or gives what the protocol does not say.
            MemoryError: it needs more memory than there is.
        """
        taken = self.graph.protocol.input
        height, width = images.shape[2:]
        if not taken.fits(height, width):
            why = f"a window of {width}x{height} comes up, and the graph takes {taken.size} only"
            hint = "Use --protocol native, which pads windows; or --runtime torch; or a graph that takes any size."
            raise DataError("the graph cannot segment this image exactly", why=why, hint=hint)
        values = images.numpy()
        values = values[:, ::-1] if taken.channels == "BGR" else values
        values = values.transpose(0, 2, 3, 1) if taken.layout == "NHWC" else values
        values = np.ascontiguousarray(values, taken.dtype)
        scores = np.concatenate([self._scores(self._run(part)) for part in _parts(values, taken.batch)])[: len(values)]
        if scores.shape[2:] != (height, width):
            rows, corners = slice(0, height), self.graph.protocol.output.align_corners
            scores = np.stack([resize_rows(one, (height, width), rows, align_corners=corners) for one in scores])
        return torch.from_numpy(np.ascontiguousarray(scores))

    def _run(self, values: np.ndarray) -> np.ndarray:
        try:
            return self.run(values)
        except self.failures as error:
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise MemoryError(first_line(error)) from error
            raise self._failure("the graph does not run", error) from error

    def _scores(self, output: np.ndarray) -> np.ndarray:
        """Scores `(B, C, h, w)` float32 of what the graph gave."""
        given, last = self.graph.protocol.output, self.graph.protocol.input.layout == "NHWC"
        count, path = len(self.graph.protocol.classes), self.graph.path
        if output.ndim == 3 and given.kind == "labels":
            output = output[..., None] if last else output[:, None]
        output = output.transpose(0, 3, 1, 2) if last and output.ndim == 4 else output
        wanted = (1 if given.kind == "labels" else count, given.height, given.width)
        if output.ndim != 4 or not all(map(_fits, output.shape[1:], wanted)):
            shape = " x ".join("any" if side is None else str(side) for side in wanted)
            why = f"for each image it has {' x '.join(map(str, output.shape[1:]))} numbers, wanted {shape}"
            raise IntegrityError("the graph's output is not what its protocol says", where=path, why=why)
        if given.kind == "logits":
            return output.astype(np.float32, copy=False)
        if output.min() < 0 or output.max() >= count:
            wrong = output.min() if output.min() < 0 else output.max()
            why = f"class id {wrong}, but {count} classes are named"
            raise IntegrityError("the graph gives a class that its protocol lacks", where=path, why=why)
        scores = np.full((len(output), count, *output.shape[2:]), UNSURE, np.float32)
        np.put_along_axis(scores, output.astype(np.int64), SURE, axis=1)
        return scores


def _fits(side: int, wanted: int | None) -> bool:
    return wanted in (None, side)


def _parts(values: np.ndarray, batch: int | None) -> list[np.ndarray]:
    """`values` as batches of the one size that a graph takes, the last one filled up with copies; as it is if None."""
    if batch is None:
        return [values]
    rows = np.arange(-(-len(values) // batch) * batch).reshape(-1, batch)
    return [values[np.minimum(part, len(values) - 1)] for part in rows]


def _span(height: int, target: int, rows: slice, align_corners: bool) -> slice:
    if height == target:
        return rows
    upper, lower, _ = source_rows(height, target, align_corners)
    return slice(int(upper[rows.start]), int(lower[rows.stop - 1]) + 1)


def _probabilities(
    logits: Tensor, size: tuple[int, int], band: slice, above: int, height: int, align_corners: bool
) -> Tensor:
    resized = resize_rows(logits.numpy(), size, band, align_corners=align_corners, above=above, height=height)
    return torch.from_numpy(softmax(resized))


@dataclass(frozen=True)
class GraphRecipe:
    """A graph as a model to load; called, it is opened, also in another process."""

    graph: Graph  # the graph with its protocol
    entry: ZooEntry | None  # the zoo entry of the model that it was made from, if it is of the zoo
    # runtime, max_memory: as for `open_graph`
    runtime: str
    max_memory: int | None

    @classmethod
    def of(cls, path: str | Path, zoo: Zoo, runtime: str, max_memory: int | None) -> GraphRecipe:
        """The graph that `path` names, see `load_graph`, which says what may be wrong."""
        graph = load_graph(path)
        entry = next((entry for entry in zoo.segmentors if entry.key == graph.protocol.model), None)
        return cls(graph, entry, runtime, max_memory)

    def __call__(self, *, device: str = "cpu", observer: Observer = Silent()) -> Segmenter:
        """The opened graph; an observer has nothing to see."""
        return open_graph(self.graph, self.runtime, device=device, max_memory=self.max_memory)

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.graph.protocol.model

    @property
    def inference(self) -> GraphInference:
        """The test procedure."""
        return self.graph.protocol.inference


AnyRecipe = Recipe | GraphRecipe


def open_graph(
    graph: Graph, runtime: str = "onnxruntime", *, device: str = "cpu", max_memory: int | None = None
) -> Segmenter:
    """A segmenter for an exported graph, or anybody's that a protocol describes. It computes on the CPU.

    Args:
        runtime: `onnxruntime` or `openvino`; it gets as many threads as PyTorch has.
        device: `cpu` or `auto`.
        max_memory: bytes that must not be exceeded, see `Settings`.

    Raises:
        ConfigError: another device; or the protocol says something else than the graph.
        IntegrityError: the graph is not the one that was hashed, or the runtime does not take it.
        ResourceError: the runtime is not installed, a file cannot be read, or the memory limit is too small.
    """
    protocol, cpu = graph.protocol, torch.device("cpu")
    if device not in ("auto", "cpu"):
        raise ConfigError("graphs run on the CPU only", where=device, hint="Use --device cpu, or --runtime torch.")
    if max_memory is not None:
        size = graph.path.stat().st_size if graph.path.is_file() else 0
        require_room(max_memory, cpu, 3 * size, "loading the graph")
    network = GraphNetwork(graph, runtime, torch.get_num_threads()).eval()
    info = RunInfo(
        model=protocol.model,
        checkpoint="",
        sha256=protocol.weights_sha256 or "",
        device="cpu",
        device_name=describe_device(cpu),
        dtype="float32",
        backend="",
        form="graph",
        runtime=runtime,
        runtime_version=version(runtime),
        precision=network.precision,
        graph=str(graph.path),
        graph_sha256=protocol.graph_sha256,
    )
    cityscapes, step = protocol.classes == CITYSCAPES.names, -1 if protocol.input.channels == "BGR" else 1
    palette = choose_palette(protocol.palette, len(protocol.classes), cityscapes)
    corners = protocol.inference.align_corners
    finish = Finish(partial(_span, align_corners=corners), partial(_probabilities, align_corners=corners))
    normal = normal_table(protocol.input.mean[::step], protocol.input.std[::step])
    return Segmenter(
        network, ClassList(protocol.classes, palette, cityscapes), info, protocol.inference, normal, finish
    )
