"""Exporting: the graph, its protocol, the runner that needs no torch, and the self-check, in one folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dgmn2cli.data.transforms import MEAN_RGB, STD_RGB
from dgmn2cli.errors import ConfigError, require_installed
from dgmn2cli.export.check import Parity, compare
from dgmn2cli.files import atomic_write, check_folder, to_json, to_plain
from dgmn2cli.folders import atomic_folder
from dgmn2cli.inference import arithmetic
from dgmn2cli.inference.graph import PROTOCOL_FILE, GraphInference, GraphInput, GraphOutput, GraphProtocol, load_graph
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.version import __version__
from dgmn2cli.zoo import short_name

GRAPHS = {"onnx": "window.onnx", "pt2": "window.pt2"}
RUNNER, ARITHMETIC, README, DOCKERFILE = "run.py", "arithmetic.py", "README.md", "Dockerfile"
OURS = (*GRAPHS.values(), PROTOCOL_FILE, RUNNER, ARITHMETIC, README, DOCKERFILE)
SMALLEST_WINDOW, LARGEST_WINDOW = 33, 8192
_DOCKERFILE = """\
FROM python:3.12-slim
RUN pip install --no-cache-dir numpy opencv-python-headless onnxruntime
COPY . /model
ENTRYPOINT ["python", "/model/run.py"]
"""
_ABOUT = """\
# {model}

The network as a graph ({dtype}) with the published test procedure around it, exported by dgmn2cli.
Input `images`: float32 {shape}, RGB, normalised with `mean` and `std` of `protocol.json` (bytes of 0 to 255).
Output `logits`: float32, a score for each of the {classes} classes and each pixel of the input.
Licence of the weights: {licence}.

`protocol.json` says all that must be known to use the graph: sizes, windows, scales, classes, colours, hashes, and how
far the graph was from the network when it was exported.
"""
_RUN = """
    pip install numpy opencv-python-headless onnxruntime
    python run.py street.jpg -o masks

`masks/street_ids.png` has the class ids as palette indices. `--ms-flip` averages six scales and their mirror images,
`--protocol native` keeps the image's size, `--runtime openvino` runs it there. Neither torch nor dgmn2cli is needed.
With dgmn2cli: `dgmn2 infer street.jpg --runtime onnxruntime --graph .` gives the same masks.
"""
_LOAD = """
    network = torch.export.load("window.pt2").module()
    logits = network(images)

Only windows of {window}x{window} fit. A smaller image gives smaller windows: those need an export with `--format onnx`,
which takes any size.
"""


@dataclass(frozen=True)
class ExportReport:
    """What was exported."""

    folder: Path  # where it is
    files: dict[str, int]  # size in bytes by name
    protocol: GraphProtocol = field(repr=False)  # what `protocol.json` says
    parity: Parity = field(repr=False)  # the self-check's figures
    seconds: float  # wall time, the self-check included


def export_folder(
    segmenter: Segmenter,
    folder: str | Path,
    form: str = "onnx",
    *,
    half: bool = False,
    window: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    observer: Observer = Silent(),
) -> ExportReport:
    """Exports a network into a folder of its own, which appears once the graph was seen to agree with the network.

    Args:
        segmenter: what `dgmn2cli.load` gave.
        folder: absent or empty; or an earlier export, with `overwrite`.
        form: `onnx`, or `pt2` for torch alone.
        half: weights and activations in float16; coordinates of samples, softmax and norms stay float32.
        window: side of the sliding window; the configuration's if None.
        batch: windows that the graph takes at a time; any number if None.
        overwrite: replace an earlier export.
        observer: told of the steps.

    Raises:
        CheckFailed: the graph does not agree with the network; nothing is left.
        ConfigError: the folder is taken, an impossible option, or the segmenter is itself a graph.
        ResourceError: a package is missing, or the folder cannot be written.
    """
    began, folder = time.perf_counter(), Path(os.path.realpath(folder))
    require_packages(form)
    require_place(folder, overwrite)
    network = published_form(segmenter)
    protocol = describe(network, form, half, window, batch, segmenter.info.licence)
    observer.begin("writing the graph")
    with atomic_folder(folder, overwrite=overwrite) as part:
        graph, protocol = write_graph(part / protocol.graph, network, protocol)
        write_protocol(part, protocol)
        parity = compare(network, graph(), protocol, observer)
        protocol = replace(protocol, parity=to_plain(parity))
        write_protocol(part, protocol)
        for name, text in companions(protocol).items():
            atomic_write(part / name, text)
        require_place(folder, overwrite)  # what came into it meanwhile is somebody's
    observer.end()
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportReport(folder, files, protocol, parity, time.perf_counter() - began)


def require_packages(form: str) -> None:
    """Raises ResourceError where a package is missing that writes or checks a graph of this form."""
    if form == "onnx":
        require_installed("onnx", "onnx", "onnxruntime")


def require_place(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that an export cannot become.

    Raises:
        ConfigError: it holds files, and `overwrite` is not said or some of them are no export's.
        ResourceError: something else is in its place, or it cannot be written.
    """
    check_folder(folder)
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    others = [name for name in names if name not in OURS]
    if names and (others or not overwrite):
        hint = "Choose another folder with -o." if others else "Add --overwrite, or choose another folder with -o."
        why = f"it holds {', '.join((others or names)[:3])}"
        raise ConfigError("the folder is not empty", where=folder, why=why, hint=hint)


