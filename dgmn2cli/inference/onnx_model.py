"""What an ONNX file says of its tensors, inputs and outputs, compared with its protocol. Needs the onnx package."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmn2cli.errors import IntegrityError, ResourceError, printable
from dgmn2cli.inference.graph import PROTOCOL_FILE, Graph, GraphProtocol
from dgmn2cli.validation import raise_faults, show

if TYPE_CHECKING:
    import onnx

DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
LABELS = ("uint8", "int8", "int16", "int32", "int64")
Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its name, dtype and axes, None where any length fits; no axes: not known."""

    name: str
    dtype: str
    axes: Axes | None


def require_onnx() -> None:
    """Raises ResourceError where the onnx package is missing."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise missing("onnx", "onnx") from error


def missing(package: str, extra: str) -> ResourceError:
    """That a package is not installed, and the extra that has it."""
    hint = f"Install it: pip install 'dgmn2cli[{extra}]'"
    return ResourceError("a package is missing", where=package, why="it is not installed", hint=hint)


def parse(data: bytes, path: Path) -> onnx.ModelProto:
    """The ONNX file of these bytes; tensors that lie in other files are not read.

    Raises:
        IntegrityError: it is none.
    """
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise IntegrityError("this is no ONNX file", where=path, why=first_line(error)) from error
    if not model.graph.node:
        raise IntegrityError("this is no ONNX file", where=path, why="it has no graph")
    return model


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next((printable(line.strip()) for line in reversed(str(error).splitlines()) if line.strip()), "no reason")


def external_names(model: onnx.ModelProto) -> list[str]:
    """The files that hold tensors of `model`, as it names them, sorted."""
    return sorted({_entries(tensor).get("location", "") for tensor in _tensors(model) if _is_external(tensor)})


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL or tensor.external_data)


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor, however deep: of graphs within nodes and of functions, too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, Sequence) or hasattr(value, "add") else [value]:
            if field.message_type.name == "TensorProto":
                yield part
            yield from _tensors(part)


def complete(graph: Graph) -> tuple[bytes, str]:
    """The graph with all its tensors as one ONNX file, checked against its protocol; and the dtype of most of them.

    Raises:
        ConfigError: the protocol says something else than the graph; all at once.
        IntegrityError: a file is not the one that was hashed, or no ONNX; or tensors lie in files without a hash.
        ResourceError: a file cannot be read, the onnx package is missing, or the graph is too large.
    """
    data, external = graph.read()
    model = parse(data, graph.path)
    unhashed = [name for name in external_names(model) if name not in external]
    if unhashed:
        raise IntegrityError(
            "tensors of the graph lie in files without a hash",
            where=graph.path,
            why=f"it names {', '.join(map(show, unhashed[:3]))}",
            hint=f"Add them to `external` of {PROTOCOL_FILE}; `dgmn2 export --describe` drafts it.",
        )
    if faults := disagreements(model, graph.protocol):
        raise_faults("the graph's protocol says something else than the graph", faults, graph.path)
    precision = precision_of(model)
    if not external:
        return data, precision
    for tensor in _tensors(model):
        if _is_external(tensor):
            _take_in(tensor, external, graph.path)
    try:
        return model.SerializeToString(), precision
    except ValueError as error:
        why = "with its external tensors it has more than 2 GB"
        raise ResourceError("the graph is too large", where=graph.path, why=why) from error


def _take_in(tensor: Any, files: Any, path: Path) -> None:
    """Puts the bytes that a tensor has in another file into the tensor."""
    entries = _entries(tensor)
    data = files[entries["location"]]
    try:
        first = int(entries.get("offset", 0))
        length = int(entries.get("length", len(data) - first))
    except ValueError:
        first = length = -1
    if not 0 <= first <= first + length <= len(data):
        why = f"tensor {show(tensor.name)} lies beyond the end of {entries['location']}"
        raise IntegrityError("the graph is damaged", where=path, why=why)
    tensor.ClearField("external_data")
    tensor.data_location = tensor.DEFAULT
    tensor.raw_data = data[first : first + length]


def precision_of(model: onnx.ModelProto) -> str:
    """The floating-point dtype of most of the graph's weights."""
    counts = {"float32": 0, "float16": 0, "bfloat16": 0, "float64": 0}
    for tensor in model.graph.initializer:
        name = {16: "bfloat16"}.get(tensor.data_type) or DTYPES.get(tensor.data_type, "")
        if name in counts:
            counts[name] += math.prod(tensor.dims)
    return max(counts, key=lambda name: counts[name])


def inputs_of(model: onnx.ModelProto) -> list[Port]:
    """What must be given to run the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [_port(value) for value in model.graph.input if value.name not in weights]


def outputs_of(model: onnx.ModelProto) -> list[Port]:
    """What the graph gives."""
    return [_port(value) for value in model.graph.output]


def _port(value: Any) -> Port:
    kind = value.type.tensor_type
    axes = tuple(side.dim_value if side.dim_value > 0 else None for side in kind.shape.dim)
    return Port(value.name, DTYPES.get(kind.elem_type, f"ONNX type {kind.elem_type}"), axes or None)


def disagreements(model: onnx.ModelProto, protocol: GraphProtocol) -> list[str]:
    """What a protocol says about inputs and outputs and the graph does not."""
    taken, given = protocol.input, protocol.output
    inputs = {port.name: port for port in inputs_of(model)}
    outputs = {port.name: port for port in outputs_of(model)}
    faults = []
    if taken.name not in inputs:
        faults.append(f"input.name: {show(taken.name)}, the graph takes {', '.join(map(show, inputs)) or 'nothing'}")
    else:
        faults += [f"input: the graph needs {show(name)}, too" for name in inputs if name != taken.name]
        faults += _input_faults(inputs[taken.name], protocol)
    if given.name not in outputs:
        faults.append(f"output.name: {show(given.name)}, the graph gives {', '.join(map(show, outputs)) or 'nothing'}")
    else:
        faults += _output_faults(outputs[given.name], protocol)
    return faults


def _input_faults(port: Port, protocol: GraphProtocol) -> list[str]:
    taken = protocol.input
    faults = [] if port.dtype == taken.dtype else [f"input.dtype: {show(taken.dtype)}, the graph takes {port.dtype}"]
    if port.axes is None:
        return faults
    if len(port.axes) != 4:
        return [*faults, f"input: the graph takes {len(port.axes)} axes, wanted 4"]
    last = taken.layout == "NHWC"
    batch, height, width, channels = port.axes if last else (port.axes[0], *port.axes[2:], port.axes[1])
    if channels not in (None, 3):
        faults.append(f"input.layout: {show(taken.layout)}, but then the graph takes {channels} channels, wanted 3")
    for name, said, found in (
        ("batch", taken.batch, batch), ("height", taken.height, height), ("width", taken.width, width),
    ):  # fmt: skip
        if found not in (None, said):
            faults.append(f"input.{name}: {show(said)}, the graph takes {found}")
    return faults


def _output_faults(port: Port, protocol: GraphProtocol) -> list[str]:
    kind, count = protocol.output.kind, len(protocol.classes)
    if (port.dtype in LABELS) != (kind == "labels"):
        return [f"output.kind: {show(kind)}, the graph gives {port.dtype}"]
    if kind == "labels" or port.axes is None:
        return []
    if len(port.axes) != 4:
        return [f"output: the graph gives {len(port.axes)} axes, wanted 4"]
    channels = port.axes[3 if protocol.input.layout == "NHWC" else 1]
    return [] if channels in (None, count) else [f"classes: {count}, the graph gives scores of {channels}"]