def published_form(segmenter: Segmenter) -> Segmenter:
    """The segmenter with its network as published, on the CPU in float32; itself where it is that already.

    Raises:
        ConfigError: it is a graph, or its weights are in memory only.
    """
    if isinstance(segmenter.network, Segmentor) and (segmenter.info.device, segmenter.info.dtype) == ("cpu", "float32"):
        return segmenter
    if segmenter.again is None:
        hint = "Load the model with `dgmn2cli.load`."
        raise ConfigError(
            "this network cannot be exported", where=segmenter.info.model, why="it is no model", hint=hint
        )
    return segmenter.again(device="cpu", dtype="float32", exact_algebra=False)


def describe(
    network: Segmenter, form: str, half: bool, window: int | None, batch: int | None, licence: str | None
) -> GraphProtocol:
    """The protocol of an export, without what is known only once the graph is there.

    Raises:
        ConfigError: an impossible window or batch.
    """
    inference = network.inference
    window = inference.window if window is None else window
    if not SMALLEST_WINDOW <= window <= LARGEST_WINDOW:
        why = f"{window}, wanted {SMALLEST_WINDOW} to {LARGEST_WINDOW}"
        raise ConfigError("impossible window", why=why)
    side = window if form == "pt2" else None
    return GraphProtocol(
        format_version=1,
        model=network.info.model,
        weights_sha256=network.info.sha256,
        graph=GRAPHS[form],
        graph_sha256="0" * 64,
        input=GraphInput(mean=MEAN_RGB, std=STD_RGB, height=side, width=side, batch=batch),
        output=GraphOutput(height=side, width=side, align_corners=True),
        inference=GraphInference(
            align_corners=True,
            protocol=inference.protocol,
            scale=inference.scale,
            window=window,
            stride=min(inference.stride, window),
            ratios=inference.ratios,
            flip=inference.flip,
        ),
        classes=network.classes.names,
        palette=tuple((int(r), int(g), int(b)) for r, g, b in network.classes.palette),
        licence=licence,
        exporter={
            "dgmn2cli": __version__,
            "torch": str(torch.__version__),
            "dtype": "float16" if half else "float32",
            "nan_checks": False,
        },
    )


def write_graph(
    path: Path, network: Segmenter, protocol: GraphProtocol
) -> tuple[Callable[[], Segmenter], GraphProtocol]:
    """Writes the graph; gives what opens it again (its protocol beside it), and the protocol with its hash."""
    model, exporter = network.network, dict(protocol.exporter)
    half, batch = exporter["dtype"] == "float16", protocol.input.batch
    assert isinstance(model, Segmentor)
    if protocol.graph == GRAPHS["onnx"]:
        import onnx

        from dgmn2cli.export.graph import build_graph
        from dgmn2cli.inference.runtimes import open_graph

        graph = build_graph(model, half=half, batch=batch)
        exporter |= {"onnx": onnx.__version__, "opset": graph.opset_import[0].version}
        exporter["operators"] = dict(sorted(Counter(node.op_type for node in graph.graph.node).items()))
        data = graph.SerializeToString()

        def reopen() -> Segmenter:
            return open_graph(load_graph(path))
    else:
        from dgmn2cli.export.program import open_program, save_program

        data = save_program(model, protocol.inference.window, half, batch)

        def reopen() -> Segmenter:
            return open_program(path, network)

    atomic_write(path, data)
    return reopen, replace(protocol, graph_sha256=hashlib.sha256(data).hexdigest(), exporter=exporter)


def companions(protocol: GraphProtocol) -> dict[str, str]:
    """The texts that go with a graph, by file name."""
    own = Path(__file__).with_name(RUNNER).read_text(encoding="utf-8")
    shared = Path(arithmetic.__file__).read_text(encoding="utf-8")
    texts = {README: _readme(protocol)}
    if protocol.graph == GRAPHS["onnx"]:
        texts[RUNNER] = own.replace("from dgmn2cli.inference.arithmetic import", "from arithmetic import")
        texts[ARITHMETIC] = shared
        texts[DOCKERFILE] = _DOCKERFILE
    return texts


def write_protocol(folder: Path, protocol: GraphProtocol) -> None:
    """Writes the protocol beside its graph."""
    atomic_write(folder / PROTOCOL_FILE, to_json(protocol) + "\n")


def _readme(protocol: GraphProtocol) -> str:
    taken = protocol.input
    sides = ("height", "width") if taken.height is None else (str(taken.height), str(taken.width))
    shape = f"({', '.join(('batch' if taken.batch is None else str(taken.batch), '3', *sides))})"
    text = _ABOUT + (_RUN if protocol.graph == GRAPHS["onnx"] else _LOAD)
    return text.format(
        model=short_name(protocol.model),
        dtype=protocol.exporter["dtype"],
        shape=shape,
        classes=len(protocol.classes),
        window=protocol.inference.window,
        licence=protocol.licence or "not known",
    )
